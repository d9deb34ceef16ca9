//! Top-1 and top-5 of an adapted model.

use std::sync::Arc;

use aim_data::loader::Skipped;
use aim_data::source::Source;
use aim_model::finetune::{FinetuneModel, FinetuneStep};
use aim_tensor::Parameters;

use crate::error::TrainError;
use crate::probe::features::{ImageOptions, for_each_batch};
use crate::probe::{Accuracy, rank};

/// How good a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// How often it is right.
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// Mean cross-entropy of the labels.
    pub loss: f64,
}

/// Evaluates on every labelled image of a source, resized and cropped at the centre, with running statistics.
///
/// # Errors
/// When an image has no label, there is no image, or the data are too bad.
pub fn evaluate(
    model: &FinetuneModel,
    params: &Parameters,
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    progress: &mut dyn FnMut(u64, u64),
    skipped: &mut dyn FnMut(&Skipped),
) -> Result<Evaluation, TrainError> {
    let classes = model.config().classes;
    let mut step: Option<FinetuneStep> = None;
    let (mut ranks, mut loss) = (Vec::new(), 0.0_f64);
    for_each_batch(source, options, progress, skipped, |batch, images, pixels| {
        let ready = match step.take().filter(|step| step.images() == images) {
            Some(ready) => ready,
            None => FinetuneStep::new(model, images, None, &params.device())?,
        };
        let ready = step.insert(ready);
        ready.forward(params, pixels)?;
        let logits = ready.logits()?;
        for (row, (logits, &label)) in logits.chunks_exact(classes).zip(&batch.labels).enumerate() {
            let Some(label) = label else {
                return Err(TrainError::NoLabel { location: source.location(batch.indices[row]) });
            };
            // A class that the model does not have is wrong, not an error.
            ranks.push(rank(logits, label as usize));
            loss += logits.get(label as usize).map_or(0.0, |&own| cross_entropy(logits, own));
        }
        Ok(())
    })?;
    if ranks.is_empty() {
        return Err(TrainError::TooFewImages { found: 0, expected: 1 });
    }
    let loss = loss / ranks.len() as f64;
    Ok(Evaluation { accuracy: Accuracy::of_ranks(&ranks), loss })
}

fn cross_entropy(logits: &[f32], own: f32) -> f64 {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    sum.ln() - f64::from(own - top)
}
