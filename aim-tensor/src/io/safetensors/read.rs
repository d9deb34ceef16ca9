//! Opening files: one, or the shards that an index lists.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::header::{self, Entry};
use crate::io::map::MappedFile;
use crate::io::{IoError, View, index};

/// Tensors by name, read from one file or from several with an index. The data stays on disk until
/// it is looked at.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    files: Vec<MappedFile>,
    entries: Vec<(usize, Entry)>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
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
        let index_path = dir.join(format!("{stem}.safetensors.index.json"));
        if !index_path.exists() {
            return Err(IoError::NotFound {
                path: dir.to_path_buf(),
                expected: format!("{stem}.safetensors or {stem}.safetensors.index.json in it"),
                found: if dir.is_dir() { "neither".into() } else { "no such directory".into() },
            });
        }
        let weight_map = index::read(&index_path, "safetensors")?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let files = shards.into_iter().map(|name| dir.join(name)).collect();
        let opened = Self::from_files(dir.to_path_buf(), files)?;
        for (name, shard) in &weight_map {
            let held = opened.by_name.get(name).and_then(|&i| opened.entries.get(i));
            let file = held.and_then(|(file, _)| opened.files.get(*file));
            if file.is_none_or(|file| file.path() != dir.join(shard)) {
                return Err(IoError::malformed(
                    &index_path,
                    index::KIND,
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
            let file = MappedFile::open(&path, "safetensors", header::LENGTH_BYTES)?;
            let (entries, metadata) = header::parse(&path, file.bytes())?;
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
            opened.files.push(file);
        }
        Ok(opened)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that were opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
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
                path: file.path(),
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: file.bytes().get(entry.range.clone())?,
                strides: None,
                map: Some(file),
            })
        });
        view.ok_or_else(|| IoError::MissingTensor {
            path: self.path.clone(),
            name: name.to_string(),
            count: self.len(),
            closest: crate::io::closest(self.names(), name),
        })
    }

    /// Says that a tensor has been copied: its pages no longer count as memory of this process. They are read again if
    /// it is looked at once more.
    pub fn release(&self, name: &str) {
        let held = self.by_name.get(name).and_then(|&index| self.entries.get(index));
        if let Some((file, entry)) = held
            && let Some(file) = self.files.get(*file)
        {
            file.release(entry.range.clone());
        }
    }

    /// All tensors, in the order of [`SafeTensors::names`].
    pub fn tensors(&self) -> impl Iterator<Item = View<'_>> {
        self.names().filter_map(|name| self.tensor(name).ok())
    }
}
