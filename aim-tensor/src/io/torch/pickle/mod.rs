//! A reader of the pickles that `torch.save` writes, which executes nothing.
//!
//! A pickle is a program for a small stack machine. Two of its operations can do harm in Python: one names any function
//! of any module, the other calls it. Here a name is looked up in a short list (`value::Global`) and everything else is an
//! error that says the name; calls of what is on the list are done by this reader; operations that build objects do not
//! exist. Values lie in one flat vector and refer to each other by number, so that depth costs no stack, and every
//! length is checked against what is left of the file before anything is reserved for it.

mod call;
mod machine;
#[cfg(test)]
mod tests;
mod value;

pub(super) use machine::parse;
pub(super) use value::{Id, Pickle, Storage, Tensor, Value};

/// Values of one pickle, and entries of its memo. A state dict of AIM-7B with its optimizer takes 20,000.
const MAX_VALUES: usize = 1 << 21;
/// Tensors of one pickle.
pub(super) const MAX_TENSORS: usize = 1 << 17;
/// PyTorch's own limit on dimensions.
const MAX_DIMENSIONS: usize = 64;
/// Containers inside each other.
const MAX_DEPTH: u16 = 500;
/// Bytes of a number written as text, or of a name.
const MAX_LINE: usize = 512;
