//! The safetensors format: a JSON header with names, types, shapes and offsets, then the bytes.
//!
//! [`SafeTensors`] maps files into memory and checks their header; [`View`] converts one tensor into
//! the caller's slice. [`FilePlan`] and [`ShardPlan`] lay out files from borrowed tensors and write
//! them to any [`std::io::Write`], so that whoever owns the file (a checkpoint that hashes and
//! syncs, an export) decides how it reaches the disk. Sharded files and their index are named as
//! Hugging Face names them.
//!
//! ```
//! use std::collections::BTreeMap;
//! use aim_tensor::io::safetensors::{SafeTensors, TensorRef, write_file};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("model.safetensors");
//! let weight = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
//! write_file(&path, &[TensorRef::f32("proj.weight", &[2, 3], &weight)], &BTreeMap::new())?;
//!
//! let file = SafeTensors::open(&path)?;
//! let mut back = [0.0f32; 6];
//! file.tensor("proj.weight")?.copy_to_f32(&mut back)?;
//! assert_eq!(back, weight);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod header;
mod read;
mod shard;
mod stream;
#[cfg(test)]
mod tests;
mod write;

pub use super::view::View;
pub use ::safetensors::Dtype;
pub use read::SafeTensors;
pub use shard::{MAX_SHARD_BYTES, PlannedFile, ShardPlan, write_sharded};
pub use stream::{StreamTensor, write_stream};
pub use write::{FilePlan, TensorRef, header, write_file};
