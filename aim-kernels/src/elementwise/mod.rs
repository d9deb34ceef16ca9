//! Sums, means and multiples, element by element, of slices of one length.
//!
//! `add`: `y = a + b`; `accumulate`: `y += x`; `average`: `y = (x_1 + ... + x_n) / n`; `scale`: `y = a x`, or
//! `y += a x`, which with `a = 1 / n` is the backward pass of the average.

pub mod cpu;
pub mod cuda;
