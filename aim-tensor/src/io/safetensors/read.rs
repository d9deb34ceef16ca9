//! Opening files: one, or the shards that an index lists.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::header::{self, Entry};
use super::view::View;
use crate::io::IoError;

/// An index of a 7B model is 30 kB.
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// Tensors by name, read from one file or from several with an index. The data stays on disk until
/// it is looked at.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    files: Vec<Mapped>,
    entries: Vec<(usize, Entry)>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

impl SafeTensors {
    /// Opens a `.safetensors` file, or a directory with `model.safetensors` or with
    /// `model.safetensors.index.json` and its shards.
    ///
    /// # Errors
    /// If there is no such file, or a header or the index is malformed, or the index names a file
    /// outside the directory or a tensor that its shard does not hold.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IoError> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_dir(path, "model");
        }
        Self::from_files(path.to_path_buf(), vec![path.to_path_buf()])
    }

    /// Opens `stem.safetensors`, or `stem.safetensors.index.json` and its shards, in a directory.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn open_dir(dir: impl AsRef<Path>, stem: &str) -> Result<Self, IoError> {
        let dir = dir.as_ref();
        let single = dir.join(format!("{stem}.safetensors"));
        if single.exists() {
            return Self::from_files(dir.to_path_buf(), vec![single]);
        }
        let index = dir.join(format!("{stem}.safetensors.index.json"));
        if !index.exists() {
            return Err(IoError::NotFound {
                path: dir.to_path_buf(),
                expected: format!("{stem}.safetensors or {stem}.safetensors.index.json in it"),
                found: if dir.is_dir() { "neither".into() } else { "no such directory".into() },
            });
        }
        let weight_map = read_index(&index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let files = shards.into_iter().map(|name| dir.join(name)).collect();
        let opened = Self::from_files(dir.to_path_buf(), files)?;
        for (name, shard) in &weight_map {
            let held = opened.by_name.get(name).and_then(|&i| opened.entries.get(i));
            let file = held.and_then(|(file, _)| opened.files.get(*file));
            if file.is_none_or(|file| file.path != dir.join(shard)) {
                return Err(IoError::malformed(
                    &index,
                    "safetensors index",
                    format!("it puts tensor `{name}` in {shard}, which does not hold it"),
                ));
            }
        }
        Ok(opened)
    }

    fn from_files(path: PathBuf, paths: Vec<PathBuf>) -> Result<Self, IoError> {
        let mut opened = Self {
            path,
            files: Vec::with_capacity(paths.len()),
            entries: Vec::new(),
            by_name: HashMap::new(),
            metadata: BTreeMap::new(),
        };
        for path in paths {
            let bytes = map_file(&path)?;
            let (entries, metadata) = header::parse(&path, &bytes)?;
            opened.metadata.extend(metadata);
            for entry in entries {
                if opened.by_name.insert(entry.name.clone(), opened.entries.len()).is_some() {
                    return Err(IoError::malformed(
                        &path,
                        "safetensors",
                        format!("tensor `{}` is also in another shard", entry.name),
                    ));
                }
                opened.entries.push((opened.files.len(), entry));
            }
            opened.files.push(Mapped { path, bytes });
        }
        Ok(opened)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names, in the order of the bytes, shard after shard.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(_, entry)| entry.name.as_str())
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The free-form strings of the header (`__metadata__`), of all shards together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`IoError::MissingTensor`] with the name that looks most like it.
    pub fn tensor(&self, name: &str) -> Result<View<'_>, IoError> {
        let held = self.by_name.get(name).and_then(|&index| self.entries.get(index));
        let view = held.and_then(|(file, entry)| {
            let file = self.files.get(*file)?;
            Some(View {
                path: &file.path,
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: file.bytes.get(entry.range.clone())?,
            })
        });
        view.ok_or_else(|| IoError::MissingTensor {
            path: self.path.clone(),
            name: name.to_string(),
            count: self.len(),
            closest: self.closest(name),
        })
    }

    /// Says that a tensor has been copied: its pages no longer count as memory of this process. They are read again if
    /// it is looked at once more.
    pub fn release(&self, name: &str) {
        let held = self.by_name.get(name).and_then(|&index| self.entries.get(index));
        if let Some((file, entry)) = held
            && let Some(file) = self.files.get(*file)
        {
            release_pages(&file.bytes, entry.range.clone());
        }
    }

    /// All tensors, in the order of [`SafeTensors::names`].
    pub fn tensors(&self) -> impl Iterator<Item = View<'_>> {
        self.names().filter_map(|name| self.tensor(name).ok())
    }

    /// The stored name that shares the longest suffix with `name`: what differs in practice is a
    /// prefix (`module.`, `model.trunk.`) or a layer number.
    fn closest(&self, name: &str) -> Option<String> {
        let shared = |other: &str| {
            name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count()
        };
        let best = self.names().max_by_key(|other| shared(other))?;
        (shared(best) * 2 >= name.len()).then(|| best.to_string())
    }
}

/// Maps a regular file of at least one byte (a pipe would hang, an empty file cannot be mapped).
fn map_file(path: &Path) -> Result<Mmap, IoError> {
    let kind = fs::metadata(path).map_err(|source| IoError::os("open", path, source))?;
    if !kind.is_file() {
        return Err(IoError::NotFound {
            path: path.to_path_buf(),
            expected: "a safetensors file".into(),
            found: if kind.is_dir() { "a directory".into() } else { "no regular file".into() },
        });
    }
    if kind.len() < header::LENGTH_BYTES as u64 {
        return Err(IoError::malformed(
            path,
            "safetensors",
            format!("{} bytes long, too short for a header", kind.len()),
        ));
    }
    let file = File::open(path).map_err(|source| IoError::os("open", path, source))?;
    // SAFETY: the map is read-only and private to this process. Its bytes are plain data without
    // invalid values, and no reference into it outlives the `Mmap`. Another process that rewrites
    // the file in place can change the values read, one that truncates it can end this process with
    // SIGBUS: the same holds for every reader that maps files, and nothing here does either (all
    // our writers create new files and rename them).
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|source| IoError::os("map", path, source))
}

/// Gives back the pages of a stretch of a map; those that it shares with its neighbours come back at the next look.
#[cfg(unix)]
fn release_pages(map: &Mmap, range: std::ops::Range<usize>) {
    // SAFETY: the map is of a file and read-only: a page that was given back is read from the file again, so no byte
    // that a reference could look at changes.
    #[allow(unsafe_code)]
    let released = unsafe {
        map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
    };
    // Only a hint: a system that refuses it keeps the pages.
    let _ = released;
}

#[cfg(not(unix))]
fn release_pages(_: &Mmap, _: std::ops::Range<usize>) {}

/// Tensor name to shard name, every shard a plain file name of this directory.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, IoError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |reason: String| IoError::malformed(path, "safetensors index", reason);
    let kind = fs::metadata(path).map_err(|source| IoError::os("open", path, source))?;
    if !kind.is_file() || kind.len() > MAX_INDEX_BYTES {
        return Err(bad(format!("expected a file of at most {MAX_INDEX_BYTES} bytes")));
    }
    let text = fs::read(path).map_err(|source| IoError::os("read", path, source))?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    for (name, shard) in &index.weight_map {
        let plain = shard.ends_with(".safetensors")
            && !shard.starts_with('.')
            && !shard.contains(['/', '\\', '\0', ':']);
        if !plain {
            return Err(bad(format!(
                "tensor `{name}` is said to be in {shard:?}: expected the plain name of a \
                 .safetensors file in the same directory"
            )));
        }
    }
    Ok(index.weight_map)
}
