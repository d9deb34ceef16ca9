//! [`Mixup`]: mixed images and their soft targets.

use aim_data::loader::{Batch, Images};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Beta, Distribution};

use crate::error::TrainError;

/// Mixing of a batch with itself in reverse order (Zhang et al., "mixup", 2018; timm's batch mode):
///
/// ```text
/// x_i = lambda x_i + (1 - lambda) x_(n-1-i)     lambda ~ Beta(alpha, alpha), one for the batch
/// t_i = lambda s(y_i) + (1 - lambda) s(y_(n-1-i))     s(y) = (1 - e) onehot(y) + e / classes
/// ```
///
/// with the label smoothing e. Bytes are rounded to the nearest. Lambda is a function of the seed and of the number of
/// the batch's first image in the run: it depends neither on workers nor on where a run was interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixup {
    beta: Option<Beta<f64>>,
    smoothing: f64,
    classes: usize,
    seed: u64,
}

impl Mixup {
    /// Mixing with that alpha (0 for none) and label smoothing.
    ///
    /// # Errors
    /// [`TrainError::BadSetting`] for an alpha that is no number above 0.
    pub fn new(alpha: f64, smoothing: f64, classes: usize, seed: u64) -> Result<Self, TrainError> {
        let beta = (alpha != 0.0).then(|| Beta::new(alpha, alpha)).transpose().map_err(|_| {
            let expected = "0, or above 0 such as 0.8".to_owned();
            TrainError::BadSetting { key: "mixup", value: alpha.to_string(), expected }
        })?;
        Ok(Self { beta, smoothing, classes, seed })
    }

    /// The share of an image itself in the batch that begins with image `first_sample` of the run.
    pub fn lambda(&self, first_sample: u64) -> f64 {
        let Some(beta) = &self.beta else { return 1.0 };
        let mut key = [0; 32];
        let words = [self.seed, first_sample, u64::from_le_bytes(*b"aim mix\0")];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        beta.sample(&mut ChaCha8Rng::from_seed(key))
    }

    /// Mixes a batch, all of whose images have labels, and writes its targets `[batch, classes]`.
    ///
    /// # Errors
    /// When a label is missing or not below the number of classes.
    pub fn apply(&self, batch: &mut Batch, targets: &mut Vec<f32>) -> Result<(), TrainError> {
        let lambda = self.lambda(batch.first_sample);
        if lambda != 1.0 {
            let rows = batch.len();
            match &mut batch.images {
                Images::U8(bytes) => {
                    mix(bytes, rows, lambda as f32, |value| value.round_ties_even() as u8)
                }
                Images::F32(values) => mix(values, rows, lambda as f32, |value| value),
                _ => return Err(TrainError::Internal("unknown kind of pixels")),
            }
        }
        targets.clear();
        targets.resize(batch.len() * self.classes, (self.smoothing / self.classes as f64) as f32);
        let on = 1.0 - self.smoothing;
        let last = batch.len().saturating_sub(1);
        for (i, row) in targets.chunks_exact_mut(self.classes).enumerate() {
            for (of, share) in [(i, lambda), (last - i, 1.0 - lambda)] {
                let label = batch.labels[of].map_or(usize::MAX, |label| label as usize);
                let Some(target) = row.get_mut(label) else {
                    return Err(TrainError::BadLabel {
                        found: batch.labels[of],
                        classes: self.classes,
                    });
                };
                *target += (on * share) as f32;
            }
        }
        Ok(())
    }
}

/// Mixes each of `rows` rows with the one as far from the other end.
fn mix<T: Copy + Into<f32>>(values: &mut [T], rows: usize, lambda: f32, round: impl Fn(f32) -> T) {
    let len = values.len() / rows.max(1);
    let (head, tail) = values.split_at_mut(rows / 2 * len);
    // With an odd number of rows the middle one would be mixed with itself.
    let tail = &mut tail[rows % 2 * len..];
    let other = 1.0 - lambda;
    for (a, b) in head.chunks_exact_mut(len.max(1)).zip(tail.chunks_exact_mut(len.max(1)).rev()) {
        for (a, b) in a.iter_mut().zip(b) {
            let (x, y): (f32, f32) = ((*a).into(), (*b).into());
            (*a, *b) = (round(lambda * x + other * y), round(lambda * y + other * x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(images: Images, labels: &[u32], first_sample: u64) -> Batch {
        let n = labels.len();
        Batch {
            images,
            labels: labels.iter().map(|&label| Some(label)).collect(),
            keys: vec![0; n],
            first_sample,
            ..Batch::default()
        }
    }

    #[test]
    fn images_and_targets_are_mixed_with_the_reversed_batch() {
        let mixup = Mixup::new(0.8, 0.1, 4, 7).unwrap();
        let lambda = mixup.lambda(64);
        assert!(lambda > 0.0 && lambda < 1.0);
        let values = vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
        let mut mixed = batch(Images::F32(values.clone()), &[0, 1, 2], 64);
        let mut targets = Vec::new();
        mixup.apply(&mut mixed, &mut targets).unwrap();
        let found = mixed.images.as_f32().unwrap();
        let l = lambda as f32;
        for row in 0..3 {
            for column in 0..2 {
                let (own, other) = (values[2 * row + column], values[2 * (2 - row) + column]);
                let expected = l * own + (1.0 - l) * other;
                assert!((found[2 * row + column] - expected).abs() < 1e-5, "{row} {column}");
            }
        }
        let e = 0.1 / 4.0;
        let expected = [0.9 * l + e, e, 0.9 * (1.0 - l) + e, e];
        for (found, expected) in targets.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{targets:?}");
        }
        // The middle image of an odd batch stays itself.
        assert!((targets[4 + 1] - (0.9 + e)).abs() < 1e-6, "{targets:?}");
        for row in targets.chunks_exact(4) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn bytes_are_rounded_and_no_mixing_touches_nothing() {
        let mixup = Mixup::new(0.8, 0.0, 2, 7).unwrap();
        let lambda = mixup.lambda(0) as f32;
        let mut mixed = batch(Images::U8(vec![255, 0]), &[0, 1], 0);
        let mut targets = Vec::new();
        mixup.apply(&mut mixed, &mut targets).unwrap();
        let expected = [255.0 * lambda, 255.0 * (1.0 - lambda)].map(|v| v.round_ties_even() as u8);
        assert_eq!(mixed.images.as_u8().unwrap(), expected);
        let none = Mixup::new(0.0, 0.0, 2, 7).unwrap();
        let mut same = batch(Images::U8(vec![255, 3]), &[0, 1], 0);
        none.apply(&mut same, &mut targets).unwrap();
        assert_eq!(
            (same.images.as_u8().unwrap(), &targets[..]),
            (&[255, 3][..], &[1.0, 0.0, 0.0, 1.0][..])
        );
        let error = none.apply(&mut batch(Images::U8(vec![0]), &[2], 0), &mut targets);
        assert!(error.unwrap_err().to_string().contains("label 2"));
    }

    #[test]
    fn shares_follow_the_beta_distribution_and_nothing_but_seed_and_place() {
        let mixup = Mixup::new(0.8, 0.1, 4, 7).unwrap();
        let shares: Vec<f64> = (0..4000).map(|i| mixup.lambda(64 * i)).collect();
        assert_eq!(shares[17], Mixup::new(0.8, 0.0, 9, 7).unwrap().lambda(64 * 17));
        assert_ne!(shares[17], Mixup::new(0.8, 0.1, 4, 8).unwrap().lambda(64 * 17));
        let mean = shares.iter().sum::<f64>() / 4000.0;
        let variance = shares.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 4000.0;
        // Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)) = 0.0962 for a = 0.8.
        assert!(
            (mean - 0.5).abs() < 0.02 && (variance - 0.0962).abs() < 0.005,
            "{mean} {variance}"
        );
    }
}
