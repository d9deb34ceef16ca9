//! Visiting every sample of a source on several threads.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::decode::{DecodeLimits, ImageFormat, decode};
use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::source::{Payload, Sample, Source};

/// Samples a thread takes at a time.
const BLOCK: u64 = 64;

/// How far a long operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Samples finished.
    pub done: u64,
    /// Samples in all.
    pub total: u64,
}

/// Told about progress; answers whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// How to go through a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// Threads; 0 counts as 1.
    pub workers: usize,
    /// Limits for decoding.
    pub limits: DecodeLimits,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { workers: 1, limits: DecodeLimits::default() }
    }
}

/// A sample read and decoded.
pub(crate) struct Scanned {
    pub(crate) label: Option<u32>,
    /// Stored bytes.
    pub(crate) bytes: u64,
    pub(crate) format: &'static str,
    /// Pixels; `None` for tensors.
    pub(crate) image: Option<Image>,
}

/// Reads and decodes every sample and hands it to `visit` with the accumulator of the visiting
/// thread; returns the accumulators, whose number and division of work mean nothing.
pub(crate) fn scan<T: Default + Send>(
    source: &dyn Source,
    options: &ScanOptions,
    progress: OnProgress<'_>,
    visit: impl Fn(&mut T, u64, Result<Scanned, Defect>) + Sync,
) -> Result<Vec<T>> {
    let total = source.len();
    let workers = options.workers.clamp(1, 1024);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    // Storage that does not answer is no defect of a sample, and each further one would wait as
    // long for it.
    let unavailable = OnceLock::new();
    let (finished, blocks) = crossbeam_channel::bounded(workers * 2);
    let work = |finished: crossbeam_channel::Sender<u64>| {
        let mut accumulator = T::default();
        while !stop.load(Ordering::Relaxed) {
            let start = next.fetch_add(BLOCK, Ordering::Relaxed);
            if start >= total {
                break;
            }
            let end = total.min(start + BLOCK);
            for index in start..end {
                let loaded = load(source, index, &options.limits);
                if let Err(defect) = &loaded
                    && defect.kind == DefectKind::Unavailable
                {
                    unavailable.get_or_init(|| Box::new(defect.clone()));
                    stop.store(true, Ordering::Relaxed);
                    return accumulator;
                }
                visit(&mut accumulator, index, loaded);
            }
            if finished.send(end - start).is_err() {
                break;
            }
        }
        accumulator
    };
    let mut done = 0;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                let finished = finished.clone();
                scope.spawn(|| work(finished))
            })
            .collect();
        drop(finished);
        for count in &blocks {
            done += count;
            if progress(Progress { done, total }).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        handles.into_iter().map(|handle| handle.join()).collect()
    });
    if let Some(defect) = unavailable.into_inner() {
        return Err(Error::Unavailable { defect });
    }
    if stop.load(Ordering::Relaxed) && done < total {
        return Err(Error::Cancelled { done, total });
    }
    let panicked = |_| Error::WorkerPanic { message: "while a source was gone through".into() };
    outcomes.into_iter().map(|outcome| outcome.map_err(panicked)).collect()
}

fn load(source: &dyn Source, index: u64, limits: &DecodeLimits) -> Result<Scanned, Defect> {
    let Sample { payload, label } = source.read(index, 0)?;
    let (bytes, format, image) = match payload {
        Payload::Encoded(bytes) => {
            let image = decode(&bytes, limits)
                .map_err(|error| source.defect(index, error.kind, error.reason))?;
            let format = match ImageFormat::detect(&bytes) {
                Some(format) => format.name(),
                None => "unknown",
            };
            (bytes.len(), format, Some(image))
        }
        Payload::Pixels(image) | Payload::Final(image) => {
            (image.pixels().len(), "pixels", Some(image))
        }
        Payload::Tensor(values) => (values.len() * 4, "tensor", None),
    };
    Ok(Scanned { label, bytes: bytes as u64, format, image })
}
