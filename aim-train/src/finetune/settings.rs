//! [`FinetuneSettings`]: what a run is made with.

use aim_data::augment::{RandomResizedCrop, TrainTransform, Transform};
use serde::{Deserialize, Serialize};

use crate::config::Recompute;
use crate::error::{Difference, TrainError};

/// What is done to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Nothing: as in evaluation.
    None,
    /// Crops of 60 to 100 % of the area and flips: for small sets of small images, which the paper's crops cut up.
    #[default]
    Light,
    /// The paper's recipe for classifiers: crops of 8 to 100 % of the area, flips, colours changed by up to
    /// 30 %, RandAugment.
    Paper,
}

impl Augment {
    /// The transform, of images that are normalised with `mean`.
    pub fn transform(self, mean: [f64; 3]) -> Transform {
        match self {
            Self::None => Transform::eval(),
            Self::Light => Transform::Train(TrainTransform {
                crop: RandomResizedCrop { scale: (0.6, 1.0), ..RandomResizedCrop::default() },
                ..TrainTransform::default()
            }),
            Self::Paper => Transform::probe_train(mean),
        }
    }
}

/// What a run is made with. Where the paper's recipe does not depend on the set, defaults are its; the number of epochs
/// (100 there), the learning rate (a grid there) and the crops are for tens of thousands of small images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneSettings {
    /// Passes over the training images.
    pub epochs: u32,
    /// Images in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an update.
    pub accumulate: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Last learning rate of the half cosine.
    pub min_lr: f64,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// Decoupled weight decay of matrices, adapters included.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Mixup's alpha: images are mixed in shares drawn from Beta(alpha, alpha); 0 mixes nothing.
    pub mixup: f64,
    /// Share of the target spread evenly over all classes.
    pub label_smoothing: f64,
    /// What is done to training images.
    pub augment: Augment,
    /// Decides initial values, order, augmentation and mixing.
    pub seed: u64,
    /// Steps between checkpoints; 0 for the ends of epochs only.
    pub checkpoint_steps: u64,
    /// Threads that load and augment images; 0 for one a core.
    pub workers: usize,
    /// What the backward pass makes again instead of keeping; on a GPU as little as its memory allows if it is `Auto`.
    pub recompute: Recompute,
}

impl Default for FinetuneSettings {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 128,
            accumulate: 1,
            lr: 1e-3,
            min_lr: 1e-5,
            warmup_epochs: 0.5,
            weight_decay: 0.1,
            clip: 3.0,
            mixup: 0.8,
            label_smoothing: 0.1,
            augment: Augment::default(),
            seed: 0,
            checkpoint_steps: 0,
            workers: 0,
            recompute: Recompute::Auto,
        }
    }
}

impl FinetuneSettings {
    /// Images in one update.
    pub fn images_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    /// What the backward pass makes again; `None` where the device decides.
    pub fn recomputation(&self) -> Option<aim_tensor::Recompute> {
        match self.recompute {
            Recompute::Auto => None,
            Recompute::None => Some(aim_tensor::Recompute::None),
            Recompute::Norms => Some(aim_tensor::Recompute::Norms),
            Recompute::NormsGelu => Some(aim_tensor::Recompute::NormsGelu),
            Recompute::Block => Some(aim_tensor::Recompute::Block),
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`TrainError::BadSetting`] with what would work.
    pub fn validate(&self) -> Result<(), TrainError> {
        let whole = [
            ("epochs", u64::from(self.epochs), 1_000_000),
            ("batch-size", self.batch_size as u64, 1 << 20),
            ("accumulate", self.accumulate as u64, 1 << 20),
        ];
        for (key, value, most) in whole {
            if value == 0 || value > most {
                let expected = format!("from 1 to {most}");
                return Err(TrainError::BadSetting { key, value: value.to_string(), expected });
            }
        }
        for (key, value, least, most, example) in [
            ("lr", self.lr, f64::MIN_POSITIVE, 10.0, "1e-3"),
            ("min-lr", self.min_lr, 0.0, self.lr, "1e-5"),
            ("warmup-epochs", self.warmup_epochs, 0.0, f64::from(self.epochs), "0.5"),
            ("weight-decay", self.weight_decay, 0.0, 10.0, "0.1"),
            ("clip", self.clip, f64::MIN_POSITIVE, 1e12, "3"),
            ("mixup", self.mixup, 0.0, 100.0, "0.8"),
            ("label-smoothing", self.label_smoothing, 0.0, 0.999, "0.1"),
        ] {
            if !(least..=most).contains(&value) {
                let expected = if least == 0.0 {
                    format!("from 0 to {most}, such as {example}")
                } else {
                    format!("above 0 and at most {most}, such as {example}")
                };
                return Err(TrainError::BadSetting { key, value: value.to_string(), expected });
            }
        }
        if self.batch_size < 2 {
            // The classifier's batch norm has no statistics of a single token of a single image.
            let (key, value) = ("batch-size", self.batch_size.to_string());
            return Err(TrainError::BadSetting { key, value, expected: "at least 2".into() });
        }
        Ok(())
    }

    /// Where `current` would not continue a run that was made with these; workers, recomputation and the pace of
    /// checkpoints change nothing in it.
    pub(super) fn differences(&self, current: &Self) -> Result<Vec<Difference>, TrainError> {
        let table = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(table)) => Ok(table),
            _ => Err(TrainError::Internal("settings have no JSON form")),
        };
        let (saved, current) = (table(self)?, table(current)?);
        let free = ["workers", "recompute", "checkpoint_steps"];
        Ok(saved
            .iter()
            .filter(|(key, value)| {
                !free.contains(&key.as_str()) && current.get(*key) != Some(value)
            })
            .map(|(key, value)| Difference {
                key: key.clone(),
                saved: value.to_string(),
                current: current.get(key).map_or_else(String::new, ToString::to_string),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_named() {
        let good = FinetuneSettings::default();
        good.validate().unwrap();
        for (bad, key) in [
            (FinetuneSettings { epochs: 0, ..good.clone() }, "epochs"),
            (FinetuneSettings { batch_size: 1, ..good.clone() }, "batch-size"),
            (FinetuneSettings { lr: f64::NAN, ..good.clone() }, "lr"),
            (FinetuneSettings { lr: 0.0, ..good.clone() }, "lr"),
            (FinetuneSettings { min_lr: 1.0, ..good.clone() }, "min-lr"),
            (FinetuneSettings { mixup: -1.0, ..good.clone() }, "mixup"),
            (FinetuneSettings { label_smoothing: 1.0, ..good.clone() }, "label-smoothing"),
            (FinetuneSettings { warmup_epochs: 11.0, ..good.clone() }, "warmup-epochs"),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
    }

    #[test]
    fn only_what_changes_the_result_must_stay() {
        let saved = FinetuneSettings::default();
        let free = FinetuneSettings {
            workers: 7,
            checkpoint_steps: 3,
            recompute: Recompute::Block,
            ..saved.clone()
        };
        assert!(saved.differences(&free).unwrap().is_empty());
        let other = FinetuneSettings { lr: 2e-3, augment: Augment::None, ..saved.clone() };
        let keys: Vec<_> = saved.differences(&other).unwrap().into_iter().map(|d| d.key).collect();
        assert_eq!(keys, ["lr", "augment"]);
    }
}
