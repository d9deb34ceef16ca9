//! Run-time choice of instruction set, and branch-free vector math for it.
//!
//! Element-wise kernels are plain Rust loops over slices, written once as an `#[inline(always)]` function with a
//! `const FMA: bool` parameter; [`simd_dispatch!`] compiles them for AVX-512, for AVX2 + FMA and for the build's
//! baseline and picks one at run time. The compiler vectorises; the math below has no branches and no libm calls, so
//! that it can. Bits depend on the instruction set, never on the thread count.

use std::sync::OnceLock;

/// Instruction sets the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// x86-64 with AVX-512 F, VL, BW, DQ.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Whatever the build targets.
    Baseline,
}

/// The best instruction set of this machine.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            if fma && avx512 {
                return Isa::Avx512;
            }
            if fma {
                return Isa::Avx2;
            }
        }
        Isa::Baseline
    })
}

/// Defines `$name`, which runs the `#[inline(always)]` function `$body::<FMA>` compiled for this machine's
/// instruction set.
macro_rules! simd_dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match $crate::cpu::simd::isa() {
                    // SAFETY: `isa` saw these features on this machine.
                    $crate::cpu::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::simd::Isa::Baseline => {}
                }
            }
            // Elsewhere a fused multiply-add is part of the baseline (aarch64) or would be a libm call.
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use simd_dispatch;

/// Elements that a reduction keeps apart: one AVX-512 register, two AVX2 ones.
pub(crate) const LANES: usize = 16;

/// `a * b + c`, fused where the hardware does it.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Folds lanes in a fixed tree.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `f(x)` over a slice, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane += f(v);
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of `f(x, y)` over two slices of one length, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_by2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks_x, tail_x) = x.as_chunks::<LANES>();
    let (chunks_y, tail_y) = y.as_chunks::<LANES>();
    for (cx, cy) in chunks_x.iter().zip(chunks_y) {
        for i in 0..LANES {
            lanes[i] += f(cx[i], cy[i]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(tail_x).zip(tail_y) {
        *lane += f(a, b);
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of `f(x, y, z)` over three slices of one length, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_by3(x: &[f32], y: &[f32], z: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks_x, tail_x) = x.as_chunks::<LANES>();
    let (chunks_y, tail_y) = y.as_chunks::<LANES>();
    let (chunks_z, tail_z) = z.as_chunks::<LANES>();
    for ((cx, cy), cz) in chunks_x.iter().zip(chunks_y).zip(chunks_z) {
        for i in 0..LANES {
            lanes[i] += f(cx[i], cy[i], cz[i]);
        }
    }
    for (((lane, &a), &b), &c) in lanes.iter_mut().zip(tail_x).zip(tail_y).zip(tail_z) {
        *lane += f(a, b, c);
    }
    fold(lanes, |a, b| a + b)
}

/// Largest element; NaN if any element is NaN, so that a broken row is seen in its result.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    #[inline(always)]
    fn larger(a: f32, b: f32) -> f32 {
        if a > b || a.is_nan() { a } else { b }
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, v);
    }
    fold(lanes, larger)
}

/// `e^x` within 2 units in the last place; arguments are clamped to what a normal f32 can hold, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts (Cody and Waite), so that `x - n ln 2` keeps its low bits.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons in this direction pass NaN through.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = fma::<FMA>(x, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN_2_LOW, fma::<FMA>(n, -LN_2_HIGH, x));
    // Minimax polynomial of Cephes' expf (Moshier) for e^r on |r| <= ln 2 / 2.
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_5e-2, 0.166_666_66, 0.5] {
        p = fma::<FMA>(p, r, coefficient);
    }
    let p = fma::<FMA>(p, r * r, r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// Standard normal distribution function and density at `x`, absolute error below 1e-7.
///
/// The tail is computed as itself and not as a difference from one (Abramowitz and Stegun 7.1.26 for erfc).
#[inline(always)]
pub(crate) fn normal_cdf_pdf<const FMA: bool>(x: f32) -> (f32, f32) {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FMA>(0.327_591_1, z, 1.0);
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = fma::<FMA>(p, t, coefficient);
    }
    let e = exp::<FMA>(-z * z);
    let tail = 0.5 * p * t * e;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, e * FRAC_1_SQRT_2PI)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = exp::<FMA>(x);
        }
    }
    simd_dispatch! { fn exp_all(x: &[f32], y: &mut [f32]) = exp_body; }

    #[test]
    fn exp_is_close_and_passes_nan() {
        let x: Vec<f32> = (-87_000..88_000).step_by(7).map(|i| i as f32 * 1e-3).collect();
        let mut y = vec![0.0; x.len()];
        exp_all(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            assert!(((f64::from(y) - exact) / exact).abs() < 2.5e-7, "exp({x}) = {y}, not {exact}");
        }
        assert!(exp::<true>(f32::NAN).is_nan() && exp::<false>(f32::NAN).is_nan());
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
    }

    #[test]
    fn normal_cdf_has_an_accurate_tail() {
        // Values of the normal distribution function, from any table.
        for (x, cdf) in [(0.0, 0.5), (1.0, 0.841_344_8), (-1.0, 0.158_655_25), (-3.0, 1.349_898e-3)]
        {
            let (found, _) = normal_cdf_pdf::<false>(x);
            assert!((found - cdf).abs() < 1e-6_f32.min(1e-4 * cdf.max(0.01)), "cdf({x}) = {found}");
        }
    }
}
