//! The filter across RGB rows with AVX2, to the bit what `filter_color` computes.
//!
//! A weight of 24 bits is split into two of 16, `weight = high * 2^12 + low`, for the instruction
//! that multiplies pairs of 16-bit numbers and adds each pair. Sums of integers, so that no order
//! of adding changes them.

use std::arch::x86_64::{__m128i, __m256i};

use bytemuck::cast;
pub(super) use pulp::x86::V3;

/// Source pixels taken in one step.
const TAPS: usize = 4;
/// Bytes that may be read past a row's last pixel.
pub(super) const PAD: usize = 16;
/// Low bits of a weight that are kept apart.
const LOW_BITS: u32 = 12;

/// Weights as the multiplications take them: for each output, and each four source pixels of it,
/// high and low parts, `[w0 w1] * 4, [w2 w3] * 4`.
#[derive(Default)]
pub(super) struct Pairs {
    values: Vec<[[i16; 16]; 2]>,
    steps: usize,
}

impl Pairs {
    /// Takes over weights, `stride` of them for each output (those not in use are 0).
    pub(super) fn compute(&mut self, weights: &[i32], stride: usize) {
        self.steps = stride.div_ceil(TAPS);
        self.values.clear();
        for weights in weights.chunks_exact(stride) {
            for four in weights.chunks(TAPS) {
                let weight = |at: usize| four.get(at).copied().unwrap_or(0);
                let high = |at| (weight(at) + (1 << (LOW_BITS - 1))) >> LOW_BITS;
                let low = |at| weight(at) - (high(at) << LOW_BITS);
                let place = |at: usize| at / 8 * 2 + at % 2;
                self.values.push([
                    std::array::from_fn(|at| high(place(at)) as i16),
                    std::array::from_fn(|at| low(place(at)) as i16),
                ]);
            }
        }
    }
}

/// From 16 bytes, twice: red, green and blue of pixels 0 and 1, and of 2 and 3, as 16-bit pairs.
const SPREAD: [i8; 32] = {
    let mut out = [-1; 32];
    let mut at = 0;
    while at < 12 {
        let (half, channel, second) = (at / 6, at % 6 / 2, at % 2);
        out[half * 16 + channel * 4 + second * 2] = (half * 6 + second * 3 + channel) as i8;
        at += 1;
    }
    out
};

/// Filters four rows of RGB pixels, each with [`PAD`] bytes to spare, and writes those that
/// `target` has room for. `bounds` are first source pixels and numbers of them.
#[inline(always)]
pub(super) fn filter_color(
    v3: V3,
    sources: &[&[u8]; 4],
    left: usize,
    (bounds, pairs): (&[(usize, usize)], &Pairs),
    (stride, precision): (usize, u32),
    target: &mut [u8],
) {
    let count = target.len() / stride;
    let (avx, avx2, sse2) = (v3.avx, v3.avx2, v3.sse2);
    let spread: __m256i = cast(SPREAD);
    let round = sse2._mm_set1_epi32(1 << (precision - 1));
    let zero: __m256i = avx._mm256_setzero_si256();
    let shift: __m128i = sse2._mm_cvtsi32_si128(precision as i32);
    for ((output, &(first, taps)), weights) in
        bounds.iter().enumerate().zip(pairs.values.chunks_exact(pairs.steps))
    {
        let from = (first - left) * 3;
        let mut high = [zero; 4];
        let mut low = [zero; 4];
        for (step, [weight_high, weight_low]) in
            weights.iter().enumerate().take(taps.div_ceil(TAPS))
        {
            let (weight_high, weight_low): (__m256i, __m256i) =
                (cast(*weight_high), cast(*weight_low));
            let at = from + step * TAPS * 3;
            for ((source, high), low) in sources.iter().zip(&mut high).zip(&mut low) {
                let Some(bytes) = source.get(at..).and_then(|rest| rest.first_chunk::<PAD>())
                else {
                    return;
                };
                let twice = avx2._mm256_broadcastsi128_si256(cast(*bytes));
                let pixels = avx2._mm256_shuffle_epi8(twice, spread);
                *high = avx2._mm256_add_epi32(*high, avx2._mm256_madd_epi16(pixels, weight_high));
                *low = avx2._mm256_add_epi32(*low, avx2._mm256_madd_epi16(pixels, weight_low));
            }
        }
        let sums: [__m128i; 4] = std::array::from_fn(|lane| {
            let high = avx2._mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[lane]);
            let halves = avx2._mm256_add_epi32(high, low[lane]);
            let upper = avx2._mm256_extracti128_si256::<1>(halves);
            let sum = sse2._mm_add_epi32(avx._mm256_castsi256_si128(halves), upper);
            sse2._mm_sra_epi32(sse2._mm_add_epi32(sum, round), shift)
        });
        let upper = sse2._mm_packs_epi32(sums[0], sums[1]);
        let lower = sse2._mm_packs_epi32(sums[2], sums[3]);
        let pixels: [[u8; 4]; 4] = cast(sse2._mm_packus_epi16(upper, lower));
        for (lane, pixel) in pixels.iter().enumerate().take(count) {
            let at = lane * stride + output * 3;
            if let Some(place) = target.get_mut(at..at + 4) {
                place.copy_from_slice(pixel);
            }
        }
    }
}
