//! Parts of shards in memory: fetched once for all readers, ahead of them where they go forward.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::store::Object;
use super::{RemoteError, RemoteErrorKind, RemoteOptions, runtime};

/// Windows fetched ahead of a reader that goes forward.
const AHEAD: u64 = 2;
/// A share of the bytes fetched below which windows are not worth it.
const WORTH_WHILE: f64 = 0.25;
/// Reads one after the other in a shard after which windows are tried again.
const RUN: u32 = 8;
/// Reads of any window after which one that was fetched ahead is no longer expected to be used.
const PATIENCE: u64 = 1024;
/// Bytes between two reads that still count as one after the other.
const GAP: u64 = 64 << 10;

/// How much of what is fetched is used, over the last dozen or so evictions.
#[derive(Debug)]
pub(super) struct Worth(f64);

impl Default for Worth {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Worth {
    pub(super) fn evicted(&mut self, used: u64, size: u64) {
        let share = (used as f64 / size.max(1) as f64).min(1.0);
        self.0 += (share - self.0) / 8.0;
    }

    pub(super) fn is_worth_while(&self) -> bool {
        self.0 >= WORTH_WHILE
    }
}

type Outcome = Result<Arc<Vec<u8>>, RemoteError>;

/// Where the bytes of a window will be put.
#[derive(Debug, Default)]
struct Promise {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
}

impl Promise {
    fn wait(&self) -> Outcome {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = outcome.as_ref() {
                return outcome.clone();
            }
            outcome = self.arrived.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Shard and number of the window.
type Key = (Arc<str>, u64);

#[derive(Debug)]
struct Window {
    promise: Arc<Promise>,
    size: u64,
    used: u64,
    last_use: u64,
    pending: bool,
}

#[derive(Debug, Default)]
struct State {
    windows: HashMap<Key, Window>,
    /// Bytes of all windows, those on their way included.
    held: u64,
    clock: u64,
    worth: Worth,
    /// Where the last single read of a shard ended, and how many went one after the other.
    runs: HashMap<Arc<str>, (u64, u32)>,
}

/// The windows of all shards of a client, within one bound on memory.
#[derive(Debug)]
pub(super) struct Windows {
    options: Arc<RemoteOptions>,
    window: u64,
    state: Mutex<State>,
    /// Told when a window has arrived or failed, which makes room.
    room: Condvar,
}

impl Windows {
    pub(super) fn new(options: Arc<RemoteOptions>) -> Self {
        let window = options.window_bytes.min(options.memory_bytes / 4).max(4096);
        Self { options, window, state: Mutex::default(), room: Condvar::new() }
    }

    /// Bytes of a window.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Whether a read is better done through windows than by a request of its own.
    pub(super) fn suit(&self, object: &Object, offset: u64, length: u64) -> bool {
        let mut state = lock(&self.state);
        let first = (Arc::clone(&object.name), offset / self.window);
        if length > self.window {
            return false;
        }
        if state.worth.is_worth_while() || state.windows.contains_key(&first) {
            return true;
        }
        let (end, run) = state.runs.entry(first.0).or_default();
        let follows = offset >= *end && offset - *end <= GAP;
        *run = if follows { *run + 1 } else { 0 };
        *end = offset + length;
        *run >= RUN
    }

    /// The window with the byte at `offset`, and where it starts; waits for it. `used` bytes of it
    /// are about to be used.
    pub(super) fn get(
        self: &Arc<Self>,
        object: &Arc<Object>,
        offset: u64,
        used: u64,
    ) -> Result<(Arc<Vec<u8>>, u64), RemoteError> {
        let number = offset / self.window;
        let name = Arc::clone(&object.name);
        let key = (Arc::clone(&name), number);
        let mut state = lock(&self.state);
        while !state.windows.contains_key(&key) {
            if self.start(&mut state, object, key.clone()) {
                break;
            }
            // All memory is taken by windows on their way: each ends within its time limit.
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.clock += 1;
        let clock = state.clock;
        let Some(window) = state.windows.get_mut(&key) else {
            return Err(lost(object, "its window has gone"));
        };
        window.used += used;
        window.last_use = clock;
        let promise = Arc::clone(&window.promise);
        let before = number.checked_sub(1).map(|before| (Arc::clone(&name), before));
        if before.is_none_or(|before| state.windows.contains_key(&before)) {
            for next in (number + 1..).take(AHEAD as usize) {
                let key = (Arc::clone(&name), next);
                if next * self.window < object.size && !state.windows.contains_key(&key) {
                    self.start(&mut state, object, key);
                }
            }
        }
        drop(state);
        Ok((promise.wait()?, number * self.window))
    }

    /// Starts to fetch a window; `false` when there is no room for it now.
    fn start(self: &Arc<Self>, state: &mut State, object: &Arc<Object>, key: Key) -> bool {
        let start = key.1 * self.window;
        let range = start..(start + self.window).min(object.size);
        let size = range.end - range.start;
        if !state.make_room(size, self.options.memory_bytes.max(4 * self.window)) {
            return false;
        }
        state.held += size;
        state.clock += 1;
        let promise = Arc::new(Promise::default());
        let window = Window {
            promise: Arc::clone(&promise),
            size,
            used: 0,
            last_use: state.clock,
            pending: true,
        };
        state.windows.insert(key.clone(), window);
        // Settles the window in any case, a panic in the client included: nobody may wait for ever.
        let outcome = Some(Err(lost(object, "a panic in the client")));
        let settle = Settle { windows: Arc::clone(self), key, promise, outcome };
        let (object, options) = (Arc::clone(object), Arc::clone(&self.options));
        let work = async move {
            let outcome = object.read(range, &options).await.map(Arc::new);
            settle.with(outcome);
        };
        // A client is only made once the runtime runs, so this cannot fail.
        drop(runtime::spawn(work));
        true
    }
}

fn lost(object: &Object, reason: &str) -> RemoteError {
    RemoteError {
        url: object.url.clone(),
        range: None,
        tries: 0,
        kind: RemoteErrorKind::Unavailable,
        reason: reason.to_owned(),
    }
}

impl State {
    /// Evicts windows that have arrived, the longest unused first, until `size` more bytes fit.
    fn make_room(&mut self, size: u64, limit: u64) -> bool {
        while self.held + size > limit {
            let arrived = self.windows.iter().filter(|(_, window)| !window.pending);
            // What was fetched ahead and is still to come goes last, unless nobody came for long.
            let awaited =
                |window: &Window| window.used == 0 && self.clock - window.last_use < PATIENCE;
            let Some((oldest, _)) =
                arrived.min_by_key(|(_, window)| (awaited(window), window.last_use))
            else {
                return false;
            };
            let oldest = oldest.clone();
            if let Some(window) = self.windows.remove(&oldest) {
                self.held -= window.size;
                self.worth.evicted(window.used, window.size);
            }
        }
        true
    }
}

/// Hands over the outcome of a fetch when it is dropped.
struct Settle {
    windows: Arc<Windows>,
    key: Key,
    promise: Arc<Promise>,
    outcome: Option<Outcome>,
}

impl Settle {
    fn with(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        let failed = self.outcome.as_ref().is_none_or(Result::is_err);
        let state = &mut *lock(&self.windows.state);
        if failed {
            // Who waits for it gets the error, who comes later asks anew.
            if let Some(window) = state.windows.remove(&self.key) {
                state.held -= window.size;
            }
        } else if let Some(window) = state.windows.get_mut(&self.key) {
            window.pending = false;
        }
        *lock(&self.promise.outcome) = self.outcome.take();
        self.promise.arrived.notify_all();
        self.windows.room.notify_all();
    }
}

/// A lock whose holder never leaves it half changed, so that a panic elsewhere means nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worth_follows_use() {
        let mut worth = Worth::default();
        for _ in 0..30 {
            worth.evicted(8 << 20, 8 << 20);
        }
        assert!(worth.is_worth_while());
        for _ in 0..30 {
            worth.evicted(60_000, 8 << 20);
        }
        assert!(!worth.is_worth_while());
        for _ in 0..3 {
            worth.evicted(8 << 20, 8 << 20);
        }
        assert!(worth.is_worth_while());
    }
}
