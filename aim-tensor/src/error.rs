//! What can go wrong while tensors are described, planned, run or stored.

use crate::io::IoError;
use crate::shape::{DType, Shape};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Two shapes that an op cannot combine.
    #[error("{op}: expected {expected}, found {lhs} and {rhs}")]
    ShapeMismatch {
        /// Name of the op.
        op: &'static str,
        /// What the op combines.
        expected: &'static str,
        /// First shape.
        lhs: Shape,
        /// Second shape.
        rhs: Shape,
    },
    /// A value of a type that an op does not take.
    #[error("{op}: expected {expected} values, found {found}")]
    DTypeMismatch {
        /// Name of the op.
        op: &'static str,
        /// What it takes.
        expected: DType,
        /// What it got.
        found: DType,
    },
    /// An argument outside what an op can do.
    #[error("{op}: expected {expected}, found {found}")]
    BadArgument {
        /// Name of the op.
        op: &'static str,
        /// What would work.
        expected: &'static str,
        /// What it got.
        found: String,
    },
    /// Input data of the wrong length.
    #[error("input of shape {shape}: expected {} values, found {found}", shape.len())]
    InputLength {
        /// Shape of the input.
        shape: Shape,
        /// Values given.
        found: usize,
    },
    /// An index of an input outside the rows it points to.
    #[error("{op}: index {index} at {position}: expected 0..{rows}")]
    IndexOutOfRange {
        /// Name of the op that would read it.
        op: &'static str,
        /// The index.
        index: i32,
        /// Where it stands in the input.
        position: usize,
        /// Rows that exist.
        rows: usize,
    },
    /// Two parameters of one name.
    #[error("parameter {name} is described twice")]
    DuplicateParameter {
        /// The name.
        name: String,
    },
    /// The plan needs more memory than there is.
    #[error("could not reserve {} MiB for {what}; try a smaller batch or train.recompute = \"block\"", bytes >> 20)]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A GPU failed, or there is none.
    #[error(transparent)]
    Cuda(#[from] aim_kernels::cuda::CudaError),
    /// A file failed.
    #[error(transparent)]
    Io(#[from] IoError),
}
