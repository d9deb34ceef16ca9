//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A value is a pure function of a key and a counter, so that drawing needs no state and no order: parameter `name`,
//! step, slot and element number *are* the state.

/// A key for a family of independent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// A generator for `seed` and the purpose `stream`; different purposes are independent.
    pub fn new(seed: u64, stream: &str) -> Self {
        // FNV-1a over the stream's name, mixed with the seed by one Philox round trip.
        let hash = stream.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let seeded = Self { key: split(seed) };
        let [a, b, _, _] = seeded.block([split(hash)[0], split(hash)[1], 0, 0]);
        Self { key: [a, b] }
    }

    /// Four words for a 128-bit counter.
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let [mut x0, mut x1, mut x2, mut x3] = counter;
        let [mut k0, mut k1] = self.key;
        for _ in 0..10 {
            let (h0, l0) = wide(0xd251_1f53, x0);
            let (h1, l1) = wide(0xcd9e_8d57, x2);
            (x0, x1, x2, x3) = (h1 ^ x1 ^ k0, l1, h0 ^ x3 ^ k1, l0);
            k0 = k0.wrapping_add(0x9e37_79b9);
            k1 = k1.wrapping_add(0xbb67_ae85);
        }
        [x0, x1, x2, x3]
    }

    /// A word for two 64-bit counters.
    pub fn u64(&self, a: u64, b: u64) -> u64 {
        let ([a0, a1], [b0, b1]) = (split(a), split(b));
        let [x, y, _, _] = self.block([a0, a1, b0, b1]);
        u64::from(y) << 32 | u64::from(x)
    }

    /// Uniform in `0..n` for `n >= 1`; the bias of at most `n / 2^64` is below anything measurable.
    pub fn below(&self, n: u64, a: u64, b: u64) -> u64 {
        ((u128::from(self.u64(a, b)) * u128::from(n)) >> 64) as u64
    }

    /// Fills `out` with values uniform in `[-bound, bound)`.
    pub fn fill_uniform(&self, bound: f32, out: &mut [f32]) {
        for (block, out) in out.chunks_mut(4).enumerate() {
            let words = self.block([split(block as u64)[0], split(block as u64)[1], 0, 0]);
            for (out, word) in out.iter_mut().zip(words) {
                *out = bound * (unit(word) * 2.0 - 1.0);
            }
        }
    }

    /// Fills `out` with normal values of standard deviation `std` (Box-Muller).
    pub fn fill_normal(&self, std: f32, out: &mut [f32]) {
        for (block, out) in out.chunks_mut(4).enumerate() {
            let [a, b, c, d] = self.block([split(block as u64)[0], split(block as u64)[1], 0, 0]);
            let (x, y) = normal_pair(a, b);
            let (z, w) = normal_pair(c, d);
            for (out, value) in out.iter_mut().zip([x, y, z, w]) {
                *out = std * value;
            }
        }
    }
}

fn split(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

fn wide(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// Uniform in `[0, 1)`, with the 24 bits that an f32 holds.
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

fn normal_pair(a: u32, b: u32) -> (f32, f32) {
    // 1 - u is in (0, 1]: its logarithm is finite.
    let radius = (-2.0 * (1.0 - f64::from(unit(a))).ln()).sqrt();
    let angle = std::f64::consts::TAU * f64::from(unit(b));
    ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        // Known-answer vectors of Random123 (kat_vectors, philox4x32 with 10 rounds).
        let zero = Philox { key: [0, 0] };
        assert_eq!(zero.block([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox { key: [u32::MAX; 2] };
        assert_eq!(ones.block([u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn moments_are_right() {
        let mut x = vec![0.0; 40_000];
        Philox::new(1, "normal").fill_normal(2.0, &mut x);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.1, "{mean} {variance}");
        Philox::new(1, "uniform").fill_uniform(3.0, &mut x);
        let variance = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!((variance - 3.0).abs() < 0.1 && x.iter().all(|v| v.abs() <= 3.0), "{variance}");
    }
}
