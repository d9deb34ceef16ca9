//! Training on fresh crops: in each epoch the frozen trunk runs on other pixels of every image.

use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{Pass, Skipped};
use aim_data::source::Source;
use aim_kernels::attention_pool::Tokens;
use aim_model::features::FeatureExtractor;

use super::features::{ImageOptions, for_each_batch_of, push_labels};
use super::training::GridTrainer;
use crate::error::TrainError;
use crate::signals::Stop;

/// What goes into one training on fresh crops.
pub struct Augmented<'a> {
    /// Images to train on.
    pub source: &'a Arc<dyn Source>,
    /// How they are brought to the model; `batch_size` is the trunk's.
    pub options: &'a ImageOptions,
    /// What is done to their pixels.
    pub transform: Transform,
    /// Indices of images that are kept out of the training, ascending.
    pub held_out: &'a [u32],
    /// Passes over the images.
    pub epochs: usize,
    /// Images in an update.
    pub batch_size: usize,
    /// Decides order and pixels.
    pub seed: u64,
}

impl Augmented<'_> {
    /// Images that take part.
    fn images(&self) -> u64 {
        self.source.len().saturating_sub(self.held_out.len() as u64)
    }

    /// Images in an update: no more than there are.
    fn batch(&self) -> usize {
        self.batch_size.clamp(2, (self.images() as usize).max(2))
    }

    /// Updates of the whole training, as far as no image is skipped.
    pub fn updates(&self) -> u64 {
        self.images() / self.batch() as u64 * self.epochs as u64
    }

    /// Trains several grids at once on the same features: the mean of the extractor's layers. `progress` gets the
    /// epochs done and the last one's mean loss of the first grid's best point.
    ///
    /// # Errors
    /// When there are too few images, the data are too bad, no point of a grid has a finite loss, or a stop is
    /// requested.
    pub fn train(
        &self,
        extractor: &mut FeatureExtractor,
        grids: &mut [GridTrainer],
        stop: &Stop,
        progress: &mut dyn FnMut(f64, f64),
        skipped: &mut dyn FnMut(&Skipped),
    ) -> Result<(), TrainError> {
        if self.images() < 2 {
            return Err(TrainError::TooFewImages { found: self.images() as usize, expected: 2 });
        }
        let batch_size = self.batch();
        let mut features: Vec<f32> = Vec::new();
        let (mut labels, mut average) = (Vec::new(), Vec::new());
        for epoch in 0..self.epochs {
            // What is left of an epoch is less than a batch and is left out, other images in each.
            features.clear();
            labels.clear();
            let (mut sum, mut updates) = (0.0, 0_u32);
            let seed = epoch_seed(self.seed, epoch as u64);
            let pass = Pass { limit: None, shuffle_seed: Some(seed), augment_seed: seed };
            let mut position = |done: u64, all: u64| {
                progress(epoch as f64 + done as f64 / all.max(1) as f64, f64::NAN);
            };
            let (options, transform) = (self.options, self.transform);
            for_each_batch_of(
                self.source,
                options,
                transform,
                pass,
                &mut position,
                skipped,
                |batch, kind, pixels| {
                    stop.check()?;
                    extractor.run(kind, pixels)?;
                    extractor.average(&mut average)?;
                    let stride = average.len() / batch.len().max(1);
                    let mut all = Vec::new();
                    push_labels(&mut all, batch, self.source.as_ref())?;
                    for (image, label) in all.into_iter().enumerate() {
                        if self.held_out.binary_search(&(batch.indices[image] as u32)).is_ok() {
                            continue;
                        }
                        features.extend_from_slice(&average[image * stride..][..stride]);
                        labels.push(label);
                        if labels.len() == batch_size {
                            let slices: Vec<&[f32]> = features.chunks_exact(stride).collect();
                            for (i, grid) in grids.iter_mut().enumerate() {
                                let loss = grid.step(Tokens::F32(&slices), &labels)?;
                                if i == 0 {
                                    sum += loss;
                                    updates += 1;
                                }
                            }
                            features.clear();
                            labels.clear();
                        }
                    }
                    Ok(())
                },
            )?;
            progress((epoch + 1) as f64, sum / f64::from(updates.max(1)));
        }
        Ok(())
    }
}

/// Another seed for each epoch, and none that another seed's epochs have.
fn epoch_seed(seed: u64, epoch: u64) -> u64 {
    let hash = blake3::hash(&[seed.to_le_bytes(), epoch.to_le_bytes()].concat());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}
