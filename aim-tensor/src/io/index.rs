//! The index of a model in several files, as Hugging Face writes it beside safetensors and `.bin` shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::IoError;

/// For messages.
pub(crate) const KIND: &str = "index";

/// An index of a 7B model is 30 kB.
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// Tensor name to shard name, every shard a plain file name of this directory that ends with `.extension`.
pub(crate) fn read(path: &Path, extension: &str) -> Result<BTreeMap<String, String>, IoError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |reason: String| IoError::malformed(path, KIND, reason);
    let kind = fs::metadata(path).map_err(|source| IoError::os("open", path, source))?;
    if !kind.is_file() || kind.len() > MAX_INDEX_BYTES {
        return Err(bad(format!("expected a file of at most {MAX_INDEX_BYTES} bytes")));
    }
    let text = fs::read(path).map_err(|source| IoError::os("read", path, source))?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    for (name, shard) in &index.weight_map {
        let plain = shard.ends_with(&format!(".{extension}"))
            && !shard.starts_with('.')
            && !shard.contains(['/', '\\', '\0', ':']);
        if !plain {
            return Err(bad(format!(
                "tensor `{name}` is said to be in {shard:?}: expected the plain name of a \
                 .{extension} file in the same directory"
            )));
        }
    }
    Ok(index.weight_map)
}
