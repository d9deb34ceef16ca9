//! [`RandAugment`].

mod op;
mod policy;

use super::AugmentKey;
use super::affine::Interpolation;
use crate::error::{Error, Result};
use crate::random::{Purpose, Rng};
use op::{Kind, Scratch};

pub use policy::POLICY_FORMS;

/// A few changes of each image, drawn from a set of fifteen.
///
/// timm's definition of RandAugment (Cubuk et al., 2019), named by the same strings, such as
/// `rand-m9-mstd0.5-inc1` (see [`POLICY_FORMS`]): `layers` changes are drawn from the set, each is
/// made with a probability of its own, as strongly as a magnitude says that is normal about
/// `magnitude` and cut off at 0 and `magnitude_max`; turns, shears, shifts and changes of colour go
/// either way with probability 1/2. Pixels are Pillow's, to the byte.
///
/// ```
/// use aim_data::augment::RandAugment;
///
/// let policy: RandAugment = "rand-m9-mstd0.5-inc1".parse()?;
/// assert_eq!((policy.magnitude, policy.layers, policy.probability), (9.0, 2, 0.5));
/// assert!("rand-x3".parse::<RandAugment>().is_err());
/// # Ok::<(), aim_data::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandAugment {
    /// Mean strength of a change, on a scale of 0 to 10; 10 unless given.
    pub magnitude: f64,
    /// Standard deviation of the strength; infinite for strengths uniform from 0 to `magnitude`; 0
    /// unless given.
    pub magnitude_std: f64,
    /// Largest strength, 10 unless given.
    pub magnitude_max: f64,
    /// Changes drawn for each image, 2 unless given.
    pub layers: u32,
    /// Probability of making each of them, 0.5 unless given.
    pub probability: f64,
    /// What is drawn from.
    pub set: OpSet,
    /// Colour of what a turn, shear or shift uncovers: timm's is the mean of the normalisation.
    pub fill: [u8; 3],
    /// Filter of turns, shears and shifts.
    pub interpolation: Interpolation,
}

/// What [`RandAugment`] draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OpSet {
    /// The fifteen changes with equal shares; posterising and solarising are weaker, and colour,
    /// contrast, brightness and sharpness go from less to more, as the magnitude grows.
    #[default]
    Usual,
    /// The same (`inc1`), each stronger as the magnitude grows.
    Increasing,
    /// Those of `inc1` with the shares of `tweights`, no change twice in an image.
    Weighted,
}

/// Most changes of one image.
const MAX_LAYERS: u32 = 15;
/// Largest magnitude, and deviation that is not infinite.
const MAX_MAGNITUDE: f64 = 100.0;

impl Default for RandAugment {
    /// timm's `rand`: magnitude 10, 2 layers, probability 0.5, filled with gray, bicubic.
    fn default() -> Self {
        Self {
            magnitude: 10.0,
            magnitude_std: 0.0,
            magnitude_max: 10.0,
            layers: 2,
            probability: 0.5,
            set: OpSet::Usual,
            fill: [128; 3],
            interpolation: Interpolation::Bicubic,
        }
    }
}

impl RandAugment {
    /// `rand-m9-mstd0.5-inc1`, the policy of AIM's attentive probes (paper, appendix on hyperparameters), for images
    /// normalised with `mean`.
    #[must_use]
    pub fn probe(mean: [f64; 3]) -> Self {
        Self { magnitude: 9.0, magnitude_std: 0.5, set: OpSet::Increasing, ..Self::default() }
            .with_mean(mean)
    }

    /// The same, filling with a mean colour that is given on a scale of 0 to 1.
    #[must_use]
    pub fn with_mean(self, mean: [f64; 3]) -> Self {
        // Conversion saturates; Python's round takes halves to the even neighbour.
        Self { fill: mean.map(|mean| (255.0 * mean).round_ties_even() as u8), ..self }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |what: String, expected: &str| {
            Err(Error::Config(format!("RandAugment: {what}, expected {expected}")))
        };
        if !(0.0..=MAX_MAGNITUDE).contains(&self.magnitude) {
            return refuse(format!("magnitude m{}", self.magnitude), "0 to 100");
        }
        let std = self.magnitude_std;
        if !(0.0..=MAX_MAGNITUDE).contains(&std) && std != f64::INFINITY {
            return refuse(format!("deviation mstd{std}"), "0 to 100, or inf");
        }
        if !(1.0..=MAX_MAGNITUDE).contains(&self.magnitude_max) {
            return refuse(format!("largest magnitude mmax{}", self.magnitude_max), "1 to 100");
        }
        if !(1..=MAX_LAYERS).contains(&self.layers) {
            return refuse(format!("n{} layers", self.layers), "1 to 15");
        }
        if !(0.0..=1.0).contains(&self.probability) {
            return refuse(format!("probability p{}", self.probability), "0 to 1");
        }
        Ok(())
    }

    /// Changes an RGB image `[height, width, 3]`.
    pub(super) fn apply(
        &self,
        pixels: &mut [u8],
        width: usize,
        key: AugmentKey,
        scratch: &mut Scratch,
    ) {
        let mut rng = Rng::new(Purpose::RandAugment, key);
        for kind in self.choose(&mut rng).into_iter().flatten() {
            if rng.unit() >= self.probability {
                continue;
            }
            let level = self.level(&mut rng);
            let op = kind.op(level, self.set != OpSet::Usual, rng.unit() < 0.5);
            let filter = op::filter(self.interpolation, &mut rng);
            op.apply(pixels, width, filter, self.fill, scratch);
        }
    }

    /// Draws the kinds of the layers.
    fn choose(&self, rng: &mut Rng) -> [Option<Kind>; MAX_LAYERS as usize] {
        let mut chosen = [None; MAX_LAYERS as usize];
        let mut shares = Kind::WEIGHTS;
        for chosen in chosen.iter_mut().take(self.layers as usize) {
            *chosen = if self.set == OpSet::Weighted {
                draw_without_replacement(&mut shares, rng).map(|at| Kind::ALL[at])
            } else {
                Some(Kind::ALL[rng.below(Kind::ALL.len() as u32) as usize])
            };
        }
        chosen
    }

    fn level(&self, rng: &mut Rng) -> f64 {
        let level = if self.magnitude_std == f64::INFINITY {
            rng.uniform(0.0, self.magnitude)
        } else {
            self.magnitude + self.magnitude_std * rng.normal()
        };
        level.clamp(0.0, self.magnitude_max)
    }
}

/// Draws a place by its share and takes its share away.
fn draw_without_replacement(shares: &mut [f64], rng: &mut Rng) -> Option<usize> {
    let mut left = rng.unit() * shares.iter().sum::<f64>();
    let mut last = None;
    for (at, &share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        last = Some(at);
        left -= share;
        if left < 0.0 {
            break;
        }
    }
    // Rounding may leave a rest after the last one.
    last.inspect(|&at| shares[at] = 0.0)
}

pub(super) use op::Scratch as RandAugmentScratch;

#[cfg(test)]
mod tests;
