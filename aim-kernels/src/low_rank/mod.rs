//! Low-rank addend of a linear layer (Hu et al., "LoRA: Low-rank adaptation of large language models", 2021).
//!
//! `y[:, s_i] += u[:, i r .. (i + 1) r] B_i^T` for disjoint ranges s_i of y's columns and the rank r. Queries and values
//! of a fused qkv are two such ranges: what lies between them is never touched, as if B had blocks of zeros there.
//!
//! - y: `[rows, outputs]`; u: `[rows, segments * r]`, the layer's input times `A^T`, itself a [`linear`](crate::linear)
//! - B: `[sum of the ranges' lengths, r]`, the blocks `B_i` one below the other
//! - backward: `du_i = dy[:, s_i] B_i`, `dB_i += dy[:, s_i]^T u_i`

use std::ops::Range;

pub mod cpu;
pub mod cuda;

/// Shape of a low-rank addend's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRank<'a> {
    /// Rows of u and y: tokens.
    pub rows: usize,
    /// Columns of u for each range.
    pub rank: usize,
    /// Width of y.
    pub outputs: usize,
    /// Columns of y that are added to, disjoint.
    pub segments: &'a [Range<usize>],
}

impl LowRank<'_> {
    /// Width of u.
    pub fn width(&self) -> usize {
        self.rank * self.segments.len()
    }

    /// Rows of B: columns of y that are added to.
    pub fn covered(&self) -> usize {
        self.segments.iter().map(ExactSizeIterator::len).sum()
    }

    /// Each range with its number and the first row of its block of B.
    fn blocks(&self) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
        self.segments.iter().enumerate().scan(0, |row, (index, segment)| {
            let first = *row;
            *row += segment.len();
            Some((index, segment.clone(), first))
        })
    }

    /// Checks the lengths of y (or dy), u (or du) and B (or dB).
    fn check(&self, y: usize, u: usize, weight: usize) {
        assert!(self.segments.iter().all(|s| s.start < s.end && s.end <= self.outputs), "{self:?}");
        assert_eq!(y, self.rows * self.outputs, "low_rank: y");
        assert_eq!(u, self.rows * self.width(), "low_rank: u");
        assert_eq!(weight, self.covered() * self.rank, "low_rank: B");
    }
}
