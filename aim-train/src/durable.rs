//! The few primitives that every durable write goes through: create, write and hash, sync, rename.
//!
//! A rename makes a file visible, a sync makes it last; what must survive a power cut needs both, of
//! the file *and* of its directory. Debug builds can be made to kill themselves at any single one
//! of these operations, which is how the tests hold the promise that a visible checkpoint is whole:
//! `AIM_FAULT_KILL_AT=N` ends the process with SIGKILL at its N-th operation, counted from 1, and
//! `AIM_FAULT_TRACE=FILE` appends a line for each. Release builds hold no such code.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::TrainError;

/// Data is written, hashed and counted in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// Size and hash of a file, as they are listed in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// The file's plain name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its BLAKE3 hash in hexadecimal.
    pub blake3: String,
}

/// A new file that is hashed while it is written and synced when it is finished.
#[derive(Debug)]
pub struct DurableFile {
    file: File,
    path: PathBuf,
    pending: Vec<u8>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl DurableFile {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, TrainError> {
        let path = path.into();
        fault::point("create", &path);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|source| TrainError::io("create", &path, source))?;
        let pending = Vec::with_capacity(CHUNK_BYTES);
        Ok(Self { file, path, pending, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Writes what `body` writes, keeping the path in the error.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn write_with(
        &mut self,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), TrainError> {
        let written = body(self);
        written.map_err(|source| TrainError::io("write", &self.path, source))
    }

    /// Writes what is left, syncs the file and says what it holds.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn finish(mut self) -> Result<FileRecord, TrainError> {
        let flushed = self.flush();
        flushed.map_err(|source| TrainError::io("write", &self.path, source))?;
        sync_file(&self.file, &self.path)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(FileRecord { name, bytes: self.bytes, blake3: self.hasher.finalize().to_string() })
    }

    /// Data that is already in one piece is not copied first.
    fn write_through(&mut self, chunk: &[u8]) -> io::Result<()> {
        fault::write_all(&mut self.file, chunk, &self.path)?;
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }
}

impl Write for DurableFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.pending.is_empty() && data.len() >= CHUNK_BYTES {
            let chunk = data.get(..CHUNK_BYTES).unwrap_or(data);
            self.write_through(chunk)?;
            return Ok(chunk.len());
        }
        let taken = data.len().min(CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(data.get(..taken).unwrap_or_default());
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.write_through(&pending)?;
        }
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }
}

/// Writes at a place in a file. Not durable before [`sync_file`].
pub(crate) fn write_at(
    file: &mut File,
    offset: u64,
    data: &[u8],
    path: &Path,
) -> Result<(), TrainError> {
    let sought = file.seek(SeekFrom::Start(offset));
    let written = sought.and_then(|_| fault::write_all(file, data, path));
    written.map_err(|source| TrainError::io("write", path, source))
}

/// Writes at the end of a file, where it stands, and makes it last.
pub(crate) fn append(file: &mut File, data: &[u8], path: &Path) -> Result<(), TrainError> {
    let written = fault::write_all(file, data, path);
    written.map_err(|source| TrainError::io("write", path, source))?;
    sync_file(file, path)
}

/// Removes a file if it is there.
///
/// # Errors
/// [`TrainError::Io`].
pub fn remove_file(path: &Path) -> Result<(), TrainError> {
    fault::point("remove", path);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TrainError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes a file's content last.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<(), TrainError> {
    fault::point("sync", path);
    file.sync_all().map_err(|source| TrainError::io("sync", path, source))
}

/// Makes the names in a directory last.
///
/// # Errors
/// [`TrainError::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), TrainError> {
    fault::point("sync directory", dir);
    let synced = File::open(dir).and_then(|handle| handle.sync_all());
    synced.map_err(|source| TrainError::io("sync", dir, source))
}

/// Renames within a file system, in one step for every observer. Lasts after [`sync_dir`].
///
/// # Errors
/// [`TrainError::Io`].
pub fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    fault::point("rename", to);
    fs::rename(from, to).map_err(|source| TrainError::io("rename", from, source))
}

/// Creates a directory and those above it, and makes the last name last.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::DiskFull`].
pub fn create_dir(dir: &Path) -> Result<(), TrainError> {
    if dir.is_dir() {
        return Ok(());
    }
    fault::point("create directory", dir);
    fs::create_dir_all(dir).map_err(|source| TrainError::io("create", dir, source))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Removes a directory and what is in it, one entry after the other.
///
/// # Errors
/// [`TrainError::Io`].
pub fn remove_dir_all(dir: &Path) -> Result<(), TrainError> {
    let io = |source| TrainError::io("remove", dir, source);
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        fault::point("remove", &path);
        // A link is removed, not followed.
        let is_dir = path.symlink_metadata().map_err(io)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| TrainError::io("remove", &path, source))?;
    }
    fault::point("remove directory", dir);
    fs::remove_dir(dir).map_err(io)
}

/// Replaces a file, or creates it: whoever looks sees the old content or the new, also after a
/// power cut.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::DiskFull`]; the old file is then still there.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), TrainError> {
    replace_with(path, |out| out.write_all(content))
}

/// [`replace`] with content that is streamed.
pub(crate) fn replace_with(
    path: &Path,
    body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), TrainError> {
    let mut name = std::ffi::OsString::from(".tmp-");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    // Only the holder of the run's lock writes here: a leftover is that of a killed run.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(TrainError::io("remove", &temporary, error));
        }
        _ => {}
    }
    let written = (|| {
        let mut file = DurableFile::create(&temporary)?;
        file.write_with(body)?;
        file.finish()?;
        rename(&temporary, path)
    })();
    if let Err(error) = written {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Points at which a test may kill the process.
#[cfg(debug_assertions)]
mod fault {
    use std::fs::{File, OpenOptions};
    use std::io::{self, Write};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    static POINTS: AtomicU64 = AtomicU64::new(0);

    /// Counts an operation that is about to happen, and kills the process if it is the chosen one.
    pub(super) fn point(kind: &str, path: &Path) {
        let count = POINTS.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(trace) = std::env::var_os("AIM_FAULT_TRACE") {
            let line = format!("{count} {kind} {}\n", path.display());
            let trace = OpenOptions::new().create(true).append(true).open(trace);
            // A trace that cannot be written is missed by the test that reads it.
            let _ = trace.and_then(|mut trace| trace.write_all(line.as_bytes()));
        }
        let chosen = std::env::var("AIM_FAULT_KILL_AT").ok().and_then(|at| at.parse().ok());
        if chosen == Some(count) {
            let _ = signal_hook::low_level::raise(KILL);
            // SIGKILL does not return; nothing may be cleaned up should it not be deliverable.
            std::process::abort();
        }
    }

    /// SIGKILL, which signal-hook does not name because it cannot be handled.
    const KILL: i32 = 9;

    /// A write with one point before it and one in the middle, for files torn in two.
    pub(super) fn write_all(file: &mut File, data: &[u8], path: &Path) -> io::Result<()> {
        let (head, tail) = data.split_at(data.len() / 2);
        point("write", path);
        file.write_all(head)?;
        point("write half", path);
        file.write_all(tail)
    }
}

#[cfg(not(debug_assertions))]
mod fault {
    use std::fs::File;
    use std::io::{self, Write};
    use std::path::Path;

    #[inline(always)]
    pub(super) fn point(_kind: &str, _path: &Path) {}

    #[inline(always)]
    pub(super) fn write_all(file: &mut File, data: &[u8], _path: &Path) -> io::Result<()> {
        file.write_all(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_what_it_writes_whatever_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..3 * CHUNK_BYTES + 17).map(|i| (i * 7 % 251) as u8).collect();
        for (index, piece) in [1000, CHUNK_BYTES, CHUNK_BYTES + 1, data.len()].iter().enumerate() {
            let path = dir.path().join(format!("{index}.bin"));
            let mut file = DurableFile::create(&path).unwrap();
            file.write_with(|out| data.chunks(*piece).try_for_each(|c| out.write_all(c))).unwrap();
            let record = file.finish().unwrap();
            assert_eq!(record.name, format!("{index}.bin"));
            assert_eq!(record.bytes, data.len() as u64);
            assert_eq!(record.blake3, blake3::hash(&data).to_string());
            assert!(fs::read(&path).unwrap() == data);
            let error = DurableFile::create(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("cannot create {}", path.display())), "{error}");
        }
    }

    #[test]
    fn replace_leaves_nothing_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(dir.path().join(".tmp-config.toml"), "of a killed run").unwrap();
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(replace_with(&path, |_| Err(io::ErrorKind::StorageFull.into())).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
