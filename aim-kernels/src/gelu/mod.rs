//! Exact GELU: `y = x Phi(x)` with the normal distribution function `Phi(x) = (1 + erf(x / sqrt 2)) / 2`.
//!
//! Backward: `dx = dy (Phi(x) + x phi(x))` with the normal density `phi`.

pub mod cpu;
pub mod cuda;
