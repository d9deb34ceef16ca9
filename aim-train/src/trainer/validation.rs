//! The validation set: fixed images, two losses, and the baseline beside them.

use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{BadSamplePolicy, Batch, EvalLoader, Images, LoaderOptions, Pass, Skipped};
use aim_data::source::Source;
use aim_kernels::patch_loss::{self, PatchLoss};
use aim_model::objective::{PrefixSampler, Selection};
use aim_model::pretrain::{PretrainModel, PretrainStep, Target};
use aim_model::trunk::ImageBatch;
use aim_tensor::{Parameters, PlanOptions};

use super::events::{Event, Observer, Validation};
use super::pixels;
use crate::error::TrainError;

/// Training images that the baseline is fitted on, at most.
const BASELINE_IMAGES: u64 = 2048;

/// Fixed images with everything that does not change from one validation to the next.
pub(super) struct ValidationSet {
    batches: Vec<Batch>,
    /// Of each batch: prefixes fixed by image key, and prefixes of 1.
    selections: Vec<[Selection; 2]>,
    /// Patches scored and the baseline's loss, for each of the two.
    baseline: [f64; 2],
    step: Option<PretrainStep>,
}

impl ValidationSet {
    /// Loads `num_images` images of `source` (all, if it has fewer), tells which cannot be used, and fits the baseline
    /// on images of `train`.
    pub(super) fn new(
        model: &PretrainModel,
        kind: ImageBatch,
        source: &Arc<dyn Source>,
        train: &Arc<dyn Source>,
        num_images: u64,
        options: LoaderOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let options = LoaderOptions { transform: Transform::eval(), ..options };
        let tokens = tokens(model, kind);
        let mut set =
            Self { batches: Vec::new(), selections: Vec::new(), baseline: [0.0; 2], step: None };
        // Any part of the source, the same every time: sources are often sorted by class.
        let pass = Pass { limit: Some(num_images), shuffle_seed: Some(0), augment_seed: 0 };
        let skipped = for_each_batch(source, options, pass, |batch| {
            let fixed: Vec<i32> =
                batch.keys.iter().map(|&key| PrefixSampler::for_key(tokens, key)).collect();
            let causal = vec![1; batch.len()];
            set.selections
                .push([&fixed, &causal].map(|prefix| Selection::next_patch(prefix, tokens)));
            set.batches.push(batch.clone());
        })?;
        // Training never meets these images, so nobody else would name them.
        skipped.iter().for_each(|skipped| observer.event(Event::SampleSkipped(skipped)));
        let mean = Baseline::fit(model, kind, train, options)?;
        set.baseline = set.score_baseline(model, kind, &mean)?;
        Ok(set)
    }

    fn score_baseline(
        &self,
        model: &PretrainModel,
        kind: ImageBatch,
        baseline: &Baseline,
    ) -> Result<[f64; 2], TrainError> {
        let mut targets = Targets::new(model, kind)?;
        let mut sums = [(0.0, 0); 2];
        for (batch, selections) in self.batches.iter().zip(&self.selections) {
            let values = targets.of(batch)?;
            for ((sum, count), selection) in sums.iter_mut().zip(selections) {
                for &target in &selection.targets {
                    *sum += baseline.error(values, target as usize);
                }
                *count += selection.targets.len();
            }
        }
        Ok(sums.map(|(sum, count)| sum / count.max(1) as f64))
    }

    /// Losses of the model as it is.
    pub(super) fn run(
        &mut self,
        model: &PretrainModel,
        kind: ImageBatch,
        params: &Parameters,
        options: PlanOptions,
    ) -> Result<Validation, TrainError> {
        let mut sums = [(0.0, 0); 2];
        for (batch, selections) in self.batches.iter().zip(&self.selections) {
            for ((sum, count), selection) in sums.iter_mut().zip(selections) {
                let images = ImageBatch { batch: batch.len(), ..kind };
                let rows = selection.rows.len();
                let step = match self.step.take() {
                    Some(step) => step.adapted(model, images, rows, options)?,
                    None => PretrainStep::on(&params.device(), model, images, rows, options)?,
                };
                let step = self.step.insert(step);
                *sum += step.forward(params, pixels(&batch.images)?, selection)?;
                *count += rows;
            }
        }
        // The memory is lent back to training until the next time.
        self.step = None;
        let [loss, loss_causal] = sums.map(|(sum, count): (f64, usize)| sum / count.max(1) as f64);
        let [baseline, baseline_causal] = self.baseline;
        Ok(Validation { loss, loss_causal, baseline, baseline_causal })
    }
}

/// Calls `each` for the batches of one pass; returns the samples that could not be used.
fn for_each_batch(
    source: &Arc<dyn Source>,
    options: LoaderOptions,
    pass: Pass,
    mut each: impl FnMut(&Batch),
) -> Result<Vec<Skipped>, TrainError> {
    let mut loader = EvalLoader::new(source.clone(), options, pass)?;
    let mut batch = Batch::default();
    while loader.next_into(&mut batch)? {
        each(&batch);
    }
    Ok(loader.take_skipped())
}

fn tokens(model: &PretrainModel, kind: ImageBatch) -> usize {
    let patch = model.config().patch_size;
    kind.height / patch * (kind.width / patch)
}

/// Targets of whole images.
struct Targets {
    kind: ImageBatch,
    shape: PatchLoss,
    tokens: usize,
    patch: usize,
    patches: Vec<f32>,
    values: Vec<f32>,
}

impl Targets {
    fn new(model: &PretrainModel, kind: ImageBatch) -> Result<Self, TrainError> {
        let patch = model.config().patch_size;
        let normalize = model.target() == Target::NormalizedPixels;
        let shape = PatchLoss { rows: 0, patch, normalize };
        Ok(Self {
            kind,
            shape,
            tokens: tokens(model, kind),
            patch,
            patches: Vec::new(),
            values: Vec::new(),
        })
    }

    /// `[batch * tokens, 3 p^2]`
    fn of(&mut self, batch: &Batch) -> Result<&[f32], TrainError> {
        let rows = batch.len() * self.tokens;
        let shape = aim_kernels::patch_embed::PatchEmbed {
            batch: batch.len(),
            height: self.kind.height,
            width: self.kind.width,
            patch: self.patch,
        };
        self.patches.resize(rows * shape.patch_dim(), 0.0);
        self.values.resize(rows * shape.patch_dim(), 0.0);
        match (&batch.images, self.kind.format) {
            (Images::U8(bytes), aim_model::trunk::PixelFormat::U8 { mean, std }) => {
                aim_kernels::patch_embed::cpu::patchify_u8(
                    shape,
                    bytes,
                    mean,
                    std,
                    &mut self.patches,
                );
            }
            (Images::F32(values), _) => {
                aim_kernels::patch_embed::cpu::patchify(shape, values, &mut self.patches)
            }
            _ => return Err(TrainError::Internal("pixels and their format differ")),
        }
        let every: Vec<i32> = (0..rows as i32).collect();
        let loss = PatchLoss { rows, ..self.shape };
        patch_loss::cpu::write_targets(loss, &self.patches, &every, &mut self.values);
        Ok(&self.values)
    }
}

/// The best constant prediction for each position of the grid: the mean target.
struct Baseline {
    mean: Vec<f64>,
    dim: usize,
    tokens: usize,
}

impl Baseline {
    fn fit(
        model: &PretrainModel,
        kind: ImageBatch,
        train: &Arc<dyn Source>,
        options: LoaderOptions,
    ) -> Result<Self, TrainError> {
        let (tokens, dim) = (tokens(model, kind), model.config().patch_dim());
        let mut targets = Targets::new(model, kind)?;
        let mut mean = vec![0.0; tokens * dim];
        let mut images = 0;
        let mut failed = None;
        let pass = Pass { limit: Some(BASELINE_IMAGES), shuffle_seed: Some(0), augment_seed: 0 };
        // What is skipped here is met, named and judged in training.
        let bad_samples = BadSamplePolicy { max_fraction: 1.0, ..options.bad_samples };
        let options = LoaderOptions { bad_samples, ..options };
        for_each_batch(train, options, pass, |batch| match targets.of(batch) {
            Ok(values) => {
                images += batch.len();
                for image in values.chunks_exact(tokens * dim) {
                    mean.iter_mut().zip(image).for_each(|(sum, &v)| *sum += f64::from(v));
                }
            }
            Err(error) => failed = Some(error),
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        mean.iter_mut().for_each(|sum| *sum /= f64::from(images.max(1) as u32));
        Ok(Self { mean, dim, tokens })
    }

    /// Mean squared error on patch `row` of `[batch * tokens, dim]` targets.
    fn error(&self, targets: &[f32], row: usize) -> f64 {
        let target = &targets[row * self.dim..][..self.dim];
        let mean = &self.mean[row % self.tokens * self.dim..][..self.dim];
        let sum: f64 = target.iter().zip(mean).map(|(&t, m)| (f64::from(t) - m).powi(2)).sum();
        sum / self.dim as f64
    }
}
