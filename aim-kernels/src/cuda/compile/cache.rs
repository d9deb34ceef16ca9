//! Compiled kernels on disk.
//!
//! An entry is the cubin as it is, so that other tools read it, followed by the log and a footer: the lengths of both,
//! the hash of all before it, and a mark.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cuda::libraries::Version;

const MARK: &[u8; 8] = b"aimcubin";
const HASH: usize = 32;
const FOOTER: usize = 8 + 8 + HASH + MARK.len();
/// Larger files are no entries.
const MOST_BYTES: u64 = 256 << 20;

/// The folder of the cache.
pub(super) struct Cache {
    folder: PathBuf,
}

/// What was read from it.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) version: Version,
    pub(super) cubin: Vec<u8>,
    pub(super) log: String,
}

/// The hash by which source and options are known.
pub(super) fn hash(source: &str, options: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in options.iter().map(String::as_str).chain([source]) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

pub(super) fn folder() -> Option<PathBuf> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // As the XDG specification has it, relative paths do not count there.
    let absolute = |path: &PathBuf| path.is_absolute();
    variable("AIM_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME").filter(absolute)?.join("aim")))
        .or_else(|| Some(variable("HOME").filter(absolute)?.join(".cache/aim")))
}

impl Cache {
    /// The cache, or a note why there is none.
    pub(super) fn open() -> Result<Self, String> {
        let folder = folder().ok_or_else(|| {
            "compiled kernels are not kept: none of AIM_CACHE, XDG_CACHE_HOME and HOME is set"
                .to_owned()
        })?;
        Ok(Self { folder })
    }

    fn path(&self, arch: &str, hash: &str, version: Version) -> PathBuf {
        let Version { major, minor, .. } = version;
        self.folder.join(format!("{arch}-{hash}-nvrtc{major}.{minor}.cubin"))
    }

    /// The entry, None if there is none, or a note on one that is no use.
    pub(super) fn read(
        &self,
        arch: &str,
        hash: &str,
        version: Version,
    ) -> Result<Option<Entry>, String> {
        let path = self.path(arch, hash, version);
        let file = match read_bounded(&path) {
            Ok(file) => file,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        match unpack(file) {
            Some((cubin, log)) => Ok(Some(Entry { path, version, cubin, log })),
            None => Err(format!("{} is damaged and was made again", path.display())),
        }
    }

    /// What the newest NVRTC made of this source.
    pub(super) fn newest(&self, arch: &str, hash: &str) -> Option<Entry> {
        let start = format!("{arch}-{hash}-nvrtc");
        let names = self.folder.read_dir().ok()?.flatten().map(|entry| entry.file_name());
        let version = |name: String| {
            let rest = name.strip_prefix(&start)?.strip_suffix(".cubin")?;
            let (major, minor) = rest.split_once('.')?;
            Some(Version { major: major.parse().ok()?, minor: minor.parse().ok()?, patch: 0 })
        };
        let mut versions: Vec<_> =
            names.filter_map(|name| version(name.into_string().ok()?)).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.into_iter().find_map(|version| self.read(arch, hash, version).ok()?)
    }

    /// Keeps an entry. It appears under its name when it is whole; several processes may write the same one.
    pub(super) fn write(
        &self,
        arch: &str,
        hash: &str,
        version: Version,
        cubin: &[u8],
        log: &str,
    ) -> Result<(), String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.path(arch, hash, version);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{}.{count}.new", std::process::id()));
        let written = std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(&new, pack(cubin, log)))
            .and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&new);
            format!(
                "compiled kernels could not be kept in {}: {error}; AIM_CACHE can name another folder",
                self.folder.display()
            )
        })
    }
}

/// Whether there is no such file; whether there could be is for writing to tell.
fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn pack(cubin: &[u8], log: &str) -> Vec<u8> {
    let mut file = Vec::with_capacity(cubin.len() + log.len() + FOOTER);
    file.extend_from_slice(cubin);
    file.extend_from_slice(log.as_bytes());
    file.extend_from_slice(&(cubin.len() as u64).to_le_bytes());
    file.extend_from_slice(&(log.len() as u64).to_le_bytes());
    let hash = blake3::hash(&file);
    file.extend_from_slice(hash.as_bytes());
    file.extend_from_slice(MARK);
    file
}

/// Cubin and log, if the file is whole.
fn unpack(mut file: Vec<u8>) -> Option<(Vec<u8>, String)> {
    let number = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok();
    let body = file.len().checked_sub(FOOTER)?;
    let (lengths, rest) = file[body..].split_at(16);
    let (hash, mark) = rest.split_at(HASH);
    let (cubin, log) = (number(&lengths[..8])?, number(&lengths[8..])?);
    let whole = mark == MARK && cubin.checked_add(log) == Some(body);
    if !whole || blake3::hash(&file[..body + 16]).as_bytes() != hash {
        return None;
    }
    let log = String::from_utf8(file[cubin..body].to_vec()).ok()?;
    file.truncate(cubin);
    Some((file, log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_whole_or_not_at_all() {
        let file = pack(b"\x7fELF cubin", "the log");
        let expected = (b"\x7fELF cubin".to_vec(), "the log".to_owned());
        assert_eq!(unpack(file.clone()), Some(expected));
        for len in 0..file.len() {
            assert_eq!(unpack(file[..len].to_vec()), None, "cut at {len}");
        }
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 0x40;
            assert_eq!(unpack(other), None, "changed at {at}");
        }
    }

    #[test]
    fn the_hash_tells_options_apart() {
        let hash = |options: &[&str]| {
            hash("x", &options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(hash(&["ab"]).len(), 32);
    }
}
