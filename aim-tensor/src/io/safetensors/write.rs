//! Laying out and writing one file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};

use super::header::{LENGTH_BYTES, MAX_HEADER_BYTES};
use crate::io::IoError;

/// A tensor to be written, borrowed from wherever it lies.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// The name, unique in its file.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: &'a [usize],
    /// Its bytes, row-major, little-endian.
    pub data: &'a [u8],
}

impl<'a> TensorRef<'a> {
    /// A tensor of f32.
    pub fn f32(name: &'a str, shape: &'a [usize], data: &'a [f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape, data: bytemuck::cast_slice(data) }
    }

    /// A tensor of i32.
    pub fn i32(name: &'a str, shape: &'a [usize], data: &'a [i32]) -> Self {
        Self { name, dtype: Dtype::I32, shape, data: bytemuck::cast_slice(data) }
    }

    /// A tensor of i64.
    pub fn i64(name: &'a str, shape: &'a [usize], data: &'a [i64]) -> Self {
        Self { name, dtype: Dtype::I64, shape, data: bytemuck::cast_slice(data) }
    }

    fn check(&self) -> Result<(), IoError> {
        let bits = self
            .shape
            .iter()
            .try_fold(self.dtype.bitsize(), |product, &size| product.checked_mul(size));
        if bits == Some(self.data.len() * 8) && self.name != "__metadata__" {
            return Ok(());
        }
        Err(IoError::Unwritable {
            name: self.name.to_string(),
            reason: format!(
                "{} of shape {:?} cannot have {} bytes, or the name is reserved",
                self.dtype,
                self.shape,
                self.data.len()
            ),
        })
    }
}

/// The layout of one file: its header, and its tensors in the order of their bytes.
#[derive(Debug, Clone)]
pub struct FilePlan<'a> {
    header: Vec<u8>,
    tensors: Vec<TensorRef<'a>>,
}

impl<'a> FilePlan<'a> {
    /// Lays out the tensors as the safetensors library does, wide types first (which aligns all of
    /// them), then by name: the same tensors make the same bytes whatever their order here.
    ///
    /// # Errors
    /// [`IoError::Unwritable`] if a name comes twice, bytes do not match a shape, or the header
    /// would be larger than readers accept.
    pub fn new(
        tensors: &[TensorRef<'a>],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, IoError> {
        let mut tensors = tensors.to_vec();
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.name.cmp(b.name)));
        let mut names = HashSet::new();
        let mut infos = Vec::with_capacity(tensors.len());
        let mut offset = 0usize;
        for tensor in &tensors {
            tensor.check()?;
            if !names.insert(tensor.name) {
                let reason = "the name comes twice".to_string();
                return Err(IoError::Unwritable { name: tensor.name.to_string(), reason });
            }
            let data_offsets = (offset, offset + tensor.data.len());
            offset = data_offsets.1;
            let shape = tensor.shape.to_vec();
            infos.push((
                tensor.name.to_string(),
                TensorInfo { dtype: tensor.dtype, shape, data_offsets },
            ));
        }
        Ok(Self { header: header_bytes(infos, metadata, 0)?, tensors })
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(|tensor| tensor.data.len()).sum();
        (self.header.len() + data) as u64
    }

    /// The names, in the order of the bytes.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.iter().map(|tensor| tensor.name)
    }

    /// Writes the file, each tensor straight from where it lies. `out` should buffer small writes.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|tensor| out.write_all(tensor.data))
    }
}

/// The header of a file whose tensors (name, type, shape) lie in this order without gaps, of at least `least` bytes:
/// for tensors too large to have at once, and to be written over a longer header when sizes are known only at the end.
///
/// # Errors
/// [`IoError::Unwritable`] as [`FilePlan::new`], and for sizes that no file has.
pub fn header(
    tensors: &[(&str, Dtype, &[usize])],
    metadata: &BTreeMap<String, String>,
    least: usize,
) -> Result<Vec<u8>, IoError> {
    let mut infos = Vec::with_capacity(tensors.len());
    let (mut names, mut offset) = (HashSet::new(), 0usize);
    for &(name, dtype, shape) in tensors {
        let unwritable =
            |reason: &str| IoError::Unwritable { name: name.to_owned(), reason: reason.into() };
        let end = shape
            .iter()
            .try_fold(dtype.bitsize() / 8, |product, &size| product.checked_mul(size))
            .and_then(|bytes| offset.checked_add(bytes))
            .ok_or_else(|| unwritable("its size overflows"))?;
        if !names.insert(name) || name == "__metadata__" {
            return Err(unwritable("the name comes twice or is reserved"));
        }
        let info = TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (offset, end) };
        infos.push((name.to_owned(), info));
        offset = end;
    }
    header_bytes(infos, metadata, least)
}

/// Length and JSON, padded with spaces so that the data starts at a multiple of 8, and not before `least`.
pub(super) fn header_bytes(
    infos: Vec<(String, TensorInfo)>,
    metadata: &BTreeMap<String, String>,
    least: usize,
) -> Result<Vec<u8>, IoError> {
    let failed = |reason: String| IoError::Unwritable { name: "(header)".into(), reason };
    // The library writes free-form metadata in the order of a hash map, another in every process:
    // ours is folded in below, sorted, so that the same input makes the same bytes.
    let described = Metadata::new(None::<HashMap<String, String>>, infos)
        .map_err(|error| failed(error.to_string()))?;
    let mut json = serde_json::to_vec(&described).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_empty() {
        let extra = serde_json::to_string(metadata).map_err(|error| failed(error.to_string()))?;
        let comma = if described.tensors().is_empty() { "" } else { "," };
        let mut folded = format!("{{\"__metadata__\":{extra}{comma}").into_bytes();
        folded.extend_from_slice(json.get(1..).unwrap_or_default());
        json = folded;
    }
    let length = json.len().max(least.saturating_sub(LENGTH_BYTES));
    json.resize(length.next_multiple_of(LENGTH_BYTES), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(failed(format!("{} bytes, at most {MAX_HEADER_BYTES}", json.len())));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Writes one file: a temporary neighbour first, renamed when complete, so that a reader of the old
/// file (or its memory map) is not disturbed. Not synced to disk: for exports, not for checkpoints.
///
/// # Errors
/// As [`FilePlan::new`], and [`IoError::Os`] when the file cannot be written.
pub fn write_file(
    path: impl AsRef<Path>,
    tensors: &[TensorRef<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), IoError> {
    let plan = FilePlan::new(tensors, metadata)?;
    write_beside(path.as_ref(), &|out| plan.write_to(out))
}

/// Writes `path` through a temporary file in the same directory.
pub(super) fn write_beside(
    path: &Path,
    body: &dyn Fn(&mut dyn Write) -> io::Result<()>,
) -> Result<(), IoError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|file| {
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        body(&mut out)?;
        out.flush()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|source| {
        // Best effort: the error to report is the first one.
        let _ = fs::remove_file(&temporary);
        IoError::os("write", path, source)
    })
}
