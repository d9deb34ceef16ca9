//! One training step as the trainer makes it, on synthetic images: gradients set to zero, forward, backward, clipping
//! and AdamW. Decoding and augmentation run beside a step and are left out.

use std::sync::Arc;

use aim_model::init::initialize;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::{AimConfig, ModelError};
use aim_tensor::count::Flops;
use aim_tensor::{Parameters, Philox, PlanOptions};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};

use crate::sizes::Size;

/// Which rows of the trunk's output predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As in pre-training: uniform prefixes, paired, so that half the rows are scored and the head runs on those, and
    /// attention skips what the prefix masks.
    Scored,
    /// Nothing is skipped: every token predicts, and attention sees every token. For comparison with programs that
    /// compute everything and mask afterwards.
    All,
}

impl Rows {
    /// The second part of a case's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scored => "scored_rows",
            Self::All => "all_rows",
        }
    }

    fn selection(self, batch: usize, tokens: usize) -> Selection {
        match self {
            Self::Scored => {
                let mut prefix = Vec::with_capacity(batch);
                PrefixSampler::new(PrefixRule::Uniform, tokens, 0).draw(0, 0..batch, &mut prefix);
                Selection::next_patch(&prefix, tokens)
            }
            Self::All => {
                let positions =
                    || (0..batch).flat_map(|image| (0..tokens).map(move |k| (image * tokens, k)));
                Selection {
                    prefix: vec![tokens as i32; batch],
                    rows: positions().map(|(first, k)| (first + k) as i32).collect(),
                    // The last token has no next patch; it is scored against itself to cost what the others do.
                    targets: positions()
                        .map(|(first, k)| (first + (k + 1).min(tokens - 1)) as i32)
                        .collect(),
                }
            }
        }
    }
}

/// A model, its optimizer and a batch of noise.
pub struct TrainingStep {
    step: PretrainStep,
    params: Parameters,
    optimizer: AdamW,
    pixels: Vec<u8>,
    selection: Selection,
    updates: u64,
}

impl TrainingStep {
    /// A step of `batch` images without recomputation.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(size: &Size, batch: usize, rows: Rows) -> Result<Self, ModelError> {
        let config = AimConfig::preset(size.preset)?;
        let model = PretrainModel::new(&config, Target::NormalizedPixels)?;
        let mut params = Parameters::new(Arc::clone(model.layout()))?;
        initialize(&mut params, 0);
        let selection = rows.selection(batch, config.num_patches());
        let options = PlanOptions { backward: true, ..PlanOptions::default() };
        let step =
            PretrainStep::new(&model, model.image_batch(batch), selection.rows.len(), options)?;
        let random = Philox::new(0, "benchmark pixels");
        let values = batch * 3 * config.img_size.height * config.img_size.width;
        let pixels = (0..values as u64).map(|i| random.below(256, 0, i) as u8).collect();
        let optimizer = AdamW::new(model.layout())?;
        Ok(Self { step, params, optimizer, pixels, selection, updates: 0 })
    }

    /// Makes one step and returns the mean loss before its update.
    ///
    /// # Errors
    /// None: sizes were fixed when the step was made.
    pub fn run(&mut self) -> Result<f64, ModelError> {
        let scored = self.selection.rows.len() as f64;
        self.params.zero_grads()?;
        let loss = self.step.forward(&self.params, Pixels::U8(&self.pixels), &self.selection)?;
        self.step.backward(&mut self.params, (1.0 / scored) as f32)?;
        let norm = grad_norm(&self.params)?;
        self.updates += 1;
        let update = Update {
            lr: 1e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            step: self.updates,
            grad_scale: clip_scale(norm, 1.0),
        };
        self.optimizer.step(&mut self.params, update)?;
        Ok(loss / scored)
    }

    /// FLOPs of one step, forward and backward, the masked part of attention included.
    pub fn flops(&self) -> u64 {
        let Flops { forward, backward } = aim_tensor::count::flops(self.step.session().tape());
        forward + backward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_rows_are_scored_or_all_of_them() {
        assert_eq!(Rows::Scored.selection(4, 8).rows.len(), 16);
        let all = Rows::All.selection(2, 3);
        assert_eq!(all.rows, [0, 1, 2, 3, 4, 5]);
        assert_eq!(all.targets, [1, 2, 2, 4, 5, 5]);
        assert_eq!(all.prefix, [3, 3]);
    }
}
