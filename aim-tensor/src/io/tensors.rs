//! Tensors by name from a file of either format, and what all sources of tensors have in common.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use safetensors::Dtype;

use super::safetensors::SafeTensors;
use super::torch::TorchFile;
use super::{IoError, View};

/// Tensors by name: a file, several, or a view of them under other names.
pub trait TensorSource {
    /// The file or directory, for messages.
    fn path(&self) -> &Path;

    /// The names.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// The shape of a tensor; none where there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The type of a tensor as it is stored; none where there is no such tensor.
    fn dtype(&self, name: &str) -> Option<Dtype>;

    /// Copies a tensor of F32, F16, BF16 or F64 as f32, row-major.
    ///
    /// # Errors
    /// When there is no such tensor, it is no float, or the destination has another length.
    fn copy_to_f32(&self, name: &str, destination: &mut [f32]) -> Result<(), IoError>;

    /// A tensor of integers, row-major.
    ///
    /// # Errors
    /// When there is no such tensor, or it is no integer.
    fn to_i64(&self, name: &str) -> Result<Vec<i64>, IoError>;

    /// What a safetensors header says under a key of its free-form strings.
    fn metadata_value(&self, key: &str) -> Option<&str>;

    /// Whether a tensor of this name is there.
    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }
}

/// A file of either format, told apart by its first bytes and not by its name.
#[derive(Debug)]
pub enum Tensors {
    /// A safetensors file, or several with an index.
    Safe(SafeTensors),
    /// A file of `torch.save`.
    Torch(TorchFile),
}

impl Tensors {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`SafeTensors::open`] and [`TorchFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        let mut start = Vec::new();
        if path.is_file() {
            let file = File::open(path).map_err(|source| IoError::os("open", path, source))?;
            file.take(64)
                .read_to_end(&mut start)
                .map_err(|source| IoError::os("read", path, source))?;
        }
        let torch = path.extension().is_some_and(|e| e == "pth" || e == "pt" || e == "bin");
        // A header of safetensors starts with its length: an object in JSON follows.
        let safe = start.get(8) == Some(&b'{');
        if TorchFile::detects(&start) || (torch && !safe) {
            return TorchFile::open(path).map(Self::Torch);
        }
        SafeTensors::open(path).map(Self::Safe)
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`IoError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<View<'_>, IoError> {
        match self {
            Self::Safe(file) => file.tensor(name),
            Self::Torch(file) => file.tensor(name),
        }
    }

    /// The names.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Safe(file) => Box::new(file.names()),
            Self::Torch(file) => Box::new(file.names()),
        }
    }

    /// The strings in a safetensors header; none in other files.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Safe(file) => Some(file.metadata()),
            Self::Torch(_) => None,
        }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safe(file) => file.path(),
            Self::Torch(file) => file.path(),
        }
    }
}

/// The same body for everything that gives out views.
macro_rules! source {
    ($type:ty, $metadata:expr) => {
        impl TensorSource for $type {
            fn path(&self) -> &Path {
                self.path()
            }

            fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
                Box::new(self.names())
            }

            fn shape(&self, name: &str) -> Option<&[usize]> {
                self.tensor(name).ok().map(|view| view.shape)
            }

            fn dtype(&self, name: &str) -> Option<Dtype> {
                self.tensor(name).ok().map(|view| view.dtype)
            }

            fn copy_to_f32(&self, name: &str, destination: &mut [f32]) -> Result<(), IoError> {
                self.tensor(name)?.copy_to_f32(destination)
            }

            fn to_i64(&self, name: &str) -> Result<Vec<i64>, IoError> {
                self.tensor(name)?.to_i64()
            }

            fn metadata_value(&self, key: &str) -> Option<&str> {
                let metadata: fn(&Self) -> Option<&BTreeMap<String, String>> = $metadata;
                metadata(self)?.get(key).map(String::as_str)
            }
        }
    };
}

source!(SafeTensors, |file| Some(file.metadata()));
source!(TorchFile, |_| None);
source!(Tensors, |file| file.metadata());
