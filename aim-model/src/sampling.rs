//! [`sample`]: images patch by patch, each predicted from the prefix and the patches predicted before it.
//!
//! The first missing patch is predicted from the true prefix, as in training; what it is taken for then stands in the
//! image when the next one is predicted. Attention is that of training: all of the prefix sees all of the prefix,
//! later tokens what is before them.
//!
//! Predictions of normalised patches (see [`Target::NormalizedPixels`]) leave mean and contrast open; [`Statistics`]
//! says where these come from. Pixels are held to what an image can show.
//!
//! **Cost**: one pass of the trunk for each patch, over the rows of patches known so far, and of the head over one
//! token: for a grid of R rows and C columns behind a prefix of half, 3/8 of R C passes over the whole image. Keys and
//! values are not kept from one patch to the next.

use aim_tensor::{Parameters, PlanOptions};

use crate::error::ModelError;
use crate::objective::Selection;
use crate::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use crate::trunk::{ImageBatch, PixelFormat};

/// Added to a patch's variance by the objective.
const EPS: f64 = 1e-6;

/// Where the mean and contrast of a predicted patch come from, where the objective leaves them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// From the true patch.
    True,
    /// The mean of those of the patches left of it and above it as they stand in the image: nothing of what is to be
    /// predicted is looked at.
    Neighbour,
}

/// How to sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Patches that are given, at least 1.
    pub prefix: usize,
    /// Mean and contrast of predicted patches.
    pub statistics: Statistics,
    /// Smallest and largest value of each channel.
    pub bounds: [(f32, f32); 3],
}

/// Images with predicted patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// `[batch, 3, height, width]`, normalised: the prefix as it was, then the predicted patches.
    pub images: Vec<f32>,
    /// The predictions as the head gave them, `[batch, tokens - prefix, 3 p^2]`, channel fastest.
    pub predictions: Vec<f32>,
}

/// Samples the patches behind the prefix of `images: [batch, 3, height, width]`, normalised, of the model's size.
/// `progress` gets the number of patches done. What stands behind the prefix is looked at for
/// [`Statistics::True`] only.
///
/// # Errors
/// When the prefix is empty or leaves nothing to predict, or the images are of another size.
pub fn sample(
    model: &PretrainModel,
    params: &Parameters,
    images: &[f32],
    sampling: Sampling,
    progress: &mut dyn FnMut(usize),
) -> Result<Sampled, ModelError> {
    let config = model.config();
    let grid = Grid::new(config.img_size.height, config.img_size.width, config.patch_size);
    let (tokens, batch) = (grid.tokens(), images.len() / grid.image_len().max(1));
    if sampling.prefix == 0 || sampling.prefix >= tokens || batch * grid.image_len() != images.len()
    {
        return Err(ModelError::BadConfig {
            key: "prefix",
            value: sampling.prefix.to_string(),
            expected: format!(
                "1 to {} patches of images [batch, 3, {}, {}]",
                tokens.saturating_sub(1),
                grid.height,
                grid.width
            ),
        });
    }
    let mut sampled = images.to_vec();
    let mut predictions = vec![0.0; batch * (tokens - sampling.prefix) * grid.patch_len()];
    let (mut step, mut known) = (None, Vec::new());
    for patch in sampling.prefix..tokens {
        // Whole rows of patches that hold all that the prediction may see.
        let rows = patch.div_ceil(grid.columns());
        grid.top(rows, &sampled, &mut known);
        let found = predict(
            model,
            params,
            &grid,
            (rows, batch),
            &known,
            (patch, sampling.prefix),
            &mut step,
        )?;
        for (image, values) in found.chunks_exact(grid.patch_len()).enumerate() {
            let at =
                (image * (tokens - sampling.prefix) + patch - sampling.prefix) * grid.patch_len();
            predictions[at..at + values.len()].copy_from_slice(values);
            let span = image * grid.image_len()..(image + 1) * grid.image_len();
            let truth = &images[span.clone()];
            let now = &mut sampled[span];
            let (mean, std) = match (model.target(), sampling.statistics) {
                (Target::RawPixels, _) => (0.0, 1.0),
                (_, Statistics::True) => grid.statistics(truth, patch),
                (_, Statistics::Neighbour) => grid.neighbours(now, patch),
            };
            grid.put(now, patch, values, (mean, std), sampling.bounds);
        }
        progress(patch + 1 - sampling.prefix);
    }
    Ok(Sampled { images: sampled, predictions })
}

/// Predictions `[batch, 3 p^2]` of one patch from the rows of patches above and around it.
fn predict(
    model: &PretrainModel,
    params: &Parameters,
    grid: &Grid,
    (rows, batch): (usize, usize),
    known: &[f32],
    (patch, prefix): (usize, usize),
    step: &mut Option<PretrainStep>,
) -> Result<Vec<f32>, ModelError> {
    let height = rows * grid.patch;
    let kind = ImageBatch { batch, height, width: grid.width, format: PixelFormat::F32 };
    let options = PlanOptions::default();
    let mut ready = match step.take() {
        Some(ready) => ready.adapted(model, kind, batch, options)?,
        None => PretrainStep::on(&params.device(), model, kind, batch, options)?,
    };
    let tokens = rows * grid.columns();
    let picked: Vec<i32> = (0..batch).map(|image| (image * tokens + patch - 1) as i32).collect();
    // The patch itself may lie below these rows; what it is scored against is not looked at.
    let selection =
        Selection { prefix: vec![prefix as i32; batch], rows: picked.clone(), targets: picked };
    ready.forward(params, Pixels::F32(known), &selection)?;
    let found = ready.predictions()?.into_owned();
    *step = Some(ready);
    Ok(found)
}

/// Patches of normalised images `[3, height, width]`.
struct Grid {
    height: usize,
    width: usize,
    patch: usize,
}

impl Grid {
    fn new(height: usize, width: usize, patch: usize) -> Self {
        Self { height, width, patch }
    }

    fn columns(&self) -> usize {
        self.width / self.patch
    }

    fn tokens(&self) -> usize {
        self.height / self.patch * self.columns()
    }

    fn image_len(&self) -> usize {
        3 * self.height * self.width
    }

    fn patch_len(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// Place in `[3, height, width]` of value `i` of a patch in the order (row, column, channel).
    fn at(&self, patch: usize, i: usize) -> usize {
        let y = patch / self.columns() * self.patch + i / 3 / self.patch;
        let x = patch % self.columns() * self.patch + i / 3 % self.patch;
        (i % 3 * self.height + y) * self.width + x
    }

    /// The first `rows` rows of patches of every image: `[batch, 3, rows * patch, width]`.
    fn top(&self, rows: usize, images: &[f32], out: &mut Vec<f32>) {
        out.clear();
        for channel in images.chunks_exact(self.height * self.width) {
            out.extend_from_slice(&channel[..rows * self.patch * self.width]);
        }
    }

    /// Mean and standard deviation of a patch as the objective takes them.
    fn statistics(&self, image: &[f32], patch: usize) -> (f64, f64) {
        let n = self.patch_len();
        let values = (0..n).map(|i| f64::from(image[self.at(patch, i)]));
        let mean = values.clone().sum::<f64>() / n as f64;
        let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0).max(1.0);
        (mean, (variance + EPS).sqrt())
    }

    /// The mean of the statistics left of a patch and above it; every patch but the first has one of them.
    fn neighbours(&self, image: &[f32], patch: usize) -> (f64, f64) {
        let left = (!patch.is_multiple_of(self.columns())).then(|| patch - 1);
        let above = patch.checked_sub(self.columns());
        let found: Vec<(f64, f64)> =
            left.into_iter().chain(above).map(|patch| self.statistics(image, patch)).collect();
        let n = found.len().max(1) as f64;
        let sum = found.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (sum.0 / n, sum.1 / n)
    }

    /// Puts a prediction into an image.
    fn put(
        &self,
        image: &mut [f32],
        patch: usize,
        values: &[f32],
        (mean, std): (f64, f64),
        bounds: [(f32, f32); 3],
    ) {
        for (i, &value) in values.iter().enumerate() {
            let (low, high) = bounds[i % 3];
            let pixel = (f64::from(value) * std + mean) as f32;
            // Not `clamp`, which panics on bounds in the wrong order.
            image[self.at(patch, i)] = pixel.max(low).min(high);
        }
    }
}

#[cfg(test)]
mod tests;
