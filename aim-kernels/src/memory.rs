//! [`Arena`]: the one block of memory that a planned step lives in, handed out as slices that never overlap.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// A stretch of an [`Arena`], in 4-byte words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First word.
    pub start: usize,
    /// Number of words.
    pub len: usize,
}

impl Span {
    fn end(self) -> usize {
        self.start + self.len
    }

    fn overlaps(self, other: Self) -> bool {
        self.len > 0 && other.len > 0 && self.start < other.end() && other.start < self.end()
    }
}

/// The system refused this many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: could not reserve {bytes} bytes")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

/// Zero-initialised memory, 4096-byte aligned, for f32 values and whatever has their size.
pub struct Arena {
    data: NonNull<f32>,
    words: usize,
}

// SAFETY: the arena owns its memory; access follows the borrow of the arena.
unsafe impl Send for Arena {}
// SAFETY: as above; `&Arena` only reads.
unsafe impl Sync for Arena {}

impl Arena {
    /// Room for `words` f32 values.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the system refuses.
    pub fn new(words: usize) -> Result<Self, OutOfMemory> {
        let error = OutOfMemory { bytes: words.saturating_mul(4) };
        let layout = Self::layout(words).ok_or(error)?;
        // SAFETY: the layout is never of size zero.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(error)?;
        #[cfg(target_os = "linux")]
        // Large pages spare the matrix products many TLB misses; a refusal changes nothing else.
        // SAFETY: advice about memory that is ours.
        unsafe {
            libc::madvise(data.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE);
        }
        Ok(Self { data: data.cast(), words })
    }

    fn layout(words: usize) -> Option<Layout> {
        Layout::from_size_align(words.max(1).checked_mul(4)?, 4096).ok()
    }

    /// Number of words.
    pub fn words(&self) -> usize {
        self.words
    }

    /// One stretch, to read.
    ///
    /// # Panics
    /// If the span leaves the arena.
    pub fn read(&self, span: Span) -> &[f32] {
        assert!(span.end() <= self.words, "span {span:?} outside {} words", self.words);
        // SAFETY: in bounds, initialised (zeroed at first), and only read while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(span.start), span.len) }
    }

    /// One stretch, to write.
    ///
    /// # Panics
    /// If the span leaves the arena.
    pub fn write(&mut self, span: Span) -> &mut [f32] {
        let ([], [slice]) = self.carve([], [span]);
        slice
    }

    /// Several stretches at once, some to read and some to write.
    ///
    /// # Panics
    /// If a span leaves the arena, or a written one overlaps any other.
    pub fn carve<const R: usize, const W: usize>(
        &mut self,
        reads: [Span; R],
        writes: [Span; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, write) in writes.iter().enumerate() {
            assert!(write.end() <= self.words, "span {write:?} outside {} words", self.words);
            let clash = reads.iter().chain(&writes[..i]).find(|other| write.overlaps(**other));
            assert!(clash.is_none(), "span {write:?} is written and overlaps {clash:?}");
        }
        for read in &reads {
            assert!(read.end() <= self.words, "span {read:?} outside {} words", self.words);
        }
        let base = self.data.as_ptr();
        (
            // SAFETY: in bounds and disjoint from every written span, checked above.
            reads.map(|s| unsafe { std::slice::from_raw_parts(base.add(s.start), s.len) }),
            // SAFETY: in bounds and disjoint from every other span, checked above.
            writes.map(|s| unsafe { std::slice::from_raw_parts_mut(base.add(s.start), s.len) }),
        )
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.words) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.data.as_ptr().cast(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_apart() {
        let mut arena = Arena::new(10).unwrap();
        let (a, b) = (Span { start: 0, len: 4 }, Span { start: 4, len: 6 });
        arena.write(a).fill(1.0);
        let ([a], [b]) = arena.carve([a], [b]);
        b.fill(a.iter().sum());
        assert_eq!(arena.read(Span { start: 3, len: 3 }), [1.0, 4.0, 4.0]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlap_is_refused() {
        let mut arena = Arena::new(10).unwrap();
        let _ = arena.carve([Span { start: 0, len: 5 }], [Span { start: 4, len: 2 }]);
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Arena::new(usize::MAX / 8).is_err());
    }
}
