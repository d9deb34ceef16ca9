//! Worker threads that make chunks ahead of time, handed out in order.
//!
//! A fixed number of chunk buffers goes round: to a worker with the number of the chunk to make,
//! back with its content, and on to the next chunk once the consumer is done with it. Both queues
//! can hold all buffers, so nobody ever blocks on a full queue, and memory is bounded by their
//! number.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::plan::{Chunk, Plan, Scratch};
use crate::error::{Error, Result};

/// Most worker threads.
const MAX_WORKERS: usize = 1024;

/// A chunk to make, in the buffer to use.
struct Job {
    number: u64,
    chunk: Chunk,
}

/// A chunk made, or why not.
struct Done {
    number: u64,
    chunk: Chunk,
    outcome: Result<()>,
}

/// Makes the chunks of a plan, one after the other for the consumer.
pub(super) struct Engine {
    plan: Arc<Plan>,
    mode: Mode,
    next: u64,
    failed: bool,
}

enum Mode {
    /// No threads: a chunk is made when it is asked for.
    Inline {
        scratch: Box<Scratch>,
        chunk: Chunk,
    },
    Threads(Threads),
}

struct Threads {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    /// Chunks that arrived before their turn; chunk `n` waits at `n % ready.len()`.
    ready: Vec<Option<Done>>,
    handles: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let workers = plan.options.workers;
        if workers > MAX_WORKERS {
            return Err(Error::Config(format!("{workers} workers: expected 0 to {MAX_WORKERS}")));
        }
        // Made here even for threads, so that impossible options fail now.
        let scratch = Box::new(plan.scratch()?);
        let plan = Arc::new(plan);
        let mode = if workers == 0 {
            Mode::Inline { scratch, chunk: Chunk::default() }
        } else {
            Mode::Threads(Threads::start(&plan, workers)?)
        };
        Ok(Self { plan, mode, next: 0, failed: false })
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Makes every later call fail.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Gives the next chunk to `take`; `None` when there are no more.
    pub(super) fn next_chunk<T>(
        &mut self,
        take: impl FnOnce(&mut Chunk) -> T,
    ) -> Result<Option<T>> {
        if self.failed {
            return Err(Error::Stopped { reason: "an earlier batch failed".into() });
        }
        if self.plan.num_chunks().is_some_and(|total| self.next >= total) {
            return Ok(None);
        }
        let result = match &mut self.mode {
            Mode::Inline { scratch, chunk } => {
                let stop = AtomicBool::new(false);
                make(&self.plan, self.next, scratch, &stop, chunk).map(|()| take(chunk))
            }
            Mode::Threads(threads) => threads.wait_for(self.next).map(|mut chunk| {
                let taken = take(&mut chunk);
                let number = self.next + threads.ready.len() as u64;
                threads.order(&self.plan, number, chunk);
                taken
            }),
        };
        self.failed = result.is_err();
        self.next += 1;
        result.map(Some)
    }
}

impl Threads {
    fn start(plan: &Arc<Plan>, workers: usize) -> Result<Self> {
        let ahead = plan.options.prefetch_batches.max(1) as u64 * plan.chunks_per_batch();
        let buffers = usize::try_from(ahead).unwrap_or(usize::MAX).max(workers * 2);
        let (jobs, job_queue) = bounded(buffers);
        let (done_queue, done) = bounded(buffers);
        let stop = Arc::new(AtomicBool::new(false));
        let mut this = Self {
            jobs: Some(jobs),
            done,
            ready: (0..buffers).map(|_| None).collect(),
            handles: Vec::with_capacity(workers),
            stop,
        };
        for worker in 0..workers {
            let (plan, stop) = (Arc::clone(plan), Arc::clone(&this.stop));
            let (job_queue, done_queue) = (job_queue.clone(), done_queue.clone());
            let mut scratch = plan.scratch()?;
            let handle = std::thread::Builder::new()
                .name(format!("aim-data-{worker}"))
                .spawn(move || work(&plan, &job_queue, &done_queue, &mut scratch, &stop))
                .map_err(Error::io("start", format!("data loading thread {worker}")))?;
            this.handles.push(handle);
        }
        for number in 0..buffers as u64 {
            this.order(plan, number, Chunk::default());
        }
        Ok(this)
    }

    /// Has a chunk made, unless there is none of that number.
    fn order(&self, plan: &Plan, number: u64, chunk: Chunk) {
        if plan.num_chunks().is_some_and(|total| number >= total) {
            return;
        }
        if let Some(jobs) = &self.jobs {
            // Fails only when all workers have gone, which the next receive reports.
            let _ = jobs.send(Job { number, chunk });
        }
    }

    /// Waits for the chunk of this number, keeping others that come first.
    fn wait_for(&mut self, number: u64) -> Result<Chunk> {
        let places = self.ready.len() as u64;
        loop {
            if let Some(done) = self.ready[(number % places) as usize].take() {
                return done.outcome.map(|()| done.chunk);
            }
            let Ok(done) = self.done.recv() else {
                return Err(Error::Stopped { reason: "all loading threads have ended".into() });
            };
            let place = (done.number % places) as usize;
            self.ready[place] = Some(done);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Closes the queue, which ends the workers once it is empty.
        self.jobs = None;
        for handle in self.handles.drain(..) {
            // A panic outside a chunk has been reported already, by the closed queue.
            let _ = handle.join();
        }
    }
}

/// A worker's life.
fn work(
    plan: &Plan,
    jobs: &Receiver<Job>,
    done: &Sender<Done>,
    scratch: &mut Scratch,
    stop: &AtomicBool,
) {
    for Job { number, mut chunk } in jobs {
        let outcome = make(plan, number, scratch, stop, &mut chunk);
        if done.send(Done { number, chunk, outcome }).is_err() {
            return;
        }
    }
}

/// Makes a chunk; a panic becomes an error.
fn make(
    plan: &Plan,
    number: u64,
    scratch: &mut Scratch,
    stop: &AtomicBool,
    chunk: &mut Chunk,
) -> Result<()> {
    // After a panic nothing made by this engine is used again.
    let outcome = catch_unwind(AssertUnwindSafe(|| plan.fill(number, scratch, stop, chunk)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::WorkerPanic { message: text.unwrap_or_else(|| "no message".into()) })
    })
}
