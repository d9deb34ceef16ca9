//! L2 norm of a flat slice: `sqrt(sum x^2)`.
//!
//! Squares and sums are f64: nothing overflows, and a NaN or an infinity anywhere is in the result.

pub mod cpu;
pub mod cuda;
