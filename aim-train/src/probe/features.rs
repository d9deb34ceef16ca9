//! Features of images, and going over the images of a source.

use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{Batch, EvalLoader, Images, LoaderOptions, Pass, Skipped};
use aim_data::source::Source;
use aim_kernels::attention_pool::Tokens;
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};

use crate::error::TrainError;

/// Features of labelled images, in the order of their source, wherever they are kept.
pub trait Features {
    /// Label of each image.
    fn labels(&self) -> &[i32];

    /// Tokens of an image.
    fn tokens(&self) -> usize;

    /// Width of a token.
    fn dim(&self) -> usize;

    /// Calls `f` with the features `[tokens, dim]` of some images.
    ///
    /// # Errors
    /// When they cannot be read, or what `f` returns.
    fn batch(
        &mut self,
        images: &[u32],
        f: &mut dyn FnMut(Tokens<'_>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError>;

    /// Number of images.
    fn len(&self) -> usize {
        self.labels().len()
    }

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.labels().is_empty()
    }
}

/// Features `[images, tokens, dim]` with their labels, in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureSet {
    /// The features.
    pub values: Vec<f32>,
    /// Label of each image.
    pub labels: Vec<i32>,
    /// Tokens of an image.
    pub tokens: usize,
    /// Width of a token.
    pub dim: usize,
}

impl Features for FeatureSet {
    fn labels(&self) -> &[i32] {
        &self.labels
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn batch(
        &mut self,
        images: &[u32],
        f: &mut dyn FnMut(Tokens<'_>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let slices: Vec<&[f32]> = images.iter().map(|&i| self.image(i as usize)).collect();
        f(Tokens::F32(&slices))
    }
}

impl FeatureSet {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one image.
    pub fn stride(&self) -> usize {
        self.tokens * self.dim
    }

    /// Features of one image, `[tokens, dim]`.
    pub fn image(&self, i: usize) -> &[f32] {
        &self.values[i * self.stride()..][..self.stride()]
    }

    /// Some of the images, in that order.
    pub fn select(&self, images: &[u32]) -> Self {
        Self {
            values: images.iter().flat_map(|&i| self.image(i as usize)).copied().collect(),
            labels: images.iter().map(|&i| self.labels[i as usize]).collect(),
            ..*self
        }
    }

    /// Means over the tokens of all images of `features`: `[images, 1, dim]`.
    ///
    /// # Errors
    /// When memory is short or the features cannot be read.
    pub fn mean_pooled(features: &mut dyn Features) -> Result<Self, TrainError> {
        const IMAGES: usize = 64;
        let (tokens, dim) = (features.tokens() as f32, features.dim());
        let mut set = Self::with_room(features.len() as u64, 1, dim)?;
        let all: Vec<u32> = (0..features.len() as u32).collect();
        for images in all.chunks(IMAGES) {
            features.batch(images, &mut |x| {
                let start = set.values.len();
                set.values.resize(start + x.len() * dim, 0.0);
                let pooled = &mut set.values[start..];
                aim_kernels::cpu::pool::for_each_chunk(pooled, dim, |image, pooled| {
                    x.with_image(image, |x| {
                        for token in x.chunks_exact(dim) {
                            pooled.iter_mut().zip(token).for_each(|(sum, v)| *sum += v / tokens);
                        }
                    });
                });
                Ok(())
            })?;
        }
        set.labels = features.labels().to_vec();
        Ok(set)
    }

    /// An empty set with room for `images` images.
    fn with_room(images: u64, tokens: usize, dim: usize) -> Result<Self, TrainError> {
        let len = usize::try_from(images).ok().and_then(|n| n.checked_mul(tokens * dim));
        let mut values = Vec::new();
        if len.is_none_or(|len| values.try_reserve_exact(len).is_err()) {
            let what = "features of the whole set in memory";
            return Err(TrainError::Unsupported {
                what,
                instead: "use fewer images or pooled features",
            });
        }
        Ok(Self { values, labels: Vec::new(), tokens, dim })
    }
}

/// Adds the labels of a batch.
pub(super) fn push_labels(
    labels: &mut Vec<i32>,
    batch: &Batch,
    source: &dyn Source,
) -> Result<(), TrainError> {
    for (&label, &index) in batch.labels.iter().zip(&batch.indices) {
        let Some(label) = label else {
            return Err(TrainError::NoLabel { location: source.location(index) });
        };
        labels.push(label as i32);
    }
    Ok(())
}

/// How images are brought to the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageOptions {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Mean of each channel.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// Images in a batch.
    pub batch_size: usize,
    /// Decoding threads.
    pub workers: usize,
    /// Only this many images, spread over the source.
    pub limit: Option<u64>,
}

/// Goes once over a source. `each` gets every batch with its kind; `progress` the images done and in all.
///
/// # Errors
/// When the data are too bad, or what `each` returns.
pub fn for_each_batch(
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    progress: &mut dyn FnMut(u64, u64),
    skipped: &mut dyn FnMut(&Skipped),
    each: impl FnMut(&Batch, ImageBatch, Pixels<'_>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    // A limit takes images from all over the source, which may be sorted by class.
    let shuffle_seed = options.limit.map(|_| 0);
    let pass = Pass { limit: options.limit, shuffle_seed, augment_seed: 0 };
    for_each_batch_of(source, options, Transform::eval(), pass, progress, skipped, each)
}

/// [`for_each_batch`] with another transform, in another order.
pub(super) fn for_each_batch_of(
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    transform: Transform,
    pass: Pass,
    progress: &mut dyn FnMut(u64, u64),
    skipped: &mut dyn FnMut(&Skipped),
    mut each: impl FnMut(&Batch, ImageBatch, Pixels<'_>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let loading = LoaderOptions {
        height: options.height as u32,
        width: options.width as u32,
        workers: options.workers,
        ..LoaderOptions::new(options.batch_size, options.height as u32, transform)
    };
    let mut loader = EvalLoader::new(source.clone(), loading, pass)?;
    let total = loader.num_samples();
    let mut batch = Batch::default();
    let mut done = 0;
    while loader.next_into(&mut batch)? {
        let (images, pixels) = pixels_of(&batch, options)?;
        each(&batch, images, pixels)?;
        loader.take_skipped().iter().for_each(&mut *skipped);
        done += batch.len() as u64;
        progress(done, total);
    }
    Ok(())
}

/// A batch as the model takes it.
pub(crate) fn pixels_of<'a>(
    batch: &'a Batch,
    options: &ImageOptions,
) -> Result<(ImageBatch, Pixels<'a>), TrainError> {
    let (pixels, format) = match &batch.images {
        Images::F32(values) => (Pixels::F32(values), PixelFormat::F32),
        Images::U8(bytes) => {
            (Pixels::U8(bytes), PixelFormat::U8 { mean: options.mean, std: options.std })
        }
        _ => return Err(TrainError::Internal("unknown kind of pixels")),
    };
    let (height, width) = (batch.height as usize, batch.width as usize);
    Ok((ImageBatch { batch: batch.len(), height, width, format }, pixels))
}

/// The pixels themselves as features, `[images, 1, 3 * height * width]` in 0..1: the baseline of no model at all.
///
/// # Errors
/// When an image has no label, memory is short, or the data are too bad.
pub fn pixels(
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<FeatureSet, TrainError> {
    let images = options.limit.unwrap_or(u64::MAX).min(source.len());
    let mut set = FeatureSet::with_room(images, 1, 3 * options.height * options.width)?;
    for_each_batch(source, options, progress, &mut |_| {}, |batch, _, pixels| {
        match pixels {
            Pixels::U8(bytes) => {
                set.values.extend(bytes.iter().map(|&byte| f32::from(byte) / 255.0))
            }
            Pixels::F32(values) => set.values.extend_from_slice(values),
        }
        push_labels(&mut set.labels, batch, source.as_ref())
    })?;
    Ok(set)
}
