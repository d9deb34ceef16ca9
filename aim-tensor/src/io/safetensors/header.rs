//! The header of one file, read from its mapped bytes and checked against the file's length.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::Metadata;

use crate::io::IoError;

/// The format allows 100 MB; its parsed form takes several times as much memory, and the header of
/// a 7B model is 50 kB.
pub(super) const MAX_HEADER_BYTES: u64 = 32 << 20;

/// The header starts with its own length as a little-endian u64.
pub(super) const LENGTH_BYTES: usize = 8;

/// What the header says of one tensor.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Within the file, inside its length.
    pub(super) range: Range<usize>,
}

/// Entries in the order of their bytes (names break ties between empty tensors), and the metadata.
pub(super) fn parse(
    path: &Path,
    bytes: &[u8],
) -> Result<(Vec<Entry>, BTreeMap<String, String>), IoError> {
    let bad = |reason: String| IoError::malformed(path, "safetensors", reason);
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(format!("{} bytes long, too short for a header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(bad(format!("its header claims {length} bytes, at most {MAX_HEADER_BYTES}")));
    }
    let Some((header, data)) =
        usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
    else {
        return Err(bad(format!(
            "its header claims {length} bytes, the file has {} after the length (truncated?)",
            rest.len()
        )));
    };
    // The crate's own `read_metadata` adds up the end of the data unchecked, which overflows on a
    // hostile header; its `Metadata` checks all else (no holes, no overlaps, sizes match shapes).
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| bad(error.to_string()))?;
    if metadata.data_len() != data.len() {
        return Err(bad(format!(
            "its header describes {} bytes of data, the file has {} (truncated?)",
            metadata.data_len(),
            data.len()
        )));
    }
    let start = bytes.len() - data.len();
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let range = start + from..start + to;
        entries.push(Entry { name, dtype: info.dtype, shape: info.shape.clone(), range });
    }
    entries.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
    });
    let extra = metadata.metadata().iter().flatten();
    Ok((entries, extra.map(|(key, value)| (key.clone(), value.clone())).collect()))
}
