//! A file mapped into memory, and giving its pages back once they were read.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::IoError;

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    bytes: Mmap,
}

impl MappedFile {
    /// Maps a regular file of at least `least` bytes (a pipe would hang, an empty file cannot be mapped).
    pub(crate) fn open(path: &Path, kind: &'static str, least: usize) -> Result<Self, IoError> {
        let meta = fs::metadata(path).map_err(|source| IoError::os("open", path, source))?;
        if !meta.is_file() {
            return Err(IoError::NotFound {
                path: path.to_path_buf(),
                expected: format!("a {kind} file"),
                found: if meta.is_dir() { "a directory".into() } else { "no regular file".into() },
            });
        }
        if meta.len() < least as u64 {
            let reason = format!("{} bytes long, too short for a header", meta.len());
            return Err(IoError::malformed(path, kind, reason));
        }
        let file = File::open(path).map_err(|source| IoError::os("open", path, source))?;
        // SAFETY: the map is read-only and private to this process. Its bytes are plain data without
        // invalid values, and no reference into it outlives the `Mmap`. Another process that rewrites
        // the file in place can change the values read, one that truncates it can end this process
        // with SIGBUS: the same holds for every reader that maps files, and nothing here does either
        // (all our writers create new files and rename them).
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) };
        let bytes = map.map_err(|source| IoError::os("map", path, source))?;
        Ok(Self { path: path.to_path_buf(), bytes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the pages of a range back to the system: whoever looks again reads them again. Without this a
    /// process that copies its weights out of a map counts them twice.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: Range<usize>) {
        if range.end > self.bytes.len() || range.is_empty() {
            return;
        }
        // SAFETY: MADV_DONTNEED drops nothing but cached pages here, since the map is shared, file-backed
        // and never written: a later access reads the same bytes from the file. The range lies in the map.
        #[allow(unsafe_code)]
        let advised = unsafe {
            self.bytes.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                range.start,
                range.len(),
            )
        };
        // Advice: without it the bytes are as right, only the memory is counted for longer.
        let _ = advised;
    }

    #[cfg(not(unix))]
    pub(crate) fn release(&self, _: Range<usize>) {}

    /// [`MappedFile::release`] for a part of [`MappedFile::bytes`].
    pub(crate) fn release_part(&self, part: &[u8]) {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        if start <= self.bytes.len() {
            self.release(start..start + part.len());
        }
    }
}
