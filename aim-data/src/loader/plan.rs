//! What a loader loads: from the number of a chunk to its samples, as a pure function.

use std::sync::atomic::{AtomicBool, Ordering};

use super::LoaderOptions;
use super::batch::{Batch, Images, Layout};
use super::skipped::{NAMED_DEFECTS, Skipped};
use crate::augment::{AugmentKey, Preprocessor};
use crate::decode::DecodeLimits;
use crate::error::{Defect, DefectKind, Error, Result};
use crate::sampler::{Draw, Mixture, Permutation};
use crate::source::{Payload, SampleFormat, Source};

/// Samples that one worker makes at a time. Batches are put together from chunks, so that several
/// workers share a batch; the number has no influence on what is in it.
const CHUNK: usize = 16;
/// Candidates tried for one place in a batch before giving up.
const MAX_TRIES: u64 = 100;

/// The order of samples.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Without end, shuffled anew each epoch; bad samples are replaced.
    Endless { first_sample: u64 },
    /// Every sample once, in order or shuffled; bad samples are left out.
    Once { total: u64, shuffle: Option<Permutation> },
}

/// Everything that determines the content of every chunk.
pub(super) struct Plan {
    pub(super) mixture: Mixture,
    pub(super) order: Order,
    pub(super) seed: u64,
    pub(super) layout: Layout,
    pub(super) options: LoaderOptions,
}

/// Part of a batch, with what was skipped to make it.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) batch: Batch,
    pub(super) skipped: Vec<Skipped>,
}

/// A worker's own working memory.
pub(super) struct Scratch {
    preprocessor: Preprocessor,
    limits: DecodeLimits,
    layout: Layout,
}

impl Plan {
    pub(super) fn new(
        mixture: Mixture,
        order: Order,
        seed: u64,
        options: LoaderOptions,
    ) -> Result<Self> {
        let LoaderOptions { batch_size, rank, world_size, .. } = options;
        if batch_size == 0 || batch_size > 1 << 20 {
            return Err(Error::Config(format!("batch size {batch_size}: expected 1 to 1048576")));
        }
        if rank >= world_size {
            let text = format!("rank {rank} of {world_size}: ranks count from 0");
            return Err(Error::Config(text));
        }
        let layout = layout(&mixture, &options)?;
        Ok(Self { mixture, order, seed, layout, options })
    }

    pub(super) fn scratch(&self) -> Result<Scratch> {
        let Layout { height, width, .. } = self.layout;
        let preprocessor = Preprocessor::new(self.options.transform, height, width)?;
        Ok(Scratch { preprocessor, limits: self.options.limits, layout: self.layout })
    }

    pub(super) fn chunks_per_batch(&self) -> u64 {
        self.options.batch_size.div_ceil(CHUNK) as u64
    }

    /// Number of chunks; `None` without end.
    pub(super) fn num_chunks(&self) -> Option<u64> {
        let Order::Once { total, .. } = self.order else {
            return None;
        };
        let global_batch = self.options.batch_size as u64 * self.options.world_size as u64;
        Some(total.div_ceil(global_batch) * self.chunks_per_batch())
    }

    /// Number in the run of the first sample in this rank's `batch`-th batch.
    pub(super) fn first_sample(&self, batch: u64) -> u64 {
        let LoaderOptions { batch_size, rank, world_size, .. } = self.options;
        let first = match self.order {
            Order::Endless { first_sample } => first_sample,
            Order::Once { .. } => 0,
        };
        first + (batch * world_size as u64 + rank as u64) * batch_size as u64
    }

    /// Makes a chunk. `stop` ends it early, without a result.
    pub(super) fn fill(
        &self,
        number: u64,
        scratch: &mut Scratch,
        stop: &AtomicBool,
        chunk: &mut Chunk,
    ) -> Result<()> {
        chunk.batch.reset(self.layout);
        chunk.skipped.clear();
        let first = self.first_sample(number / self.chunks_per_batch());
        let from = (number % self.chunks_per_batch()) as usize * CHUNK;
        let until = self.options.batch_size.min(from + CHUNK);
        for slot in from..until {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped { reason: "it is being dropped".into() });
            }
            let sample = first + slot as u64;
            match self.order {
                Order::Endless { .. } => self.fill_slot(sample, scratch, chunk)?,
                Order::Once { total, shuffle } if sample < total => {
                    let index = shuffle.map_or(sample, |order| order.get(sample));
                    let draw = Draw { source: 0, epoch: 0, position: sample, index };
                    if let Err(defect) = self.load(&draw, 0, scratch, &mut chunk.batch)? {
                        chunk.skipped.push(Skipped { source: 0, epoch: 0, defect });
                    }
                }
                Order::Once { .. } => break,
            }
        }
        Ok(())
    }

    /// Loads a sample of the run, or what stands in for it.
    fn fill_slot(&self, sample: u64, scratch: &mut Scratch, chunk: &mut Chunk) -> Result<()> {
        let draw = self.mixture.draw(self.seed, sample);
        let already = chunk.skipped.len();
        let tries = MAX_TRIES.min(self.source(&draw)?.len());
        for attempt in 0..tries {
            let draw = self.mixture.substitute(self.seed, &draw, attempt);
            match self.load(&draw, attempt as u16, scratch, &mut chunk.batch)? {
                Ok(()) => return Ok(()),
                Err(defect) => {
                    let Draw { source, epoch, .. } = draw;
                    chunk.skipped.push(Skipped { source, epoch, defect });
                }
            }
        }
        let failed = chunk.skipped.iter().skip(already).take(NAMED_DEFECTS);
        let first = failed.map(|skipped| skipped.defect.clone()).collect();
        Err(Error::NoUsableSample { tried: tries, first })
    }

    fn source(&self, draw: &Draw) -> Result<&dyn Source> {
        let source = self.mixture.sources().get(usize::from(draw.source));
        source.map(AsRef::as_ref).ok_or_else(|| Error::Config("no such source".into()))
    }

    /// Reads, decodes and transforms one sample onto the end of `batch`.
    ///
    /// The outer error ends the run; the inner one is this sample's.
    fn load(
        &self,
        draw: &Draw,
        attempt: u16,
        scratch: &mut Scratch,
        batch: &mut Batch,
    ) -> Result<Result<(), Defect>> {
        let source = self.source(draw)?;
        let Draw { source: number, epoch, index, .. } = *draw;
        let sample = match source.read(index, epoch) {
            Ok(sample) => sample,
            Err(defect) if defect.kind == DefectKind::Unavailable => {
                return Err(Error::Unavailable { defect: Box::new(defect) });
            }
            Err(defect) => return Ok(Err(defect)),
        };
        let key = AugmentKey { seed: self.seed, epoch, index, source: number, attempt };
        if let Err((kind, reason)) = scratch.write(sample.payload, key, &mut batch.images)? {
            return Ok(Err(source.defect(index, kind, reason)));
        }
        batch.labels.push(sample.label);
        batch.keys.push(source.key_hash(index));
        batch.indices.push(index);
        batch.epochs.push(epoch);
        batch.sources.push(number);
        Ok(Ok(()))
    }
}

impl Scratch {
    /// Puts one sample's image at the end of `images`, or leaves them as they were.
    fn write(
        &mut self,
        payload: Payload,
        key: AugmentKey,
        images: &mut Images,
    ) -> Result<Result<(), (DefectKind, String)>> {
        let image = match (payload, &mut *images) {
            (Payload::Encoded(bytes), Images::U8(values)) => {
                if let Err(error) = self.preprocessor.decode(&bytes, &self.limits, key) {
                    return Ok(Err((error.kind, error.reason)));
                }
                let start = values.len();
                values.resize(start + self.preprocessor.output_len(), 0);
                self.preprocessor.render(&mut values[start..])?;
                return Ok(Ok(()));
            }
            (Payload::Pixels(image), _) => image,
            (Payload::Final(image), Images::U8(values)) => {
                let Layout { height, width, .. } = self.layout;
                if (image.height(), image.width()) != (height, width) {
                    let found = format!("{} x {}", image.height(), image.width());
                    return Err(Error::Config(format!(
                        "a source gave a final image of {found}, expected {height} x {width}"
                    )));
                }
                values.extend_from_slice(image.into_rgb().pixels());
                return Ok(Ok(()));
            }
            (Payload::Tensor(tensor), Images::F32(values)) => {
                let expected = self.preprocessor.output_len();
                if tensor.len() != expected {
                    let found = tensor.len();
                    return Err(Error::Config(format!(
                        "a source gave a tensor of {found} values, expected {expected}"
                    )));
                }
                values.extend_from_slice(&tensor);
                return Ok(Ok(()));
            }
            (other, _) => {
                let what = if matches!(other, Payload::Tensor(_)) { "values" } else { "pixels" };
                return Err(Error::Config(format!("a source gave {what} against its format")));
            }
        };
        let Images::U8(values) = images else {
            return Err(Error::Config("a source gave pixels against its format".into()));
        };
        let start = values.len();
        values.resize(start + self.preprocessor.output_len(), 0);
        self.preprocessor.apply(&image, key, &mut values[start..])?;
        Ok(Ok(()))
    }
}

/// The one layout that all sources agree on.
fn layout(mixture: &Mixture, options: &LoaderOptions) -> Result<Layout> {
    let (height, width) = (options.height, options.width);
    let mut float = None;
    for source in mixture.sources() {
        let (is_float, fixed) = match source.format() {
            SampleFormat::Image => (false, None),
            SampleFormat::Final { height, width } => (false, Some((height, width))),
            SampleFormat::Tensor { height, width } => (true, Some((height, width))),
        };
        if *float.get_or_insert(is_float) != is_float {
            let text = "normalised `tensors:` cannot be mixed with sources of images";
            return Err(Error::Config(text.into()));
        }
        if let Some((found_height, found_width)) = fixed
            && (found_height, found_width) != (height, width)
        {
            return Err(Error::Config(format!(
                "the images of {} are {found_height} x {found_width} and are not resized, the \
                 model takes {height} x {width}",
                source.location(0)
            )));
        }
    }
    Ok(Layout { float: float.unwrap_or(false), height, width })
}
