//! Writing tensors that are made one after the other: a model of which no two tensors need to be in memory at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorInfo;

use super::write::header_bytes;
use crate::io::IoError;

/// A tensor that is to be written: everything but its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTensor {
    /// The name, unique in its file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
}

impl StreamTensor {
    /// Bytes of its values.
    ///
    /// # Errors
    /// [`IoError::Unwritable`] when they are more than can be counted.
    pub fn bytes(&self) -> Result<usize, IoError> {
        let bits = self.shape.iter().try_fold(self.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        bits.map(|bits| bits / 8).ok_or_else(|| IoError::Unwritable {
            name: self.name.clone(),
            reason: format!("{} of shape {:?} is too large", self.dtype, self.shape),
        })
    }
}

/// Counts what goes through it.
struct Counting<'a> {
    out: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counting<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes `stem.safetensors` into `dir`, or shards and their index once the tensors take over `max_shard_bytes`;
/// returns the files' names. `values` writes the bytes of one tensor, row-major and little-endian, and is called once
/// for each. Files are new and synced; the caller makes them visible together, by renaming the directory.
///
/// # Errors
/// [`IoError::Os`] when a file exists or cannot be written or `values` fails, [`IoError::Unwritable`] for names that
/// come twice and for values of another length than type and shape make.
pub fn write_stream(
    dir: impl AsRef<Path>,
    stem: &str,
    tensors: &[StreamTensor],
    max_shard_bytes: u64,
    metadata: &BTreeMap<String, String>,
    mut values: impl FnMut(&StreamTensor, &mut dyn Write) -> io::Result<()>,
) -> Result<Vec<String>, IoError> {
    let dir = dir.as_ref();
    let groups = split(tensors, max_shard_bytes)?;
    let name = |at: usize| match groups.len() {
        1 => format!("{stem}.safetensors"),
        count => format!("{stem}-{:05}-of-{count:05}.safetensors", at + 1),
    };
    let mut weight_map = BTreeMap::new();
    for (at, group) in groups.iter().enumerate() {
        for tensor in *group {
            if weight_map.insert(tensor.name.as_str(), name(at)).is_some() {
                let reason = "the name comes twice".to_owned();
                return Err(IoError::Unwritable { name: tensor.name.clone(), reason });
            }
        }
    }
    let mut names = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        write_one(&dir.join(name(at)), group, metadata, &mut values)?;
        names.push(name(at));
    }
    if groups.len() > 1 {
        let mut total = 0;
        for tensor in tensors {
            total += tensor.bytes()? as u64;
        }
        let index =
            serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let name = format!("{stem}.safetensors.index.json");
        let path = dir.join(&name);
        create(&path, |out| writeln!(out, "{index:#}"))?;
        names.push(name);
    }
    Ok(names)
}

/// Consecutive tensors that together stay within the limit; at least one group.
fn split(tensors: &[StreamTensor], max_bytes: u64) -> Result<Vec<&[StreamTensor]>, IoError> {
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0u64);
    for (at, tensor) in tensors.iter().enumerate() {
        let size = tensor.bytes()? as u64;
        if at > start && bytes + size > max_bytes {
            groups.push(tensors.get(start..at).unwrap_or_default());
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    groups.push(tensors.get(start..).unwrap_or_default());
    Ok(groups)
}

fn create(path: &Path, body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), IoError> {
    let written = File::create_new(path).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        body(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    written.map_err(|source| IoError::os("write", path, source))
}

fn write_one(
    path: &Path,
    tensors: &[StreamTensor],
    metadata: &BTreeMap<String, String>,
    values: &mut impl FnMut(&StreamTensor, &mut dyn Write) -> io::Result<()>,
) -> Result<(), IoError> {
    // The order of `FilePlan`: the same tensors make the same bytes.
    let mut tensors: Vec<&StreamTensor> = tensors.iter().collect();
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.name.cmp(&b.name)));
    let (mut infos, mut offset) = (Vec::with_capacity(tensors.len()), 0);
    for tensor in &tensors {
        let end = offset + tensor.bytes()?;
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        infos.push((tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (offset, end) }));
        offset = end;
    }
    let header = header_bytes(infos, metadata, 0)?;
    create(path, |out| {
        out.write_all(&header)?;
        for tensor in tensors {
            let expected = tensor.bytes().map_err(io::Error::other)?;
            let mut counting = Counting { out, bytes: 0 };
            values(tensor, &mut counting)?;
            let found = counting.bytes;
            if found != expected {
                let (name, reason) =
                    (tensor.name.clone(), format!("expected {expected} bytes, found {found}"));
                return Err(io::Error::other(IoError::Unwritable { name, reason }));
            }
        }
        Ok(())
    })
}
