//! Finding, verifying and reading checkpoints.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::manifest::{self, Manifest};
use super::{checkpoints_dir, parse_step_name};
use crate::TrainError;
use crate::durable::FileRecord;

/// JSON files hold a few counters and settings.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Files are hashed in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// A checkpoint as its name tells, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The step: that many updates were applied.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
}

/// A checkpoint that verified.
#[derive(Debug, Clone)]
pub struct Found {
    /// The step: that many updates were applied.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

/// The checkpoints of a run, newest first; none if there is no such directory.
///
/// # Errors
/// [`TrainError::Io`] if the directory cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<Entry>, TrainError> {
    let mut entries: Vec<Entry> = directories(&checkpoints_dir(run_dir))?
        .into_iter()
        .filter_map(|(name, path)| Some(Entry { step: parse_step_name(&name)?, path }))
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.step));
    Ok(entries)
}

/// The directories in a directory, with their names where those are Unicode (ours are).
pub(super) fn directories(parent: &Path) -> Result<Vec<(String, PathBuf)>, TrainError> {
    let io = |source| TrainError::io("list", parent, source);
    let read = match fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(io)?,
    };
    let mut found = Vec::new();
    for entry in read {
        let entry = entry.map_err(io)?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_dir()) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Checks a checkpoint: the manifest, and every file's size and hash. Sizes are compared first;
/// hashing streams, so the memory needed does not grow with the checkpoint.
///
/// # Errors
/// [`TrainError::Checkpoint`] with the first file that differs, what was expected and found.
pub fn verify(dir: &Path) -> Result<Manifest, TrainError> {
    let manifest = Manifest::read(dir)?;
    let bad = |file: &str, reason: String| TrainError::Checkpoint {
        path: dir.to_path_buf(),
        file: file.into(),
        reason,
    };
    let name = dir.file_name().and_then(|name| name.to_str());
    // A directory of another name (a copy) is fine; one that claims another step is not.
    if let Some(step) = name.and_then(parse_step_name).filter(|&step| step != manifest.step) {
        let reason = format!("it is of step {}, the directory of step {step}", manifest.step);
        return Err(bad(manifest::MANIFEST, reason));
    }
    for file in &manifest.files {
        check_size(dir, file).map_err(|reason| bad(&file.name, reason))?;
    }
    for file in &manifest.files {
        check_hash(dir, file).map_err(|reason| bad(&file.name, reason))?;
    }
    Ok(manifest)
}

fn check_size(dir: &Path, expected: &FileRecord) -> Result<(), String> {
    let kind = fs::metadata(dir.join(&expected.name)).map_err(|error| error.to_string())?;
    if !kind.is_file() {
        return Err("expected a regular file".into());
    }
    if kind.len() == expected.bytes {
        return Ok(());
    }
    Err(format!("expected {} bytes, found {}", expected.bytes, kind.len()))
}

fn check_hash(dir: &Path, expected: &FileRecord) -> Result<(), String> {
    let mut file = File::open(dir.join(&expected.name)).map_err(|error| error.to_string())?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = expected.bytes;
    while left > 0 {
        let count = file.read(&mut chunk).map_err(|error| error.to_string())?;
        let read = chunk.get(..count).unwrap_or_default();
        if count == 0 || count as u64 > left {
            return Err("its size changed while it was read".into());
        }
        hasher.update(read);
        left -= count as u64;
    }
    let found = hasher.finalize().to_string();
    if found == expected.blake3 {
        return Ok(());
    }
    Err(format!("expected BLAKE3 {}, found {found}: its content has changed", expected.blake3))
}

/// The newest checkpoint that verifies. Those that do not are reported to `on_skip`, newest first,
/// and left alone.
///
/// # Errors
/// [`TrainError::Io`] if the directory cannot be read.
pub fn newest_valid(
    run_dir: &Path,
    mut on_skip: impl FnMut(&Path, &TrainError),
) -> Result<Option<Found>, TrainError> {
    for Entry { step, path } in list(run_dir)? {
        match verify(&path) {
            Ok(manifest) => return Ok(Some(Found { step, path, manifest })),
            Err(error) => on_skip(&path, &error),
        }
    }
    Ok(None)
}

/// Reads a JSON file of a checkpoint.
///
/// # Errors
/// [`TrainError::Json`] with the path and what is wrong.
pub fn read_json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T, TrainError> {
    let path = dir.join(name);
    let read = manifest::read_small(&path, MAX_JSON_BYTES)
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    read.map_err(|reason| TrainError::Json { path, reason })
}
