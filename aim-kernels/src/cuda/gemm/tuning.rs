//! Choosing an algorithm by measurement.

use cudarc::driver::{result, sys};

use super::key::{Added, Key, Pointers};
use super::library::Library;
use super::plan::Plan;
use crate::cuda::{CudaError, Gpu};

/// Timings of each candidate; the median counts.
const SAMPLES: usize = 5;
/// Device time that one timing should last at least, seconds: events resolve about half a microsecond.
const SAMPLE_S: f64 = 200e-6;
/// Most products in one timing.
const MOST_REPEATS: usize = 20;
/// How much faster than cuBLASLt's own first choice another must be to replace it: less is noise, and would change the
/// bits from run to run for nothing.
const GAIN: f64 = 0.98;

/// Times all candidates and keeps the fastest. Returns what kept it from measuring, if anything did.
///
/// The real product runs afterwards and writes its results whole, so candidates may write to the same place, except
/// where it adds to what is there: then they add to memory of their own.
///
/// # Safety
/// As for [`Library::multiply`].
pub(super) unsafe fn settle(
    gpu: &Gpu,
    library: &Library,
    key: &Key,
    plan: &mut Plan,
    mut pointers: Pointers,
) -> Result<Option<String>, CudaError> {
    plan.settled = true;
    let mut scratch = None;
    if key.added == Added::Result {
        let bytes = key.result_bytes();
        let Some(memory) = Scratch::new(gpu, bytes)? else {
            let megabytes = bytes.div_ceil(1 << 20);
            return Ok(Some(format!(
                "{key}: not measured, {megabytes} MiB for trial results are not free"
            )));
        };
        pointers.result = memory.0;
        scratch = Some(memory);
    }
    let clock = Clock::new(gpu)?;
    let mut repeats = Vec::new();
    for candidate in &plan.candidates {
        // The first run loads the kernel, the second tells how long one takes.
        let once = || {
            // SAFETY: the caller vouches for plan and pointers; the scratch memory is as large as the result.
            clock.time(1, || unsafe {
                library.multiply(gpu, key, plan, candidate, pointers).is_ok()
            })
        };
        let time_s = match once()? {
            Some(_) => once()?,
            None => None,
        };
        // A candidate that refuses to run is out.
        repeats.push(time_s.map(|time_s| {
            (SAMPLE_S / time_s.max(1e-9)).ceil().clamp(1.0, MOST_REPEATS as f64) as usize
        }));
    }
    // Candidates take turns, so that a change of the clock rate meets all of them.
    let mut times = vec![Vec::with_capacity(SAMPLES); plan.candidates.len()];
    for _ in 0..SAMPLES {
        for ((candidate, times), repeats) in plan.candidates.iter().zip(&mut times).zip(&repeats) {
            let Some(repeats) = *repeats else { continue };
            // SAFETY: as above.
            let run = || unsafe { library.multiply(gpu, key, plan, candidate, pointers).is_ok() };
            times.extend(clock.time(repeats, run)?);
        }
    }
    drop(scratch);
    if let Some((chosen, time_s)) = fastest(times) {
        (plan.chosen, plan.time_s) = (chosen, Some(time_s));
    }
    Ok(None)
}

/// The candidate with the smallest median, and that median; an earlier one if it is nearly as fast.
fn fastest(times: Vec<Vec<f64>>) -> Option<(usize, f64)> {
    let medians = times.into_iter().enumerate().filter_map(|(i, mut times)| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).map(|&median| (i, median))
    });
    let medians: Vec<_> = medians.collect();
    let best = *medians.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let first = *medians.first()?;
    Some(if best.1 < first.1 * GAIN { best } else { first })
}

/// Memory for trial results.
struct Scratch(sys::CUdeviceptr);

impl Scratch {
    /// `None` when the device has not as much free.
    fn new(gpu: &Gpu, bytes: usize) -> Result<Option<Self>, CudaError> {
        // SAFETY: a plain allocation, freed in `drop`.
        let Ok(start) = (unsafe { result::malloc_sync(bytes) }) else { return Ok(None) };
        let scratch = Self(start);
        // SAFETY: the memory just allocated.
        unsafe { result::memset_d8_async(start, 0, bytes, gpu.stream()) }
            .map_err(CudaError::driver("filling memory"))?;
        Ok(Some(scratch))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

/// Two events on the stream.
struct Clock<'a> {
    gpu: &'a Gpu,
    start: Event,
    end: Event,
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self, CudaError> {
        Ok(Self { gpu, start: Event::new()?, end: Event::new()? })
    }

    /// Seconds for one of `repeats` runs in a row on the device; `None` if one was refused.
    fn time(
        &self,
        repeats: usize,
        mut run: impl FnMut() -> bool,
    ) -> Result<Option<f64>, CudaError> {
        self.start.record(self.gpu)?;
        let ran = (0..repeats).all(|_| run());
        self.end.record(self.gpu)?;
        // SAFETY: two recorded events of the same stream.
        let elapsed_ms = unsafe {
            result::event::synchronize(self.end.0)
                .and_then(|()| result::event::elapsed(self.start.0, self.end.0))
        }
        .map_err(CudaError::driver("timing a product"))?;
        Ok(ran.then_some(f64::from(elapsed_ms) * 1e-3 / repeats as f64))
    }
}

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
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::fastest;

    #[test]
    fn a_candidate_must_be_clearly_faster_than_the_first() {
        assert_eq!(fastest(vec![vec![1.0, 9.0, 1.0], vec![0.99; 3]]), Some((0, 1.0)));
        assert_eq!(fastest(vec![vec![1.0; 3], vec![0.5, 7.0, 0.5], vec![0.6; 3]]), Some((1, 0.5)));
        // One that refused to run has no times.
        assert_eq!(fastest(vec![vec![], vec![2.0], vec![1.0]]), Some((2, 1.0)));
        assert_eq!(fastest(vec![vec![], vec![]]), None);
    }
}
