//! Sizes and arithmetic of a model, counted from what it records.

use aim_model::pretrain::PretrainModel;
use aim_tensor::Tape;
use aim_tensor::count::{Flops, flops};
use anyhow::Result;

/// Numbers of parameters of the trunk and of the pixel head.
pub(crate) fn parameters(model: &PretrainModel) -> (u64, u64) {
    let head = model.layout().iter().filter(|param| param.spec.name.starts_with("pixel_head."));
    let head: usize = head.map(|param| param.range.len()).sum();
    ((model.layout().count() - head) as u64, head as u64)
}

/// One forward and backward pass over an image whose every token predicts.
pub(crate) fn whole_image(model: &PretrainModel) -> Result<Flops> {
    let (tape, _): (Tape, _) = model.record(model.image_batch(1), model.config().num_patches())?;
    Ok(flops(&tape))
}
