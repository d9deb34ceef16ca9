//! Places for buffers whose lives are known.

use aim_kernels::memory::Span;

use super::Category;
use crate::device::Storage;

/// Words that every buffer starts at a multiple of: one cache line of a CPU, or what a GPU's wide loads want.
pub(super) const fn align(storage: Storage) -> usize {
    match storage {
        Storage::Fp32 => 16,
        Storage::Bf16 => 64,
    }
}

/// A stretch of memory and its life.
pub(super) struct Buffer {
    pub(super) words: usize,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) category: Category,
}

/// A place for each buffer: the largest first, each at the lowest address where it meets no other that lives with it.
pub(super) fn place(buffers: &[Buffer], align: usize) -> (Vec<Span>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].words), buffers[i].first, i));
    let mut spans = vec![Span::default(); buffers.len()];
    // Placed buffers by address.
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    let mut total = 0;
    for i in order {
        let buffer = &buffers[i];
        let mut start = 0;
        for &other in &placed {
            let lives_with =
                buffers[other].first <= buffer.last && buffer.first <= buffers[other].last;
            if lives_with {
                if spans[other].start >= start + buffer.words {
                    break;
                }
                start = start.max((spans[other].start + spans[other].len).next_multiple_of(align));
            }
        }
        spans[i] = Span { start, len: buffer.words };
        total = total.max(start + buffer.words);
        let at = placed.partition_point(|&other| spans[other].start <= start);
        placed.insert(at, i);
    }
    (spans, total)
}

/// Bytes by category at the step where most is alive.
pub(super) fn fullest(buffers: &[Buffer], steps: usize) -> [usize; 5] {
    let mut change = vec![[0isize; 5]; steps + 2];
    for buffer in buffers {
        let category = buffer.category as usize;
        let bytes = (buffer.words * 4) as isize;
        change[buffer.first.min(steps)][category] += bytes;
        change[buffer.last.min(steps) + 1][category] -= bytes;
    }
    let mut now = [0isize; 5];
    let mut most = [0isize; 5];
    for delta in change {
        now.iter_mut().zip(delta).for_each(|(now, delta)| *now += delta);
        if now.iter().sum::<isize>() > most.iter().sum() {
            most = now;
        }
    }
    most.map(isize::unsigned_abs)
}
