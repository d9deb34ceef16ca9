//! What all CPU kernels share: the thread pool, SIMD dispatch with vector math, and the GEMM entry.

pub(crate) mod gemm;
pub mod pool;
pub(crate) mod rows;
pub(crate) mod simd;
mod transpose;
