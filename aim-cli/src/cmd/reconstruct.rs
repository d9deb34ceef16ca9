//! `aim-cli reconstruct`: what the model predicts of pictures.

use std::path::Path;
use std::time::Duration;

use aim_data::augment::{AugmentKey, Preprocessor, Transform};
use aim_data::decode::{DecodeLimits, decode};
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::sampling::{Sampling, Statistics, sample};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights as model_weights;
use aim_tensor::{Device, Parameters, PlanOptions};
use anyhow::{Context as _, Result, bail};

use super::Usage;
use crate::args::{Reconstruct, Statistics as StatisticsArg};
use crate::picture::{Layout, Normalization, Row, compose, prediction_pixels};
use crate::progress::{Pace, Progress, note};
use crate::weights::{Weights, open_device};

pub(crate) fn run(args: &Reconstruct, quiet: bool) -> Result<()> {
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
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
    let statistics = args.sample.then_some(match args.statistics {
        StatisticsArg::True => Statistics::True,
        StatisticsArg::Neighbour => Statistics::Neighbour,
    });
    let how = How { prefix: args.prefix, sample: statistics, quiet };
    reconstruct(&weights, &images, how, &device, &args.out)?;
    note(quiet, &format!("written to {}", args.out.display()));
    Ok(())
}

/// What the picture shows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// Patches that the model sees; half of them when not given.
    pub(crate) prefix: Option<usize>,
    /// A further column of sampled patches, with these statistics.
    pub(crate) sample: Option<Statistics>,
    /// No progress.
    pub(crate) quiet: bool,
}

/// Writes a picture of u8 `images: [n, height, width, 3]`.
pub(crate) fn reconstruct(
    weights: &Weights,
    images: &[u8],
    how: How,
    device: &Device,
    out: &Path,
) -> Result<()> {
    let config = &weights.config;
    let size = config.img_size;
    let tokens = config.num_patches();
    let prefix = how.prefix.unwrap_or(tokens / 2);
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
    let mut columns = vec![predictions];
    if let Some(statistics) = how.sample {
        columns.push(sampled(
            &model,
            &params,
            images,
            (prefix, statistics),
            &normalization,
            how.quiet,
        )?);
    }
    let of_image: Vec<Vec<&[u8]>> = (0..count)
        .map(|image| columns.iter().map(|column| column[image].as_slice()).collect())
        .collect();
    let rows: Vec<Row<'_>> = images
        .chunks_exact(3 * size.height * size.width)
        .zip(&of_image)
        .map(|(image, predictions)| Row { image, prefix, predictions })
        .collect();
    let picture = compose(layout, &rows).context("the picture is too large")?;
    super::features::create_parent(out)?;
    picture
        .save_with_format(out, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Each image with sampled patches behind its prefix, as u8 `[height, width, 3]`.
fn sampled(
    model: &PretrainModel,
    params: &Parameters,
    images: &[u8],
    (prefix, statistics): (usize, Statistics),
    normalization: &Normalization,
    quiet: bool,
) -> Result<Vec<Vec<u8>>> {
    let size = model.config().img_size;
    let len = 3 * size.height * size.width;
    let values: Vec<f32> =
        images.chunks_exact(len).flat_map(|image| normalization.to_values(image)).collect();
    let Normalization { mean, std, .. } = *normalization;
    let bound = |pixel: f64, channel: usize| ((pixel - mean[channel]) / std[channel]) as f32;
    let bounds = [0, 1, 2].map(|channel| (bound(0.0, channel), bound(1.0, channel)));
    let total = (model.config().num_patches() - prefix) as u64;
    let pace = Pace::Every(Duration::from_secs(10));
    let mut progress = Progress::new(quiet, "sampling, patches", total, pace);
    let sampling = Sampling { prefix, statistics, bounds };
    let found = sample(model, params, &values, sampling, &mut |done| {
        progress.update(done as u64, String::new);
    });
    progress.finish();
    Ok(found?.images.chunks_exact(len).map(|image| normalization.to_bytes(image)).collect())
}
