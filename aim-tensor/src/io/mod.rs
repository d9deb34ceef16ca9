//! Files that hold tensors: safetensors in and out, PyTorch's in, NumPy's `.npy`.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`safetensors`] | memory-mapped reader (one file, or sharded with an index), streaming writer |
//! | [`torch`] | memory-mapped reader of what `torch.save` writes; executes nothing |
//! | [`Tensors`] | either of the two, told apart by content |
//! | [`npy`] | small reader and writer of `.npy` version 1 |
//!
//! Everything read from a file is checked before it is used: sizes before allocations, names before
//! paths, types before conversions. Writers stream, so that the memory they need does not grow with
//! the tensors.

mod error;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod map;
pub mod npy;
pub mod safetensors;
mod tensors;
pub mod torch;
mod view;

pub use error::IoError;
pub use tensors::{TensorSource, Tensors};
pub use view::View;

/// The name that shares the longest suffix with `name`, for an error: what differs in practice is a
/// prefix (`module.`, `model.trunk.`) or a layer number.
pub(crate) fn closest<'a>(names: impl Iterator<Item = &'a str>, name: &str) -> Option<String> {
    let shared = |other: &str| {
        name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count()
    };
    let best = names.max_by_key(|other| shared(other))?;
    (shared(best) * 2 >= name.len()).then(|| best.to_string())
}

// Both formats are little-endian and tensors are copied byte for byte.
#[cfg(target_endian = "big")]
compile_error!("aim-tensor reads and writes tensors as little-endian bytes of the host");
