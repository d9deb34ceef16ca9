//! The shapes of a training step, and a training step on a GPU.

use std::sync::Arc;

use aim_kernels::cuda::timing::Sizes;
use aim_kernels::cuda::{Gpu, gemm};
use aim_model::init::initialize;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::{AimConfig, ModelError};
use aim_tensor::{Device, Parameters, Philox, PlanOptions, TensorError};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};

use crate::sizes::Size;

/// Width 1536, 24 blocks, 12 heads of 128, patches of 14 x 14 in 224 x 224 images, a head of 12 blocks of width 2048.
pub const AIM_600M: Size = Size { name: "600M", preset: "aim-600M", batch: 64 };

/// Opens the first GPU; matrix products choose their algorithms by measurement.
///
/// # Errors
/// What is missing.
pub fn open() -> Result<(Device, Arc<Gpu>), TensorError> {
    let gpu = Gpu::open(0)?;
    gemm::tune(&gpu, true);
    Ok((Device::Cuda(Arc::clone(&gpu)), gpu))
}

/// Prefixes and predicting rows of a batch as in pre-training: half the patches are scored.
fn selection(size: &Size, tokens: usize) -> Selection {
    let mut prefix = Vec::with_capacity(size.batch);
    PrefixSampler::new(PrefixRule::Uniform, tokens, 0).draw(0, 0..size.batch, &mut prefix);
    Selection::next_patch(&prefix, tokens)
}

/// The shapes of a step.
///
/// # Errors
/// When there is no such preset.
pub fn shapes(size: &Size) -> Result<Sizes, ModelError> {
    let config = AimConfig::preset(size.preset)?;
    let Selection { prefix, rows, targets } = selection(size, config.num_patches());
    Ok(Sizes {
        images: size.batch,
        side: config.img_size.height,
        patch: config.patch_size,
        dim: config.embed_dim,
        heads: config.num_heads,
        head_width: config.head_width,
        mlp_ratio: config.mlp_ratio,
        prefix,
        rows,
        targets,
    })
}

/// A model on a GPU, its optimizer and a batch of noise: one training step as the trainer makes it, data loading left
/// out.
pub struct GpuStep {
    step: PretrainStep,
    params: Parameters,
    optimizer: AdamW,
    pixels: Vec<u8>,
    selection: Selection,
    updates: u64,
}

impl GpuStep {
    /// A step without recomputation.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(device: &Device, size: &Size) -> Result<Self, ModelError> {
        let config = AimConfig::preset(size.preset)?;
        let model = PretrainModel::new(&config, Target::NormalizedPixels)?;
        let mut params = Parameters::new(Arc::clone(model.layout()))?;
        initialize(&mut params, 0);
        let params = params.to(device)?;
        let optimizer = AdamW::new(model.layout())?.to(&params)?;
        let selection = selection(size, config.num_patches());
        let options = PlanOptions { backward: true, ..PlanOptions::default() };
        let images = model.image_batch(size.batch);
        let step = PretrainStep::on(device, &model, images, selection.rows.len(), options)?;
        let random = Philox::new(0, "benchmark pixels");
        let values = size.batch * 3 * config.img_size.height * config.img_size.width;
        let pixels = (0..values as u64).map(|i| random.below(256, 0, i) as u8).collect();
        Ok(Self { step, params, optimizer, pixels, selection, updates: 0 })
    }

    /// Makes one step and returns the mean loss before its update.
    ///
    /// # Errors
    /// When the device fails.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizes::NANO;

    #[test]
    fn half_of_the_rows_predict() {
        let shapes = shapes(&NANO).unwrap();
        assert_eq!((shapes.tokens(), shapes.rows.len()), (64, NANO.batch * 32));
        assert_eq!((shapes.prefix.len(), shapes.targets.len()), (NANO.batch, shapes.rows.len()));
    }
}
