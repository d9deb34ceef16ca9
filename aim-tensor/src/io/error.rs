//! What can go wrong with a tensor file.

use std::path::{Path, PathBuf};

/// An error about a tensor file: which file, which tensor, what was expected and found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The operating system refused an operation.
    #[error("cannot {op} {}: {source}", path.display())]
    Os {
        /// What was tried: "open", "map", "create", ...
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is nothing to read at this path.
    #[error("{}: expected {expected}, found {found}", path.display())]
    NotFound {
        /// The path that was given.
        path: PathBuf,
        /// What would have been accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The bytes are not a well-formed file of this kind.
    #[error("{} is not a valid {kind} file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// "safetensors", "index", "npy", "PyTorch".
        kind: &'static str,
        /// What is wrong, with offsets or names.
        reason: String,
    },
    /// The file asks for something that is never done, such as running code.
    #[error("{} is refused: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it asks for, and where.
        reason: String,
    },
    /// No tensor of this name.
    #[error(
        "{}: no tensor named `{name}` among its {count}{}",
        path.display(),
        closest.as_ref().map(|c| format!(" (the nearest name is `{c}`)")).unwrap_or_default()
    )]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The number of tensors there.
        count: usize,
        /// The stored name that looks most like it, if any does.
        closest: Option<String>,
    },
    /// A tensor has another shape than the reader needs.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The shape stored.
        found: Vec<usize>,
    },
    /// The caller's slice has another length than the tensor.
    #[error(
        "{}: tensor `{name}` {shape:?} has {elements} elements, the destination {destination}",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its number of elements.
        elements: usize,
        /// The length of the slice it was to be copied into.
        destination: usize,
    },
    /// A tensor's type cannot be read as the type asked for.
    #[error("{}: tensor `{name}` is {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The types that can be read.
        expected: &'static str,
        /// The type stored.
        found: String,
    },
    /// An integer of the tensor does not fit the type asked for.
    #[error("{}: tensor `{name}` holds {value} at element {index}, which does not fit {expected}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Which element, in row-major order.
        index: usize,
        /// Its value.
        value: i128,
        /// The type asked for.
        expected: &'static str,
    },
    /// What the caller asked to write makes no valid file.
    #[error("cannot write tensor `{name}`: {reason}")]
    Unwritable {
        /// The tensor, or the file's stem.
        name: String,
        /// Why.
        reason: String,
    },
}

impl IoError {
    /// An operating-system error with its operation and path.
    pub(crate) fn os(op: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Os { op, path: path.to_path_buf(), source }
    }

    /// A file that does not parse.
    pub(crate) fn malformed(path: &Path, kind: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_path_buf(), kind, reason: reason.into() }
    }
}
