//! What the CUDA versions of all kernels share.
//!
//! Everything here builds and runs on a machine without CUDA: libraries are looked for when a device is opened, and
//! what is missing is an error that names it.
//!
//! | module | what |
//! |---|---|
//! | `gpu` | [`Gpu`]: one device, its stream and the compiled kernels |
//! | `arena` | [`DeviceArena`]: device memory and typed views of it |
//! | [`libraries`] | finding `libcuda`, cuBLASLt, NVRTC and NCCL |
//! | [`compile`] | source to cubin, and the cache on disk |
//! | [`sources`] | the source of all kernels |
//! | `launch` | grids and arguments |
//! | `staging` | [`Staging`]: values on their way to the device while it works |
//! | [`gemm`] | matrix products through cuBLASLt: plans, measuring, what to keep between runs |
//! | [`timing`] | times on the device; every kernel and product at the shapes of a model |
//! | `columns` | how kernels that walk down columns are divided over blocks; `columns.cuh` is their half |
//! | `vector` | grids of element-wise and row-wise kernels; `vector.cuh` is their half |
//! | [`checks`] | every kernel against double precision, on whatever device is there |
//! | `prim.cuh` | the machine's primitives under one name each: a CUDA body and an emulator's |

mod arena;
pub mod checks;
pub(crate) mod columns;
pub mod compile;
mod error;
pub mod gemm;
mod gpu;
mod launch;
pub mod libraries;
pub mod sources;
mod staging;
pub mod timing;
pub(crate) mod vector;

pub use arena::{ALIGN, DeviceArena, DeviceSlice, SplitSlice};
pub use error::CudaError;
pub use gpu::{DeviceInfo, Gpu};
pub(crate) use launch::{Args, Grid};
pub use staging::Staging;
