//! Files that `torch.save` wrote: `.pth`, `.pt`, `pytorch_model.bin`.
//!
//! Two formats are read: a zip archive (PyTorch 1.6 and later), and the older sequence of pickles and raw storages. In
//! both a pickle says which tensors there are, and it is read by an interpreter that runs nothing ([`TorchFile::open`]
//! refuses, by name, everything but tensors and plain containers). Tensors are views of the mapped file: opening a file
//! of 26 GB takes as long, and as much memory, as its table of contents.
//!
//! Which of the file's dicts holds the weights:
//!
//! 1. the dict under `model`, `state_dict`, `model_state_dict` or `module`, if there is one with tensors, looked for in
//!    that order, and again inside what was found;
//! 2. else the dict itself, if tensors are in it;
//! 3. else the only dict in it that holds tensors.
//!
//! ```no_run
//! use aim_tensor::io::torch::TorchFile;
//!
//! let file = TorchFile::open("aim_600m_2bimgs_attnprobe_backbone.pth")?;
//! let norm = file.tensor("trunk.post_trunk_norm.weight")?.to_f32()?;
//! assert_eq!(norm.len(), 1536);
//! # Ok::<(), aim_tensor::io::IoError>(())
//! ```

#[cfg(test)]
mod forge;
mod legacy;
mod pickle;
mod state_dict;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::map::MappedFile;
use super::{IoError, View, closest, index};

/// For messages.
const KIND: &str = "PyTorch";

/// Why a file is not read: damaged, or asking for what is never done.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    refused: bool,
    reason: String,
}

impl Fault {
    fn refused(reason: impl Into<String>) -> Self {
        Self { refused: true, reason: reason.into() }
    }

    fn at(self, place: String) -> Self {
        Self { reason: format!("{} ({place})", self.reason), ..self }
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self { refused: false, reason }
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

/// One tensor in the file.
#[derive(Debug)]
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// None where it is row-major and contiguous.
    strides: Option<Vec<usize>>,
    /// From the first element to the last.
    range: Range<usize>,
}

/// What was found in a file.
#[derive(Debug)]
struct Contents {
    entries: Vec<Entry>,
    section: Option<String>,
}

/// The tensors of a file of `torch.save`, by name. The data stays on disk until it is looked at.
#[derive(Debug)]
pub struct TorchFile {
    map: MappedFile,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    section: Option<String>,
}

impl TorchFile {
    /// Opens a file and reads its table of contents.
    ///
    /// # Errors
    /// [`IoError::Refused`] if it names anything but tensors and plain containers, or is a zip archive with
    /// compressed, encrypted, doubled or overlapping entries; [`IoError::Malformed`] if it is damaged or has no state
    /// dict that can be told from others.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        let map = MappedFile::open(path, KIND, 4)?;
        let contents = parse(map.bytes()).map_err(|fault| {
            let Fault { refused, reason } = fault;
            if refused {
                return IoError::Refused { path: path.to_path_buf(), reason };
            }
            IoError::malformed(path, KIND, reason)
        })?;
        // The table of contents was scattered over the file, a page here and there.
        map.release(0..map.bytes().len());
        let Contents { entries, section } = contents;
        let numbered = entries.iter().enumerate();
        let by_name = numbered.map(|(at, entry)| (entry.name.clone(), at)).collect();
        Ok(Self { map, entries, by_name, section })
    }

    /// Whether bytes start as a file of `torch.save` does.
    pub(super) fn detects(start: &[u8]) -> bool {
        start.starts_with(b"PK\x03\x04") || legacy::detects(start)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Where in the file's nested dicts the tensors are, such as `model`; none when they are at the top.
    pub fn section(&self) -> Option<&str> {
        self.section.as_deref()
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names, in the order of the state dict.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`IoError::MissingTensor`] with the name that looks most like it.
    pub fn tensor(&self, name: &str) -> Result<View<'_>, IoError> {
        let entry = self.by_name.get(name).and_then(|&at| self.entries.get(at));
        let view = entry.and_then(|entry| {
            Some(View {
                path: self.path(),
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: self.map.bytes().get(entry.range.clone())?,
                strides: entry.strides.as_deref(),
                map: Some(&self.map),
            })
        });
        view.ok_or_else(|| IoError::MissingTensor {
            path: PathBuf::from(self.path()),
            name: name.to_string(),
            count: self.len(),
            closest: closest(self.names(), name),
        })
    }
}

/// Opens the shards that `stem.bin.index.json` of a directory lists, as Hugging Face names them.
///
/// # Errors
/// As [`TorchFile::open`], and when the index is malformed, names a file outside the directory, or a tensor that its
/// shard does not hold.
pub fn open_sharded(dir: impl AsRef<Path>, stem: &str) -> Result<Vec<TorchFile>, IoError> {
    let dir = dir.as_ref();
    let index_path = dir.join(format!("{stem}.bin.index.json"));
    let weight_map = index::read(&index_path, "bin")?;
    let mut shards: Vec<&String> = weight_map.values().collect();
    shards.sort();
    shards.dedup();
    let mut files = HashMap::new();
    for &shard in &shards {
        files.insert(shard, TorchFile::open(dir.join(shard))?);
    }
    for (name, shard) in &weight_map {
        if !files.get(shard).is_some_and(|file| file.contains(name)) {
            return Err(IoError::malformed(
                &index_path,
                index::KIND,
                format!("it puts tensor `{name}` in {shard}, which does not hold it"),
            ));
        }
    }
    Ok(shards.into_iter().filter_map(|shard| files.remove(shard)).collect())
}

/// Finds the tensors in the bytes of a file.
fn parse(bytes: &[u8]) -> Result<Contents, Fault> {
    if bytes.starts_with(b"PK") {
        return parse_zip(bytes);
    }
    if legacy::detects(bytes) {
        let (pickle, storages) = legacy::parse(bytes)?;
        return state_dict::collect(&pickle, &storages, bytes.len());
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Err("it is a tar archive, as PyTorch before 0.1.10 wrote; save it again".into());
    }
    Err("expected a zip archive or the older format of torch.save, found neither".into())
}

fn parse_zip(bytes: &[u8]) -> Result<Contents, Fault> {
    let archive = zip::parse(bytes)?;
    let mut roots = archive.entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots.next().filter(|root| root.is_empty() || root.ends_with('/'));
    let root = root.ok_or("a zip archive without data.pkl: not written by torch.save")?;
    if roots.next().is_some() {
        return Err("a zip archive with several data.pkl".into());
    }
    let entry = |name: &str| archive.entries.get(format!("{root}{name}").as_str());
    if entry("constants.pkl").is_some() {
        return Err(Fault::refused(
            "it is a TorchScript archive, which holds code: save the state_dict() instead",
        ));
    }
    if let Some(order) = entry("byteorder").and_then(|range| bytes.get(range.clone()))
        && order != b"little"
    {
        return Err("its storages are big-endian".into());
    }
    let range = entry("data.pkl").cloned().unwrap_or_default();
    let pickle = pickle::parse(bytes.get(range).unwrap_or_default())?;
    let mut storages = Vec::with_capacity(pickle.storages.len());
    for storage in &pickle.storages {
        let key =
            pickle.bytes.get(storage.key.clone()).and_then(|key| std::str::from_utf8(key).ok());
        let key = key.filter(|key| key.len() <= 256).ok_or("a storage whose key is no name")?;
        let range = entry(&format!("data/{key}"));
        let range = range.ok_or_else(|| format!("storage `{key}` is not in the archive"))?;
        storages.push(state_dict::check_length(storage, range.clone(), key)?);
    }
    state_dict::collect(&pickle, &storages, bytes.len())
}

/// For fuzzing: everything that opening a file does with its bytes.
pub(super) fn fuzz_file(bytes: &[u8]) {
    if let Ok(contents) = parse(bytes) {
        for entry in &contents.entries {
            assert!(entry.range.end <= bytes.len(), "{entry:?} of {} bytes", bytes.len());
            let view = View {
                path: Path::new("x"),
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: bytes.get(entry.range.clone()).unwrap_or_default(),
                strides: entry.strides.as_deref(),
                map: None,
            };
            assert!(view.elements() <= bytes.len());
            let _ = (view.to_f32(), view.to_i64());
        }
    }
}

/// For fuzzing: the pickle reader alone.
pub(super) fn fuzz_pickle(bytes: &[u8]) {
    if let Ok(pickle) = pickle::parse(bytes) {
        // Every storage as if it were there in full.
        let ranges: Vec<_> = pickle.storages.iter().map(|_| 0..bytes.len()).collect();
        let _ = state_dict::collect(&pickle, &ranges, bytes.len());
    }
}
