//! [`BlockCache`]: parts of files that can only be decoded as a whole, kept while there is room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Blocks (row groups, compressed shards) in memory, the least recently used given up first.
///
/// A block is made once even when several threads ask for it at the same time: the others wait for
/// the first. What is kept is at most `max_bytes`, but always the block used last; threads may hold
/// a block that the cache has given up.
#[derive(Debug)]
pub(crate) struct BlockCache<T> {
    state: Mutex<State<T>>,
    max_bytes: u64,
    /// Blocks made, for tests.
    #[cfg(test)]
    loads: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct State<T> {
    slots: HashMap<(u32, u32), Slot<T>>,
    clock: u64,
}

#[derive(Debug)]
struct Slot<T> {
    used: u64,
    bytes: u64,
    block: Arc<Mutex<Option<Arc<T>>>>,
}

impl<T> BlockCache<T> {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            state: Mutex::new(State { slots: HashMap::new(), clock: 0 }),
            max_bytes,
            #[cfg(test)]
            loads: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Makes room for two blocks of this size, however large: a window has one at least.
    pub(crate) fn reserve(&mut self, largest: u64) {
        self.max_bytes = self.max_bytes.max(largest.saturating_mul(2));
    }

    /// How many neighbouring blocks of up to `largest` bytes to shuffle among: half of what fits,
    /// because the next window begins while the last samples of this one are still being read
    /// (batches are made ahead), and with less room the two would push each other out.
    pub(crate) fn window(&self, largest: u64) -> usize {
        (self.max_bytes / 2 / largest.max(1)).clamp(1, 1024) as usize
    }

    /// How many times a block was made.
    #[cfg(test)]
    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The block under `key`, which takes `bytes` in memory, made by `load` when it is not there.
    pub(crate) fn get<E>(
        &self,
        key: (u32, u32),
        bytes: u64,
        load: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let slot = self.slot(key, bytes);
        // Held while loading, so that other threads wait for this block and for no other.
        let mut block = lock(&slot);
        if let Some(block) = &*block {
            return Ok(Arc::clone(block));
        }
        #[cfg(test)]
        self.loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let made = Arc::new(load()?);
        *block = Some(Arc::clone(&made));
        Ok(made)
    }

    fn slot(&self, key: (u32, u32), bytes: u64) -> Arc<Mutex<Option<Arc<T>>>> {
        let mut state = lock(&self.state);
        state.clock += 1;
        let used = state.clock;
        if let Some(slot) = state.slots.get_mut(&key) {
            slot.used = used;
            return Arc::clone(&slot.block);
        }
        let mut kept: u64 = state.slots.values().map(|slot| slot.bytes).sum();
        while kept.saturating_add(bytes) > self.max_bytes && !state.slots.is_empty() {
            let oldest = state.slots.iter().min_by_key(|(_, slot)| slot.used);
            let Some((&key, _)) = oldest else { break };
            kept -= state.slots.remove(&key).map_or(0, |slot| slot.bytes);
        }
        let block = Arc::new(Mutex::new(None));
        state.slots.insert(key, Slot { used, bytes, block: Arc::clone(&block) });
        block
    }
}

/// A panic in `load` leaves the slot empty, which is a state like any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn blocks_are_made_once_and_given_up_oldest_first() {
        let cache = BlockCache::new(100);
        let made = AtomicU32::new(0);
        let get = |key: u32, bytes| {
            let load = || Ok::<_, ()>(made.fetch_add(1, Ordering::Relaxed));
            *cache.get((0, key), bytes, load).unwrap()
        };
        assert_eq!((get(1, 40), get(2, 40), get(1, 40)), (0, 1, 0));
        // Room for 3 is made by giving up 2, which was used before 1.
        assert_eq!((get(3, 40), get(1, 40), get(2, 40)), (2, 0, 3));
        // Larger than the cache: kept alone.
        assert_eq!((get(9, 1000), get(9, 1000), get(1, 40)), (4, 4, 5));
        assert_eq!(cache.loads(), 6);
    }

    #[test]
    fn failures_are_not_kept_and_threads_wait_for_one() {
        let cache = BlockCache::<u32>::new(100);
        assert_eq!(cache.get((0, 0), 1, || Err("no")), Err("no"));
        let made = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        std::thread::yield_now();
                        Ok::<_, ()>(made.fetch_add(1, Ordering::Relaxed))
                    };
                    assert_eq!(*cache.get((0, 0), 1, load).unwrap(), 0);
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
