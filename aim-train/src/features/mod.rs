//! Features of every image of a source, written to a file while they are computed.
//!
//! | module | what |
//! |---|---|
//! | `columns` | the unfinished file: one column for each layer, rows in the order of the data |
//! | `journal` | what the unfinished file is of, and how far it is |
//! | `finish` | header, keys and labels, and the file's own name |
//! | `parquet` | the same as parquet (feature `parquet`) |
//!
//! `OUT.partial` grows while images are processed, and `OUT.partial.jsonl` beside it says how many rows of it count:
//! a run that ended in any way, power cuts included, goes on with the same call and gives the same file in bits.
//! Batches are counted from the first image of the source, so their bounds do not depend on interruptions. Memory does
//! not grow with the source, except for one number for each image that cannot be used.

mod columns;
mod finish;
mod journal;
#[cfg(feature = "parquet")]
mod parquet;
mod tail;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aim_data::Defect;
use aim_data::augment::Transform;
use aim_data::loader::{BadSamplePolicy, Batch, EvalLoader, LoaderOptions, Pass};
use aim_data::source::Source;
use aim_model::features::FeatureExtractor;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::probe::features::{ImageOptions, pixels_of};
use crate::signals::Stop;
use columns::{Columns, Shape};
use journal::{Job, Journal, JournalState};
use tail::Tail;

/// The format of the finished file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A tensor for each layer, `labels` and `indices`.
    Safetensors,
    /// One array: one layer, or the mean over layers.
    Npy,
    /// A list column for each layer, and `key`, `index`, `label`.
    Parquet,
}

/// The type of the values in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit floats, as they are computed.
    Fp32,
    /// IEEE half precision; values beyond 65504 become infinite.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl ElementType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        if self == Self::Fp32 { 4 } else { 2 }
    }
}

/// What becomes of an image's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Kept: rows are `[tokens, dim]`.
    None,
    /// Their mean: rows are `[dim]`.
    Mean,
}

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file.
    pub out: PathBuf,
    /// Its format.
    pub format: Format,
    /// The mean over the extractor's layers instead of one column for each.
    pub average: bool,
    /// What becomes of tokens.
    pub pool: Pool,
    /// Type of the values.
    pub dtype: ElementType,
    /// Least time between two points that an interrupted run goes on from.
    pub sync_every: Duration,
    /// Begin again, whatever an interrupted run has left.
    pub restart: bool,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    /// An interrupted run goes on behind this many images.
    Resumed(u64),
    /// Images done, and in all.
    Progress(u64, u64),
    /// An image that cannot be used; it gets no row.
    Skipped(&'a Defect),
    /// Something that people should know.
    Warning(String),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The file is complete.
    Written(Summary),
    /// Stopped on request behind this many images; the same call goes on.
    Stopped(u64),
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows.
    pub images: u64,
    /// Images without a row.
    pub skipped: u64,
    /// Shape of each column.
    pub shape: Vec<usize>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Files written, the one asked for first.
    pub files: Vec<PathBuf>,
}

/// `path` with more at the end of its name.
fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(more);
    path.with_file_name(name)
}

/// Computes the features of every image and writes them.
///
/// `weights` identifies the model's weights (see [`fingerprint`]); features of other weights are not continued.
///
/// # Errors
/// When the file cannot be written, another process is writing it, an unfinished file of another job is there, or more
/// than a tenth of the images cannot be used. Whatever was finished before is kept, and the same call goes on from
/// there.
pub fn write(
    extractor: &mut FeatureExtractor,
    weights: &str,
    source: &Arc<dyn Source>,
    options: &ImageOptions,
    request: &Request,
    stop: &Stop,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, TrainError> {
    check_format(request, extractor.layers().len())?;
    let total = source.len();
    let job = Job::new(extractor, weights, source, options, request);
    let shape = Shape::new(&job, request)?;
    let (mut journal, mut columns) =
        match journal::open(&request.out, &job, shape, request.restart)? {
            JournalState::Finished(journal) => {
                let summary = finish::summary(&job, request, &journal);
                journal.remove()?;
                return Ok(Outcome::Written(summary));
            }
            JournalState::Open(journal, columns) => (journal, columns),
        };
    if journal.next > 0 {
        observer(Event::Resumed(journal.next));
    }
    if journal.next < total {
        let mut pass = PassOver { extractor, source, options, request, stop, observer };
        if let Some(done) = pass.run(&mut journal, &mut columns)? {
            return Ok(Outcome::Stopped(done));
        }
    }
    finish::finish(&job, request, source.as_ref(), journal, columns).map(Outcome::Written)
}

/// Identifies weights by their values.
///
/// # Errors
/// When a device fails.
pub fn fingerprint(params: &aim_tensor::Parameters) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for param in params.layout().iter() {
        hasher.update(param.spec.name.as_bytes());
    }
    hasher.update(bytemuck::cast_slice(&params.download()?));
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// What a format cannot hold.
fn check_format(request: &Request, layers: usize) -> Result<(), TrainError> {
    let unsupported = |what, instead| Err(TrainError::Unsupported { what, instead });
    match (request.format, request.dtype) {
        (Format::Npy, ElementType::Bf16) => unsupported(
            "bf16 in .npy",
            "NumPy has no such type: take fp16 or fp32, or .safetensors",
        ),
        (Format::Parquet, ElementType::Bf16) => unsupported(
            "bf16 in .parquet",
            "it has no such type: take fp16 or fp32, or .safetensors",
        ),
        (Format::Npy, _) if layers > 1 && !request.average => unsupported(
            "several layers in one .npy file",
            "choose one layer, their average, or .safetensors",
        ),
        (Format::Parquet, _) if cfg!(not(feature = "parquet")) => unsupported(
            "writing .parquet in this build",
            "build with `--features parquet`, or write .safetensors or .npy",
        ),
        _ => Ok(()),
    }
}

/// One pass over the images that are left.
struct PassOver<'a> {
    extractor: &'a mut FeatureExtractor,
    source: &'a Arc<dyn Source>,
    options: &'a ImageOptions,
    request: &'a Request,
    stop: &'a Stop,
    observer: &'a mut dyn FnMut(Event<'_>),
}

impl PassOver<'_> {
    /// Goes on to the end (`None`), or until it is asked to stop.
    fn run(
        &mut self,
        journal: &mut Journal,
        columns: &mut Columns,
    ) -> Result<Option<u64>, TrainError> {
        let (start, total) = (journal.next, self.source.len());
        let mut loader = self.loader(start)?;
        let mut batch = Batch::default();
        let (mut rows, mut average) = (Rows::default(), Vec::new());
        let mut first_defects = Vec::new();
        let mut synced = Instant::now();
        loop {
            let loaded = loader.next_into(&mut batch);
            for skipped in loader.take_skipped() {
                (self.observer)(Event::Skipped(&skipped.defect));
                if first_defects.len() < 5 {
                    first_defects.push(skipped.defect.clone());
                }
                journal.describe(skipped.defect)?;
            }
            match loaded {
                Ok(true) => {}
                Ok(false) => break,
                // Only the tail has no usable image.
                Err(aim_data::Error::NoUsableSample { .. }) if journal.rows > 0 => break,
                Err(error) => {
                    self.commit(journal, columns)?;
                    return Err(error.into());
                }
            }
            let end = total.min(start + batch.first_sample + self.options.batch_size as u64);
            journal.advance(end, batch.indices.iter().map(|index| start + index));
            too_many_bad(journal, &first_defects)?;
            self.append(&batch, journal, columns, (&mut rows, &mut average))?;
            (self.observer)(Event::Progress(end, total));
            let stopping = self.stop.requested().is_some();
            if stopping || synced.elapsed() >= self.request.sync_every {
                self.commit(journal, columns)?;
                synced = Instant::now();
            }
            if stopping && end < total {
                return Ok(Some(end));
            }
        }
        journal.advance(total, std::iter::empty());
        too_many_bad(journal, &first_defects)?;
        self.commit(journal, columns)?;
        Ok(None)
    }

    fn loader(&self, start: u64) -> Result<EvalLoader, TrainError> {
        let ImageOptions { height, width, batch_size, workers, .. } = *self.options;
        let loading = LoaderOptions {
            height: height as u32,
            width: width as u32,
            workers,
            // Counted here, so that a resumed run tolerates what an uninterrupted one does.
            bad_samples: BadSamplePolicy { max_fraction: 1.0, min_count: u64::MAX },
            ..LoaderOptions::new(batch_size, height as u32, Transform::eval())
        };
        let tail: Arc<dyn Source> = Arc::new(Tail::new(self.source.clone(), start));
        Ok(EvalLoader::new(tail, loading, Pass::default())?)
    }

    /// Makes what was written count.
    fn commit(&self, journal: &mut Journal, columns: &Columns) -> Result<(), TrainError> {
        columns.sync()?;
        journal.commit()
    }

    /// Computes a batch and writes its rows behind the others.
    fn append(
        &mut self,
        batch: &Batch,
        journal: &mut Journal,
        columns: &mut Columns,
        (rows, average): (&mut Rows, &mut Vec<f32>),
    ) -> Result<(), TrainError> {
        let (images, pixels) = pixels_of(batch, self.options)?;
        self.extractor.run(images, pixels)?;
        let (tokens, dim) = (self.extractor.tokens(), self.extractor.config().embed_dim);
        let row = journal.rows - batch.len() as u64;
        for column in 0..columns.shape().columns {
            let values: Cow<'_, [f32]> = if self.request.average {
                self.extractor.average(average)?;
                Cow::Borrowed(average)
            } else {
                self.extractor.layer(column)?
            };
            columns.write(column, row, rows.convert(&values, tokens, dim, self.request))?;
        }
        if let Some(value) = rows.overflow.take() {
            (self.observer)(Event::Warning(format!(
                "a value of {value} is beyond fp16's 65504 and is infinite in the file; so are others like it \
                 (--dtype bf16 or fp32 hold it)"
            )));
        }
        Ok(())
    }
}

/// A tenth, once more than ten are bad: what training tolerates too.
fn too_many_bad(journal: &Journal, first: &[Defect]) -> Result<(), TrainError> {
    let bad = journal.skipped_count();
    if bad > 10 && bad * 10 > journal.next {
        return Err(aim_data::Error::TooManyBad {
            bad,
            seen: journal.next,
            tolerated: "10 %, once more than 10 are bad".into(),
            first: first.to_vec(),
        }
        .into());
    }
    Ok(())
}

/// Memory for the conversion of one batch, reused.
#[derive(Default)]
struct Rows {
    pooled: Vec<f32>,
    half: Vec<u16>,
    /// The first finite value that became infinite; reported once.
    overflow: Option<f32>,
    reported: bool,
}

impl Rows {
    /// `values: [batch, tokens, dim]` as bytes of the file.
    fn convert<'a>(
        &'a mut self,
        values: &'a [f32],
        tokens: usize,
        dim: usize,
        request: &Request,
    ) -> &'a [u8] {
        let values = match request.pool {
            Pool::None => values,
            Pool::Mean => {
                self.pooled.clear();
                values
                    .chunks_exact((tokens * dim).max(1))
                    .for_each(|image| mean(image, dim, &mut self.pooled));
                &self.pooled
            }
        };
        self.half.resize(if request.dtype == ElementType::Fp32 { 0 } else { values.len() }, 0);
        match request.dtype {
            ElementType::Fp32 => return bytemuck::cast_slice(values),
            ElementType::Bf16 => {
                bytemuck::cast_slice_mut::<_, bf16>(&mut self.half).convert_from_f32_slice(values);
            }
            ElementType::Fp16 => {
                let half: &mut [f16] = bytemuck::cast_slice_mut(&mut self.half);
                half.convert_from_f32_slice(values);
                let lost = |(h, v): (&f16, &f32)| (h.is_infinite() && v.is_finite()).then_some(*v);
                if !self.reported
                    && let Some(value) = half.iter().zip(values).find_map(lost)
                {
                    (self.overflow, self.reported) = (Some(value), true);
                }
            }
        }
        bytemuck::cast_slice(&self.half)
    }
}

/// Adds the mean over tokens of `image: [tokens, dim]` to the end of `out`. Summed in f64, so that it is the nearest
/// f32 to the mean whatever the number of tokens.
fn mean(image: &[f32], dim: usize, out: &mut Vec<f32>) {
    let tokens = image.len() / dim.max(1);
    let mut sums = vec![0.0f64; dim];
    for token in image.chunks_exact(dim) {
        sums.iter_mut().zip(token).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    out.extend(sums.iter().map(|sum| (sum / tokens as f64) as f32));
}
