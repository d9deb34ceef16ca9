//! The fp32 multiply-add rate of the cores at this moment: what a perfect matrix product would reach.
//!
//! Cores change their clock and other processes take their share, so the probe belongs beside each measurement, not in
//! a table. It keeps more independent accumulators in registers than a multiply-add has cycles of latency times units,
//! and touches no memory.

use std::hint::black_box;
use std::time::Instant;

use aim_kernels::cpu::pool;

/// Rounds over all accumulators in one piece: about a millisecond.
const ROUNDS: usize = 200_000;
/// Pieces for each thread. Several, so that a thread that loses its core does not hold the others back.
const PIECES: usize = 16;

/// Multiply-adds count as two. Runs `threads` of the kernels' own threads for some 20 ms and leaves the thread count
/// as it was.
pub fn fma_peak_gflops(threads: usize) -> f64 {
    let before = pool::num_threads();
    pool::set_num_threads(threads);
    let probe = probe();
    // Wakes the threads up.
    pool::for_each(threads, |_| {
        black_box((probe.run)(ROUNDS / 20));
    });
    let start = Instant::now();
    pool::for_each(threads * PIECES, |_| {
        black_box((probe.run)(ROUNDS));
    });
    let elapsed_s = start.elapsed().as_secs_f64().max(1e-9);
    pool::set_num_threads(before);
    (threads * PIECES * ROUNDS * probe.flops_per_round) as f64 / elapsed_s / 1e9
}

/// A loop of multiply-adds and what one round of it counts for.
struct Probe {
    run: fn(usize) -> f32,
    flops_per_round: usize,
}

fn probe() -> Probe {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Probe {
                // SAFETY: the feature was just seen on this machine.
                run: |rounds| unsafe { x86::avx512(rounds) },
                flops_per_round: 2 * 16 * x86::WIDE,
            };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Probe {
                // SAFETY: the features were just seen on this machine.
                run: |rounds| unsafe { x86::avx2(rounds) },
                flops_per_round: 2 * 8 * x86::NARROW,
            };
        }
    }
    Probe { run: portable, flops_per_round: 2 * PORTABLE }
}

/// Accumulators of [`portable`]: half the vector registers of aarch64.
const PORTABLE: usize = 64;

/// Left to the compiler. Fused only where that is part of the build's baseline; elsewhere it would be a libm call.
fn portable(rounds: usize) -> f32 {
    let (factor, term) = (black_box(0.999_f32), black_box(0.001_f32));
    let mut sums = [1.0_f32; PORTABLE];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = if cfg!(target_arch = "aarch64") {
                sum.mul_add(factor, term)
            } else {
                *sum * factor + term
            };
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_add_ps,
        _mm512_cvtss_f32, _mm512_fmadd_ps, _mm512_set1_ps,
    };
    use std::hint::black_box;

    /// Accumulators of [`avx512`], of 32 registers: more than latency times units (8), few enough that the compiler keeps
    /// every one in its register.
    pub(super) const WIDE: usize = 12;
    /// Accumulators of [`avx2`], of 16 registers.
    pub(super) const NARROW: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(rounds: usize) -> f32 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_set1_ps(black_box(1.0)); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        // All accumulators hold the same, so one lane of their sum shows that each was computed.
        _mm512_cvtss_f32(sums.into_iter().fold(_mm512_set1_ps(0.0), |a, b| _mm512_add_ps(a, b)))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(rounds: usize) -> f32 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_set1_ps(black_box(1.0)); NARROW];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        _mm256_cvtss_f32(sums.into_iter().fold(_mm256_set1_ps(0.0), |a, b| _mm256_add_ps(a, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accumulator_follows_the_recurrence() {
        let expected = (0..50).fold(1.0_f64, |sum, _| sum * 0.999 + 0.001);
        let probe = probe();
        let accumulators = if probe.flops_per_round == 2 * PORTABLE {
            PORTABLE
        } else {
            probe.flops_per_round / 2
        };
        let lanes = match accumulators {
            #[cfg(target_arch = "x86_64")]
            n if n == 16 * x86::WIDE => x86::WIDE,
            #[cfg(target_arch = "x86_64")]
            n if n == 8 * x86::NARROW => x86::NARROW,
            n => n,
        };
        assert!((f64::from((probe.run)(50)) / lanes as f64 - expected).abs() < 1e-4);
        assert!((f64::from(portable(50)) / PORTABLE as f64 - expected).abs() < 1e-4);
    }
}
