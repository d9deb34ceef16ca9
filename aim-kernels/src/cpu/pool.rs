//! One persistent pool of threads for all kernels of the process.
//!
//! A kernel cuts its work into *pieces* whose number and bounds depend on the shapes alone; threads only decide who
//! computes which piece. So the same inputs give the same bits for any number of threads. Each thread starts on its
//! own contiguous run of pieces (neighbours share packed operands in cache) and, when done, takes pieces from the far
//! end of the others' runs: on a shared machine a thread that loses its core does not hold the rest back.
//!
//! Workers spin for some tens of microseconds before they sleep, because the next kernel usually follows at once.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;

/// Most threads that are ever used.
const MAX_THREADS: usize = 256;
/// Pauses before an idle worker parks: about 50 us.
const SPINS: u32 = 4_000;

/// A piece range `[next, end)` packed in one word, so that owner and thieves take pieces with one compare-exchange.
#[repr(align(128))]
struct Run(AtomicU64);

impl Run {
    fn set(&self, next: usize, end: usize) {
        self.0.store((next as u64) << 32 | end as u64, Ordering::Relaxed);
    }

    /// Takes one piece from the front (the owner) or from the back (a thief).
    fn take(&self, front: bool) -> Option<usize> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let (next, end) = ((word >> 32) as usize, (word & 0xffff_ffff) as usize);
            if next >= end {
                return None;
            }
            let (piece, left) =
                if front { (next, (next + 1, end)) } else { (end - 1, (next, end - 1)) };
            let new = (left.0 as u64) << 32 | left.1 as u64;
            match self.0.compare_exchange_weak(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(piece),
                Err(found) => word = found,
            }
        }
    }
}

/// The job being run: a type-erased `&(dyn Fn(usize) + Sync)` that outlives the run.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));
// SAFETY: the closure behind the pointer is `Sync`, and `for_each` keeps it alive until every worker has left it.
unsafe impl Send for Job {}

struct Shared {
    /// Odd while a job is open to workers; bumped by one when it opens and when it closes.
    epoch: AtomicUsize,
    /// Workers inside the open job.
    inside: AtomicU32,
    /// Threads that take part in the open job.
    active: AtomicUsize,
    job: Mutex<Option<Job>>,
    runs: Vec<Run>,
    panicked: AtomicU32,
}

struct Pool {
    shared: &'static Shared,
    /// Held by the thread that runs a job. A second caller computes its pieces by itself.
    leader: Mutex<Vec<Thread>>,
    threads: AtomicUsize,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let shared = Box::leak(Box::new(Shared {
            epoch: AtomicUsize::new(0),
            inside: AtomicU32::new(0),
            active: AtomicUsize::new(1),
            job: Mutex::new(None),
            runs: (0..MAX_THREADS).map(|_| Run(AtomicU64::new(0))).collect(),
            panicked: AtomicU32::new(0),
        }));
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        Pool { shared, leader: Mutex::new(Vec::new()), threads: AtomicUsize::new(threads) }
    })
}

/// Sets how many threads kernels use in this process (at least 1). Results do not depend on it.
pub fn set_num_threads(threads: usize) {
    pool().threads.store(threads.clamp(1, MAX_THREADS), Ordering::Relaxed);
}

/// Threads that kernels use; the number of cores unless [`set_num_threads`] was called.
pub fn num_threads() -> usize {
    pool().threads.load(Ordering::Relaxed)
}

/// Calls `f(piece)` once for each piece in `0..pieces`, on the pool's threads and this one.
///
/// Called from inside a piece, or while another thread runs a job, it computes all pieces on the calling thread.
///
/// # Panics
/// If a piece panicked.
pub fn for_each(pieces: usize, f: impl Fn(usize) + Sync) {
    let pool = pool();
    let threads = num_threads().min(pieces);
    if threads <= 1 || pieces >= u32::MAX as usize {
        return (0..pieces).for_each(f);
    }
    let mut workers = match pool.leader.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return (0..pieces).for_each(f),
    };
    while workers.len() + 1 < threads {
        let index = workers.len() + 1;
        let shared = pool.shared;
        let spawned = std::thread::Builder::new()
            .name(format!("aim-kernel-{index}"))
            .spawn(move || worker(shared, index));
        match spawned {
            Ok(handle) => workers.push(handle.thread().clone()),
            // The system refuses more threads: the ones there are take all the pieces.
            Err(_) => break,
        }
    }
    let threads = threads.min(workers.len() + 1);
    run_job(pool.shared, &workers[..threads - 1], threads, pieces, &f);
}

fn run_job(
    shared: &Shared,
    workers: &[Thread],
    threads: usize,
    pieces: usize,
    f: &(dyn Fn(usize) + Sync),
) {
    for (index, run) in shared.runs[..threads].iter().enumerate() {
        run.set(pieces * index / threads, pieces * (index + 1) / threads);
    }
    // SAFETY: only the lifetime is erased. `Close` waits, also when a piece panics, until no worker is inside the job,
    // and workers read the pointer only while inside, so the closure outlives every use.
    let job: Job = Job(unsafe {
        std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(f)
    });
    *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
    shared.active.store(threads, Ordering::Relaxed);
    shared.panicked.store(0, Ordering::Relaxed);
    shared.epoch.fetch_add(1, Ordering::SeqCst);
    for worker in workers {
        worker.unpark();
    }

    /// Closes the job on the way out, also by panic.
    struct Close<'a>(&'a Shared);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            // No piece may start after this: empty the runs first, then wait for the pieces under way.
            for run in &self.0.runs {
                run.set(0, 0);
            }
            self.0.epoch.fetch_add(1, Ordering::SeqCst);
            let mut spins = 0u32;
            while self.0.inside.load(Ordering::SeqCst) != 0 {
                spins += 1;
                if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
    }
    let close = Close(shared);
    take_pieces(shared, 0, threads, f);
    drop(close);
    assert!(shared.panicked.load(Ordering::SeqCst) == 0, "a kernel thread panicked");
}

/// Computes this thread's run, then what is left of the others'.
fn take_pieces(shared: &Shared, index: usize, threads: usize, f: &(dyn Fn(usize) + Sync)) {
    for offset in 0..threads {
        let run = &shared.runs[(index + offset) % threads];
        while let Some(piece) = run.take(offset == 0) {
            f(piece);
        }
    }
}

fn worker(shared: &'static Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0u32;
        let epoch = loop {
            let epoch = shared.epoch.load(Ordering::SeqCst);
            if epoch != seen && epoch % 2 == 1 {
                break epoch;
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::park() }
        };
        seen = epoch;
        // Enter, then look again: if the job closed in between, its closure may be gone already.
        shared.inside.fetch_add(1, Ordering::SeqCst);
        if shared.epoch.load(Ordering::SeqCst) == epoch {
            let threads = shared.active.load(Ordering::Relaxed);
            let job = *shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(job) = job.filter(|_| index < threads) {
                let work = std::panic::AssertUnwindSafe(|| {
                    // SAFETY: this worker is counted in `inside` and the job is open, so `run_job` has not returned.
                    take_pieces(shared, index, threads, unsafe { &*job.0 });
                });
                if std::panic::catch_unwind(work).is_err() {
                    shared.panicked.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        shared.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A slice that pieces write at disjoint places.
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract makes concurrent slices disjoint; `T: Send` moves between threads.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Wraps `data` for the time of a [`for_each`].
    pub fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), lifetime: std::marker::PhantomData }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No two slices that are alive at the same time overlap.
    ///
    /// # Panics
    /// If the range leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "piece {start}+{len} outside {}",
            self.len
        );
        // SAFETY: in bounds by the assertion, disjoint from other live slices by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// First element, for kernels that address rows by stride.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.data
    }
}

/// Cuts `out` into chunks of `chunk` elements (the last may be shorter) and calls `f(index, chunk)` for each.
pub fn for_each_chunk<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let len = out.len();
    let chunk = chunk.max(1);
    let out = Disjoint::new(out);
    for_each(len.div_ceil(chunk), |i| {
        let start = i * chunk;
        // SAFETY: chunk i covers `[i * chunk, (i + 1) * chunk)` and no other.
        f(i, unsafe { out.slice(start, chunk.min(len - start)) });
    });
}

/// [`for_each_chunk`] over two slices cut into the same number of chunks.
///
/// # Panics
/// If the two cuts differ in number.
pub fn for_each_chunk2<T: Send, U: Send>(
    a: &mut [T],
    chunk_a: usize,
    b: &mut [U],
    chunk_b: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    let (len_a, len_b) = (a.len(), b.len());
    let (chunk_a, chunk_b) = (chunk_a.max(1), chunk_b.max(1));
    assert_eq!(
        len_a.div_ceil(chunk_a),
        len_b.div_ceil(chunk_b),
        "slices cut into different numbers of chunks"
    );
    let (a, b) = (Disjoint::new(a), Disjoint::new(b));
    for_each(len_a.div_ceil(chunk_a), |i| {
        let (start_a, start_b) = (i * chunk_a, i * chunk_b);
        // SAFETY: chunk i of each slice covers its own range and no other.
        let (ca, cb) = unsafe {
            (
                a.slice(start_a, chunk_a.min(len_a - start_a)),
                b.slice(start_b, chunk_b.min(len_b - start_b)),
            )
        };
        f(i, ca, cb);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_for_any_thread_count() {
        for threads in [1, 2, 3, 5, 8] {
            set_num_threads(threads);
            for pieces in [0, 1, 2, 7, 64, 1001] {
                let mut hits = vec![0u32; pieces];
                for_each_chunk(&mut hits, 1, |i, hit| hit[0] += 1 + i as u32);
                assert!(
                    hits.iter().enumerate().all(|(i, &h)| h == 1 + i as u32),
                    "{threads} threads, {pieces} pieces"
                );
            }
        }
        set_num_threads(2);
    }

    #[test]
    fn a_piece_may_call_the_pool_again() {
        let total = AtomicUsize::new(0);
        for_each(8, |_| {
            for_each(8, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(total.into_inner(), 64);
    }

    #[test]
    fn a_panicking_piece_panics_the_caller_and_the_pool_goes_on() {
        let result = std::panic::catch_unwind(|| {
            for_each(64, |i| assert!(i != 40, "planted"));
        });
        assert!(result.is_err());
        let mut out = vec![0u8; 100];
        for_each_chunk(&mut out, 3, |_, chunk| chunk.fill(1));
        assert!(out.iter().all(|&x| x == 1));
    }
}
