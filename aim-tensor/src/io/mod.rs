//! Files that hold tensors: safetensors in and out, NumPy's `.npy`.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`safetensors`] | memory-mapped reader (one file, or sharded with an index), streaming writer |
//! | [`npy`] | small reader and writer of `.npy` version 1 |
//!
//! Everything read from a file is checked before it is used: sizes before allocations, names before
//! paths, types before conversions. Writers stream, so that the memory they need does not grow with
//! the tensors.

mod error;
pub mod npy;
pub mod safetensors;

pub use error::IoError;

// Both formats are little-endian and tensors are copied byte for byte.
#[cfg(target_endian = "big")]
compile_error!("aim-tensor reads and writes tensors as little-endian bytes of the host");
