//! L2 norm on the CPU.

use crate::cpu::pool;
use crate::cpu::simd::{LANES, simd_dispatch};

/// Elements per partial sum: 64 KiB.
const CHUNK: usize = 16_384;
/// Most pieces, each of whole chunks, so that their sums fit on the stack.
const PIECES: usize = 256;

/// `sqrt(sum x^2)`.
pub fn global_norm(x: &[f32]) -> f64 {
    sum_of_squares(x).sqrt()
}

/// `sum x^2`, to be added up where a norm goes over several slices.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let piece = x.len().div_ceil(CHUNK).div_ceil(PIECES).max(1) * CHUNK;
    let mut sums = [0f64; PIECES];
    pool::for_each_chunk(&mut sums[..x.len().div_ceil(piece)], 1, |i, sum| {
        let x = &x[i * piece..x.len().min((i + 1) * piece)];
        sum[0] = x.chunks(CHUNK).map(squares).sum();
    });
    sums.iter().sum()
}

#[inline(always)]
fn squares_body<const FMA: bool>(x: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            // The square of an f32 is exact in f64: fused or not, the same bits.
            *lane += f64::from(v) * f64::from(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane += f64::from(v) * f64::from(v);
    }
    lanes.iter().sum()
}
simd_dispatch! { fn squares(x: &[f32]) -> f64 = squares_body; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_right_for_every_length_and_extreme_values() {
        for len in [0, 1, 15, 17, CHUNK - 1, CHUNK + 1, 5 * CHUNK + 3] {
            let x: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
            let exact: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
            assert_eq!(global_norm(&x), exact.sqrt(), "{len} values");
        }
        assert!((global_norm(&[f32::MAX; 4]) / f64::from(f32::MAX) - 2.0).abs() < 1e-12);
        assert!(global_norm(&[1.0, f32::NAN]).is_nan());
        assert_eq!(global_norm(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
    }

    #[test]
    fn slices_longer_than_all_pieces_are_summed_whole() {
        let x = vec![0.5; PIECES * CHUNK + 5];
        assert_eq!(sum_of_squares(&x), x.len() as f64 * 0.25);
    }
}
