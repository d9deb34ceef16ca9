//! Matrix products through cuBLASLt: bf16 operands, sums in f32, bf16 or f32 results.
//!
//! A product with given sizes, strides, types and fusions has one *plan*, made when it first runs: cuBLASLt's
//! descriptors and the algorithms that it proposes. By default the first of them runs; with [`tune`] they are timed and
//! the fastest runs. Only algorithms that give the same bits every time are asked for, but two algorithms may differ in
//! the last bits: [`export`] and [`import`] carry the choices from one run to the next.
//!
//! The products of a linear layer are in [`crate::linear::cuda`]; they alone use this.

mod key;
mod library;
mod objects;
mod plan;
mod tuning;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{CudaError, Gpu};
pub(crate) use key::{ALIGNED, Added, Epilogue, Key, Number, Op, Pointers};
use library::{Library, refused};
use plan::Plan;

/// Algorithms that were chosen, to be chosen again by a later run on the same kind of device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Version of cuBLASLt, such as `13.0.2`. Algorithms mean nothing to another one.
    pub version: String,
    /// Name of the device.
    pub device: String,
    /// Each product as text, and the 64 bytes by which cuBLASLt knows the algorithm. Sorted by product.
    pub algorithms: Vec<(String, [u64; 8])>,
}

/// Products of one device. The library is opened by the first of them.
#[derive(Default)]
pub(crate) struct Blas(Mutex<State>);

#[derive(Default)]
struct State {
    /// Plans are destroyed before the library.
    plans: HashMap<Key, Option<Plan>>,
    library: Option<Library>,
    tune: bool,
    /// Choices of an earlier run.
    kept: BTreeMap<String, [u64; 8]>,
    notes: Vec<String>,
}

fn lock(gpu: &Gpu) -> MutexGuard<'_, State> {
    gpu.blas().0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn open(&mut self, gpu: &Gpu) -> Result<&Library, CudaError> {
        match &mut self.library {
            Some(library) => Ok(library),
            none => Ok(none.insert(Library::open(gpu)?)),
        }
    }

    /// Makes the plan if there is none yet.
    fn plan(&mut self, gpu: &Gpu, key: &Key) -> Result<(), CudaError> {
        if self.plans.contains_key(key) {
            return Ok(());
        }
        let mut plan = Plan::new(self.open(gpu)?, key)?;
        if let (Some(plan), Some(bits)) = (&mut plan, self.kept.get(&key.to_string()))
            && !plan.keep(bits)
        {
            let note = "cuBLASLt does not propose the algorithm of the earlier run, another one was chosen";
            self.notes.push(format!("{key}: {note}"));
        }
        if plan.is_none() && key.epilogue != Epilogue::Nothing {
            self.notes.push(format!("{key}: cuBLASLt cannot fuse this, the GELU runs by itself"));
        }
        self.plans.insert(*key, plan);
        Ok(())
    }
}

/// Opens cuBLASLt and reserves its workspace, 32 MiB (4 MiB before sm_90), so that what is measured as free memory
/// afterwards stays free. The first product does this otherwise.
///
/// # Errors
/// [`CudaError::MissingLibrary`], [`CudaError::Blas`], [`CudaError::OutOfMemory`].
pub fn prepare(gpu: &Gpu) -> Result<(), CudaError> {
    lock(gpu).open(gpu).map(|_| ())
}

/// Whether products that run for the first time from now on choose their algorithm by measurement (some milliseconds
/// each, and the memory of one result where a product adds to what is there). Off at first.
pub fn tune(gpu: &Gpu, on: bool) {
    lock(gpu).tune = on;
}

/// What somebody who watches the run should know, each said once: fusions that are missing, measurements that could not
/// be made, choices that could not be kept.
pub fn notes(gpu: &Gpu) -> Vec<String> {
    std::mem::take(&mut lock(gpu).notes)
}

/// One line a plan: the product, the algorithm's place among those proposed, and its time where it was measured.
pub fn describe(gpu: &Gpu) -> Vec<String> {
    let state = lock(gpu);
    let plans = state.plans.iter().filter_map(|(key, plan)| Some((key, plan.as_ref()?)));
    let mut lines: Vec<_> = plans
        .map(|(key, plan)| {
            let place =
                format!("{key}: algorithm {} of {}", plan.chosen + 1, plan.candidates.len());
            match plan.time_s {
                Some(time_s) => {
                    let rate = key.flops() / time_s * 1e-12;
                    format!("{place}, {:.1} us, {rate:.1} TFLOP/s", time_s * 1e6)
                }
                None => place,
            }
        })
        .collect();
    lines.sort();
    lines
}

/// The algorithms chosen so far, those of an earlier run that were not needed yet included.
pub fn export(gpu: &Gpu) -> Chosen {
    let state = lock(gpu);
    let mut algorithms = state.kept.clone();
    for (key, plan) in &state.plans {
        if let Some(plan) = plan {
            algorithms.insert(key.to_string(), plan.algorithm().data);
        }
    }
    Chosen {
        version: state.library.as_ref().map_or_else(String::new, |library| library.version.clone()),
        device: gpu.name().to_owned(),
        algorithms: algorithms.into_iter().collect(),
    }
}

/// Uses the algorithms of an earlier run. Returns why not, if it cannot: they are chosen anew then. Reasons that show
/// only when a product runs are among the [`notes`].
pub fn import(gpu: &Gpu, chosen: &Chosen) -> Vec<String> {
    if chosen.algorithms.is_empty() {
        return Vec::new();
    }
    let mut state = lock(gpu);
    let version = match state.open(gpu) {
        Ok(library) => library.version.clone(),
        Err(error) => return vec![error.to_string()],
    };
    let mut warnings = Vec::new();
    let mut differs = |what: &str, then: &str, now: &str| {
        if then != now {
            warnings.push(format!(
                "matrix products were chosen with {what} {then}, this is {now}: they are chosen anew, and results may \
                 differ in the last bits"
            ));
        }
    };
    differs("cuBLASLt", &chosen.version, &version);
    differs("device", &chosen.device, gpu.name());
    if warnings.is_empty() {
        state.kept = chosen.algorithms.iter().cloned().collect();
        state.plans.clear();
    }
    warnings
}

/// Whether cuBLASLt can run a product. If a fusion is what it cannot do, that is noted.
pub(crate) fn possible(gpu: &Gpu, key: &Key) -> Result<bool, CudaError> {
    gpu.bind()?;
    let mut state = lock(gpu);
    state.plan(gpu, key)?;
    Ok(state.plans.get(key).is_some_and(Option::is_some))
}

/// Puts a product on the stream.
///
/// # Safety
/// The pointers are those of live matrices of the sizes, strides and alignments in the key; the result and a second
/// matrix that is written overlap nothing else.
pub(crate) unsafe fn run(gpu: &Gpu, key: &Key, pointers: Pointers) -> Result<(), CudaError> {
    gpu.bind()?;
    let mut state = lock(gpu);
    state.plan(gpu, key)?;
    let State { plans, library, tune, notes, .. } = &mut *state;
    let (Some(Some(plan)), Some(library)) = (plans.get_mut(key), library) else {
        let message = "it has no algorithm for these sizes, strides and alignments".to_owned();
        return Err(CudaError::Blas { doing: key.to_string(), message });
    };
    if *tune && !plan.settled {
        // SAFETY: the plan is the key's, the caller vouches for the pointers.
        notes.extend(unsafe { tuning::settle(gpu, library, key, plan, pointers) }?);
    }
    // SAFETY: as above.
    unsafe { library.multiply(gpu, key, plan, plan.algorithm(), pointers) }.map_err(refused(key))
}
