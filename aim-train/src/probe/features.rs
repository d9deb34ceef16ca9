//! Features of every image of a source.

use std::sync::Arc;

use aim_data::augment::Transform;
use aim_data::loader::{Batch, EvalLoader, Images, LoaderOptions, Pass, Skipped};
use aim_data::source::Source;
use aim_model::features::FeatureExtractor;
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};

use crate::error::TrainError;

/// Features `[images, tokens, dim]` with their labels, in the order of the source.
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

    /// Mean over tokens: `[images, 1, dim]`.
    pub fn mean_pooled(&self) -> Self {
        let mut values = vec![0.0; self.len() * self.dim];
        for (i, pooled) in values.chunks_exact_mut(self.dim.max(1)).enumerate() {
            for token in self.image(i).chunks_exact(self.dim) {
                pooled.iter_mut().zip(token).for_each(|(sum, v)| *sum += v / self.tokens as f32);
            }
        }
        Self { values, labels: self.labels.clone(), tokens: 1, dim: self.dim }
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

    fn push_labels(&mut self, batch: &Batch, source: &dyn Source) -> Result<(), TrainError> {
        for (&label, &index) in batch.labels.iter().zip(&batch.indices) {
            let Some(label) = label else {
                return Err(TrainError::NoLabel { location: source.location(index) });
            };
            self.labels.push(label as i32);
        }
        Ok(())
    }
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
    mut each: impl FnMut(&Batch, ImageBatch, Pixels<'_>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let loading = LoaderOptions {
        height: options.height as u32,
        width: options.width as u32,
        workers: options.workers,
        ..LoaderOptions::new(options.batch_size, options.height as u32, Transform::eval())
    };
    // A limit takes images from all over the source, which may be sorted by class.
    let pass =
        Pass { limit: options.limit, shuffle_seed: options.limit.map(|_| 0), augment_seed: 0 };
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

/// Features of every labelled image: the mean of the extractor's layers.
///
/// # Errors
/// When an image has no label, memory is short, or the data are too bad.
pub fn extract(
    extractor: &mut FeatureExtractor,
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    progress: &mut dyn FnMut(u64, u64),
    skipped: &mut dyn FnMut(&Skipped),
) -> Result<FeatureSet, TrainError> {
    let patch = extractor.config().patch_size;
    let (tokens, dim) =
        (options.height / patch * (options.width / patch), extractor.config().embed_dim);
    let images = options.limit.unwrap_or(u64::MAX).min(source.len());
    let mut set = FeatureSet::with_room(images, tokens, dim)?;
    let mut average = Vec::new();
    for_each_batch(source, options, progress, skipped, |batch, images, pixels| {
        extractor.run(images, pixels)?;
        extractor.average(&mut average)?;
        set.tokens = extractor.tokens();
        set.values.extend_from_slice(&average);
        set.push_labels(batch, source.as_ref())
    })?;
    Ok(set)
}

/// The pixels themselves as features, `[images, 1, 3 * height * width]` in 0..1: the baseline of no model at all.
///
/// # Errors
/// As [`extract`].
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
        set.push_labels(batch, source.as_ref())
    })?;
    Ok(set)
}
