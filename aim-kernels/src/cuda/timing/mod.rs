//! Times of work on a device, and what there is to time.
//!
//! Times are the device's own: events on the stream that the work is on. [`measure`] times any work, [`Case`] is a kernel
//! or a product at the shape of a model, with buffers of its own and the bytes and operations that it cannot do without.
//!
//! | module | what |
//! |---|---|
//! | `kernels` | every kernel at the shapes of a training step |
//! | `products` | every matrix product of a training step |
//! | `sets` | their buffers: random, and several sets in turn, so that no run finds its inputs in the cache |

mod kernels;
mod products;
mod sets;

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{CudaError, Gpu};
pub use kernels::{copy, head_kernels, optimizer_kernels, probe_kernels, trunk_kernels};
pub use products::{cube, head_products, trunk_products};
use sets::Part;
pub use sets::Sets;

/// Time that a sample lasts at least, seconds: events resolve about half a microsecond.
const SAMPLE_S: f64 = 100e-6;
/// Most runs in a sample.
const MOST_REPEATS: f64 = 20.0;
/// Work before the first sample, seconds and runs: an idle chip has a slow clock.
const WARM_S: f64 = 20e-3;
const MOST_WARM: f64 = 500.0;

/// What the chip is, as far as measuring depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// Multiprocessors.
    pub processors: usize,
}

/// Asks the driver about the chip.
///
/// # Errors
/// [`CudaError::Driver`].
pub fn chip(gpu: &Gpu) -> Result<Chip, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let ask = |attribute| {
        let value = gpu.context().attribute(attribute);
        value.map(|value| value.max(0) as usize).map_err(CudaError::driver("asking about the chip"))
    };
    Ok(Chip {
        l2_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        processors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// Two events on the device's stream, to be used again and again.
pub struct Timer<'a> {
    gpu: &'a Gpu,
    start: Event,
    end: Event,
}

impl<'a> Timer<'a> {
    /// Makes the events.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(gpu: &'a Gpu) -> Result<Self, CudaError> {
        gpu.bind()?;
        Ok(Self { gpu, start: Event::new()?, end: Event::new()? })
    }

    /// Marks the start, behind all work that is on the stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn start(&self) -> Result<(), CudaError> {
        self.start.record(self.gpu)
    }

    /// Marks the end, waits for it, and gives the seconds on the device since [`Timer::start`].
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for faults of kernels that ran before.
    pub fn stop(&self) -> Result<f64, CudaError> {
        self.end.record(self.gpu)?;
        self.end.since(&self.start)
    }
}

/// Seconds that each of `runs` samples of a piece of work took on the device. The work gets the number of the run, from
/// 0 on, to take other buffers in each; what `warmup` runs do first is not timed. A sample is one run, or as many in a
/// row as last 0.1 ms, and its time is divided by their number.
///
/// The host puts all runs on the stream without waiting, so a kernel's time is its own as long as it lasts longer than
/// its launch on the host, some 5 us. Work that waits for the device by itself is timed with its waits.
///
/// # Errors
/// Those of the work, and [`CudaError::Driver`].
pub fn measure<E: From<CudaError>>(
    gpu: &Gpu,
    warmup: usize,
    runs: usize,
    mut work: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let mut number = 0;
    let mut several = |count: usize| {
        for _ in 0..count {
            work(number)?;
            number += 1;
        }
        Ok::<(), E>(())
    };
    several(warmup)?;
    let timer = Timer::new(gpu)?;
    timer.start()?;
    several(1)?;
    let once_s = timer.stop()?;
    let in_time = |time_s: f64, most: f64| (time_s / once_s.max(1e-9)).min(most);
    let repeats = in_time(SAMPLE_S, MOST_REPEATS).ceil().max(1.0) as usize;
    // Not waited for, so that the host has a lead, which it keeps.
    several(in_time(WARM_S, MOST_WARM) as usize)?;
    let mut events = vec![Event::new()?];
    events[0].record(gpu)?;
    for _ in 0..runs {
        several(repeats)?;
        let event = Event::new()?;
        event.record(gpu)?;
        events.push(event);
    }
    let times = events.windows(2).map(|pair| Ok(pair[1].since(&pair[0])? / repeats as f64));
    times.collect()
}

/// The value in the middle; of an even number the higher of the two. NaN when there are none.
pub fn median(values: &[f64]) -> f64 {
    share(values, 0.5)
}

/// The value that the given share of them lies below.
pub fn share(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Sizes of a training step, and which rows predict.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Images.
    pub images: usize,
    /// Rows and columns of pixels of a square image.
    pub side: usize,
    /// Rows and columns of pixels of a patch.
    pub patch: usize,
    /// Width of the trunk.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the pixel head.
    pub head_width: usize,
    /// Hidden width of an MLP over its input width.
    pub mlp_ratio: usize,
    /// Prefix of each image.
    pub prefix: Vec<i32>,
    /// Rows of the trunk's output that predict, ascending.
    pub rows: Vec<i32>,
    /// The patch that each is compared with.
    pub targets: Vec<i32>,
}

impl Sizes {
    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        (self.side / self.patch).pow(2)
    }

    /// Tokens of all images.
    fn all_tokens(&self) -> usize {
        self.images * self.tokens()
    }

    /// Values of a patch.
    fn patch_dim(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// Values from one row of patches, predictions or the matrices that meet them to the next: 16 bytes of bf16 divide
    /// it.
    fn patch_stride(&self) -> usize {
        self.patch_dim().next_multiple_of(8)
    }

    /// Pairs of a query and a key that it sees, over all images and one head.
    fn visible(&self) -> f64 {
        let tokens = self.tokens() as f64;
        let pairs = |&prefix: &i32| {
            let prefix = f64::from(prefix).clamp(0.0, tokens);
            prefix * prefix + (tokens * (tokens + 1.0) - prefix * (prefix + 1.0)) / 2.0
        };
        self.prefix.iter().map(pairs).sum()
    }
}

/// What puts a case's work on the stream, with the buffers of one set.
type Work = Box<dyn Fn(&Gpu, &Sets, usize) -> Result<(), CudaError>>;

/// A kernel or a product at a shape, without its buffers.
pub struct Case {
    /// Such as `layer_norm/backward`.
    pub name: String,
    /// Its shape, for people.
    pub shape: String,
    /// Bytes that must move: each input read once, each output written once.
    pub bytes: f64,
    /// Floating-point operations on matrix units; of attention those of visible pairs of query and key. 0 elsewhere.
    pub flops: f64,
    /// The same with the masked part.
    pub dense_flops: f64,
    parts: Vec<Part>,
    work: Work,
    /// Fills what random values cannot, once for each set.
    first: Option<Work>,
}

impl Case {
    /// A case without operations on matrix units.
    fn new(
        name: impl Into<String>,
        shape: impl Into<String>,
        parts: Vec<Part>,
        work: impl Fn(&Gpu, &Sets, usize) -> Result<(), CudaError> + 'static,
    ) -> Self {
        let bytes = parts.iter().map(Part::moved).sum();
        let (name, shape, work) = (name.into(), shape.into(), Box::new(work));
        Self { name, shape, bytes, flops: 0.0, dense_flops: 0.0, parts, work, first: None }
    }

    fn first(self, work: impl Fn(&Gpu, &Sets, usize) -> Result<(), CudaError> + 'static) -> Self {
        Self { first: Some(Box::new(work)), ..self }
    }

    fn flops(self, visible: f64, dense: f64) -> Self {
        Self { flops: visible, dense_flops: dense, ..self }
    }

    /// Reserves its buffers and fills them.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn ready(self, gpu: &Arc<Gpu>) -> Result<Ready, CudaError> {
        let sets = Sets::new(gpu, &self.parts)?;
        if let Some(first) = &self.first {
            (0..sets.count()).try_for_each(|set| first(gpu, &sets, set))?;
        }
        Ok(Ready { gpu: Arc::clone(gpu), case: self, sets })
    }
}

/// A case with its buffers.
pub struct Ready {
    gpu: Arc<Gpu>,
    case: Case,
    sets: Sets,
}

impl Ready {
    /// What it is.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// Puts run `number` on the stream, with the set of buffers whose turn it is.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run(&self, number: usize) -> Result<(), CudaError> {
        (self.case.work)(&self.gpu, &self.sets, number)
    }

    /// As [`measure`].
    ///
    /// # Errors
    /// As [`measure`].
    pub fn measure(&self, warmup: usize, runs: usize) -> Result<Vec<f64>, CudaError> {
        measure(&self.gpu, warmup, runs, |number| self.run(number))
    }
}

/// An event with a time.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self, CudaError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map(Self)
            .map_err(CudaError::driver("making an event"))
    }

    fn record(&self, gpu: &Gpu) -> Result<(), CudaError> {
        // SAFETY: a live event and the device's stream.
        unsafe { result::event::record(self.0, gpu.stream()) }
            .map_err(CudaError::driver("recording an event"))
    }

    /// Waits for the event; seconds since an earlier one.
    fn since(&self, start: &Self) -> Result<f64, CudaError> {
        // SAFETY: two live events that were recorded on one stream.
        let elapsed_ms = unsafe {
            result::event::synchronize(self.0)
                .and_then(|()| result::event::elapsed(start.0, self.0))
        };
        let elapsed_ms = elapsed_ms.map_err(CudaError::driver("reading a time"))?;
        Ok(f64::from(elapsed_ms) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!((median(&values), share(&values, 0.1), share(&values, 1.0)), (3.0, 1.0, 5.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn visible_pairs_are_counted() {
        let sizes = Sizes {
            images: 3,
            side: 8,
            patch: 4,
            dim: 64,
            heads: 1,
            head_width: 64,
            mlp_ratio: 4,
            prefix: vec![0, 2, 4],
            rows: Vec::new(),
            targets: Vec::new(),
        };
        let mut expected = 0;
        for &prefix in &sizes.prefix {
            for query in 0..4 {
                expected += (0..4).filter(|&key| key <= query || key < prefix).count();
            }
        }
        assert_eq!(sizes.visible(), expected as f64);
    }
}
