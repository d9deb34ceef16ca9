//! `aim-cli reconstruct`: what the model predicts of pictures.

use std::path::Path;

use aim_data::augment::{AugmentKey, Preprocessor, Transform};
use aim_data::decode::{DecodeLimits, decode};
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights as model_weights;
use aim_tensor::{Device, Parameters, PlanOptions};
use anyhow::{Context as _, Result, bail};

use super::Usage;
use crate::args::Reconstruct;
use crate::picture::{Layout, Normalization, Row, compose, prediction_pixels};
use crate::progress::note;
use crate::weights::{Weights, open_device};

pub(crate) fn run(args: &Reconstruct, quiet: bool) -> Result<()> {
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    let size = weights.config.img_size;
    let mut preprocessor =
        Preprocessor::new(Transform::eval(), size.height as u32, size.width as u32)?;
    let mut images = Vec::new();
    for path in &args.images {
        let limits = DecodeLimits::default();
        let length = std::fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        if length > limits.max_bytes {
            bail!(
                "{}: expected at most {} bytes, found {length}",
                path.display(),
                limits.max_bytes
            );
        }
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let image =
            decode(&bytes, &limits).with_context(|| format!("cannot decode {}", path.display()))?;
        let at = images.len();
        images.resize(at + preprocessor.output_len(), 0);
        preprocessor.apply(&image, AugmentKey::default(), &mut images[at..])?;
    }
    reconstruct(&weights, &images, args.prefix, &device, &args.out)?;
    note(quiet, &format!("written to {}", args.out.display()));
    Ok(())
}

/// Writes a picture of u8 `images: [n, height, width, 3]`, each with a prefix of `prefix` patches, half of them when
/// not given.
pub(crate) fn reconstruct(
    weights: &Weights,
    images: &[u8],
    prefix: Option<usize>,
    device: &Device,
    out: &Path,
) -> Result<()> {
    let config = &weights.config;
    let size = config.img_size;
    let tokens = config.num_patches();
    let prefix = prefix.unwrap_or(tokens / 2);
    if prefix == 0 || prefix >= tokens {
        return Err(
            Usage(format!("--prefix {prefix}: expected 1 to {} patches", tokens - 1)).into()
        );
    }
    let objective = weights.trainer_state().map(|state| state.config.objective.target);
    let per_patch = objective != Some(aim_train::config::Target::RawPixels);
    let target = if per_patch { Target::NormalizedPixels } else { Target::RawPixels };
    let model = PretrainModel::new(config, target)?;
    let mut params = Parameters::without_gradients(model.layout().clone())?;
    model_weights::load(&mut params, &weights.file, &weights.dir).context(
        "reconstructing needs the pixel head, which only checkpoints of `pretrain` have",
    )?;

    let count = images.len() / (3 * size.height * size.width).max(1);
    let narrow = |values: [f64; 3]| values.map(|v| v as f32);
    let format = PixelFormat::U8 { mean: narrow(weights.mean), std: narrow(weights.std) };
    let kind = ImageBatch { batch: count, height: size.height, width: size.width, format };
    let selection = Selection::next_patch(&vec![prefix as i32; count], tokens);
    let params = params.to(device)?;
    let (rows, options) = (selection.rows.len(), PlanOptions::default());
    let mut step = PretrainStep::on(device, &model, kind, rows, options)?;
    step.forward(&params, Pixels::U8(images), &selection)?;

    let layout = Layout { height: size.height, width: size.width, patch_size: config.patch_size };
    let normalization = Normalization { mean: weights.mean, std: weights.std, per_patch };
    let dim = config.patch_dim();
    let predictions: Vec<Vec<u8>> = step
        .predictions()?
        .chunks_exact((tokens - prefix) * dim)
        .zip(images.chunks_exact(3 * size.height * size.width))
        .map(|(predicted, image)| {
            // The prefix is not predicted; its place is not looked at.
            let mut whole = vec![0.0; prefix * dim];
            whole.extend_from_slice(predicted);
            prediction_pixels(layout, image, &whole, &normalization)
        })
        .collect();
    let rows: Vec<Row<'_>> = images
        .chunks_exact(3 * size.height * size.width)
        .zip(&predictions)
        .map(|(image, prediction)| Row { image, prefix, prediction })
        .collect();
    let picture = compose(layout, &rows).context("the picture is too large")?;
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    picture
        .save_with_format(out, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", out.display()))
}
