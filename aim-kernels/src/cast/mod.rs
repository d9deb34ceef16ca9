//! One number type to another.
//!
//! - bf16 is rounded to the nearest, ties to even
//! - a *split* f32 is its nearest bf16, `hi` (ties away from zero), and what is missing, `lo`: a signed 16-bit number in
//!   units of the 32-bit pattern. `bits(value) = (bits(hi) << 16) + lo`, exact both ways for every finite value; `hi`
//!   alone is the copy that matrix products read. A NaN becomes the plain one
//! - padded: `[rows, cols]` to `[rows, stride]` with zeros in the columns past `cols`, for products that want rows of a
//!   multiple of 8 values
//!
//! The CPU keeps plain f32: this is CUDA's, and the two functions here are for what the host prepares.

use half::bf16;

pub mod cuda;

/// The split form of a value.
///
/// ```
/// use aim_kernels::cast::{join, split};
/// let (hi, lo) = split(0.1);
/// assert_eq!(hi.to_f32(), 0.100_097_656);
/// assert_eq!(join(hi, lo), 0.1);
/// ```
pub fn split(value: f32) -> (bf16, i16) {
    // Some NaNs would wrap round to -0, and the compute copy would hide them.
    let bits = if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    (bf16::from_bits((bits.wrapping_add(0x8000) >> 16) as u16), bits as i16)
}

/// The value of a split form.
pub fn join(hi: bf16, lo: i16) -> f32 {
    f32::from_bits((u32::from(hi.to_bits()) << 16).wrapping_add(i32::from(lo) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_and_join_are_exact() {
        // Every exponent and sign, with low halves around the tie.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (hi, lo) = split(value);
                if value.is_nan() {
                    assert!(hi.is_nan() && join(hi, lo).is_nan(), "{high:x} {low:x}");
                } else {
                    assert_eq!(join(hi, lo).to_bits(), value.to_bits(), "{high:x} {low:x}");
                }
            }
        }
    }
}
