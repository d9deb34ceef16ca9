//! [`Mixup`]: which images of a batch are mixed, and how much.

use crate::error::{Error, Result};
use crate::random::{AugmentKey, Purpose, Rng};

/// Mixing the images of a batch in pairs (Zhang et al., 2018), one share for the whole batch as
/// timm's `mode='batch'`.
///
/// This draws the numbers; images and targets `x` become `lambda x + (1 - lambda) x[partners]`
/// wherever the tensors are. Draws are a pure function of (seed, step, part): a resumed run mixes
/// as an uninterrupted one.
///
/// ```
/// use aim_data::augment::Mixup;
///
/// let mixup = Mixup { alpha: 0.8, ..Mixup::default() };
/// let draw = mixup.draw(42, 1000, 0, 4)?;
/// assert_eq!(draw.partners, [3, 2, 1, 0]);
/// assert_eq!(draw, mixup.draw(42, 1000, 0, 4)?);
/// # Ok::<(), aim_data::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixup {
    /// Both parameters of the beta distribution that `lambda` is drawn from; 0 mixes nothing. 0.8
    /// is usual where vision transformers are fine-tuned.
    pub alpha: f64,
    /// Probability that a batch is mixed at all.
    pub probability: f64,
    /// Who is mixed with whom.
    pub partners: Partners,
}

/// Who is mixed with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Partners {
    /// The first with the last and so on, as timm: batches are in random order anyway. The image in
    /// the middle of an odd batch stays itself.
    #[default]
    Reversed,
    /// A random permutation of the batch, as the paper's code.
    Shuffled,
}

/// What was drawn for a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct MixupDraw {
    /// Share of the image itself, 0 to 1; 1 where nothing is mixed.
    pub lambda: f64,
    /// For each image the index of the one that it is mixed with.
    pub partners: Vec<u32>,
}

impl Default for Mixup {
    /// Alpha 1 in every batch, partners reversed.
    fn default() -> Self {
        Self { alpha: 1.0, probability: 1.0, partners: Partners::Reversed }
    }
}

/// Largest alpha: beyond it every `lambda` is one half.
const MAX_ALPHA: f64 = 1e4;
/// Largest batch.
const MAX_BATCH: usize = 1 << 24;

impl Mixup {
    /// The numbers for a batch of `batch_size` images: of step `step` under `seed`, and of its part
    /// `part` where a step has several (micro-batches, counted over all ranks).
    ///
    /// # Errors
    /// [`Error::Config`] for an alpha outside 0 to 10,000, a probability outside 0 to 1 or a batch
    /// of more than 16,777,216.
    pub fn draw(&self, seed: u64, step: u64, part: u64, batch_size: usize) -> Result<MixupDraw> {
        let Self { alpha, probability, partners } = *self;
        if !(0.0..=MAX_ALPHA).contains(&alpha) {
            let text = format!("mixup's alpha is {alpha}, expected 0 (off) to {MAX_ALPHA}");
            return Err(Error::Config(text));
        }
        if !(0.0..=1.0).contains(&probability) {
            let text = format!("mixup's probability is {probability}, expected 0 to 1");
            return Err(Error::Config(text));
        }
        if batch_size > MAX_BATCH {
            let text = format!("mixup of a batch of {batch_size}, expected at most {MAX_BATCH}");
            return Err(Error::Config(text));
        }
        let key = AugmentKey { seed, epoch: step, index: part, ..AugmentKey::default() };
        let mut rng = Rng::new(Purpose::Mixup, key);
        let mixed = rng.unit() < probability && alpha > 0.0;
        let lambda = if mixed { beta(alpha, &mut rng) } else { 1.0 };
        let mut order: Vec<u32> = (0..batch_size as u32).rev().collect();
        if partners == Partners::Shuffled {
            for at in (1..batch_size).rev() {
                order.swap(at, rng.below(at as u32 + 1) as usize);
            }
        }
        Ok(MixupDraw { lambda, partners: order })
    }
}

/// Beta(alpha, alpha) as the share of one gamma variable in the sum of two. By logarithms, since
/// for a small alpha both are often below the smallest `f64`.
fn beta(alpha: f64, rng: &mut Rng) -> f64 {
    let (first, second) = (ln_gamma(alpha, rng), ln_gamma(alpha, rng));
    1.0 / (1.0 + (second - first).exp())
}

/// The logarithm of a Gamma(alpha, 1) variable by Marsaglia and Tsang's method (2000): a cube of a
/// shifted normal number, taken or drawn again; below 1 one of alpha + 1 times `u^(1 / alpha)`.
fn ln_gamma(alpha: f64, rng: &mut Rng) -> f64 {
    if alpha < 1.0 {
        let boost = (1.0 - rng.unit()).ln() / alpha;
        return ln_gamma(alpha + 1.0, rng) + boost;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    // More than 95 % are taken, so that so many refusals in a row do not happen.
    for _ in 0..1000 {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        let ln_u = (1.0 - rng.unit()).ln();
        if v > 0.0 && ln_u < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln();
        }
    }
    d.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lambdas(alpha: f64) -> Vec<f64> {
        let mixup = Mixup { alpha, ..Mixup::default() };
        let mut all: Vec<f64> =
            (0..20_000).map(|step| mixup.draw(7, step, 0, 2).unwrap().lambda).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// Largest distance from a distribution function (Kolmogorov and Smirnov's measure): 0.0115 is
    /// passed once in a hundred for 20,000 values.
    fn distance(sorted: &[f64], cdf: impl Fn(f64) -> f64) -> f64 {
        let n = sorted.len() as f64;
        let at = |(i, &x): (usize, &f64)| {
            (cdf(x) - i as f64 / n).abs().max((cdf(x) - (i + 1) as f64 / n).abs())
        };
        sorted.iter().enumerate().map(at).fold(0.0, f64::max)
    }

    #[test]
    fn lambda_is_beta_distributed() {
        // Those with a simple distribution function.
        assert!(distance(&lambdas(1.0), |x| x) < 0.0115);
        let arcsine = |x: f64| x.sqrt().asin() * std::f64::consts::FRAC_2_PI;
        assert!(distance(&lambdas(0.5), arcsine) < 0.0115);
        assert!(distance(&lambdas(2.0), |x| x * x * (3.0 - 2.0 * x)) < 0.0115);
        for alpha in [0.01, 0.2, 0.8, 30.0] {
            let all = lambdas(alpha);
            let mean = all.iter().sum::<f64>() / 20_000.0;
            let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
            let expected = 0.25 / (2.0 * alpha + 1.0);
            assert!((mean - 0.5).abs() < 0.02, "{alpha}: {mean}");
            assert!((variance / expected - 1.0).abs() < 0.04, "{alpha}: {variance} {expected}");
            assert!(all.iter().all(|x| (0.0..=1.0).contains(x)));
        }
    }

    #[test]
    fn tiny_and_huge_alphas_are_no_trouble() {
        for alpha in [1e-300, 1e-9, 1e4] {
            let all = lambdas(alpha);
            assert!(all.iter().all(|x| (0.0..=1.0).contains(x)), "{alpha}");
            let low = all.iter().filter(|x| **x < 0.5).count();
            assert!((9700..10_300).contains(&low), "{alpha}: {low}");
        }
    }

    #[test]
    fn every_batch_has_numbers_of_its_own_and_partners_are_permutations() {
        let mixup = Mixup { alpha: 0.8, partners: Partners::Shuffled, ..Mixup::default() };
        let draw = |seed, step, part| mixup.draw(seed, step, part, 9).unwrap();
        let one = draw(1, 2, 3);
        assert_eq!(one, draw(1, 2, 3));
        for other in [draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)] {
            assert!(one.lambda != other.lambda && one.partners != other.partners);
        }
        let mut sorted = one.partners;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..9).collect::<Vec<_>>());
        let mut places = [0; 5];
        for step in 0..2000 {
            places[mixup.draw(3, step, 0, 5).unwrap().partners[0] as usize] += 1;
        }
        assert!(places.iter().all(|count| (320..480).contains(count)), "{places:?}");
        assert!(Mixup::default().draw(0, 0, 0, 0).unwrap().partners.is_empty());
    }

    #[test]
    fn batches_can_be_left_alone_and_nonsense_is_refused() {
        let half = Mixup { probability: 0.5, ..Mixup::default() };
        let alone = (0..2000).filter(|&step| half.draw(0, step, 0, 2).unwrap().lambda == 1.0);
        assert!((900..1100).contains(&alone.count()));
        let off = Mixup { alpha: 0.0, ..Mixup::default() };
        assert_eq!(off.draw(0, 0, 0, 2).unwrap().lambda, 1.0);
        for bad in [
            Mixup { alpha: -0.1, ..half },
            Mixup { alpha: f64::NAN, ..half },
            Mixup { alpha: f64::INFINITY, ..half },
            Mixup { probability: 1.1, ..half },
        ] {
            assert!(bad.draw(0, 0, 0, 2).is_err(), "{bad:?}");
        }
        assert!(half.draw(0, 0, 0, usize::MAX).is_err());
    }
}
