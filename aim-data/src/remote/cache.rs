//! Whole shards on the local disk, within a bound, shared by several processes.
//!
//! A shard is one file: its bytes, their BLAKE3 hash, a mark. It is written under another name and
//! renamed when it is complete, and checked whole whenever a process opens it. What was used
//! longest ago, by the files' times, goes first. A lock on `lock` covers looking around, evicting,
//! beginning and renaming; a lock on the unfinished file tells a running download from one whose
//! process has died.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::store::Object;
use super::windows::{Windows, Worth, lock};
use super::{RemoteError, RemoteOptions};
use crate::error::{Error, Result};

/// Ends every complete file, after the hash.
const MARK: &[u8; 8] = b"aimshrd1";
const TRAILER: u64 = 32 + MARK.len() as u64;
/// Shards kept open.
const MAX_OPEN: usize = 128;
/// How long a shard that could not be fetched into the cache is read without asking again.
const DECLINED: Duration = Duration::from_secs(2);
/// How often the time of a file in use is renewed.
const RENEW: Duration = Duration::from_secs(30);

/// The cache folder of a client.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    limit: u64,
    open: Mutex<HashMap<Arc<str>, Opened>>,
    /// One reader of this process fetches a shard, the others wait for it.
    fetching: Mutex<HashMap<Arc<str>, Arc<Mutex<()>>>>,
    /// Shards that could not be fetched, and when: looking around costs more than a sample.
    declined: Mutex<HashMap<Arc<str>, Instant>>,
    worth: Mutex<Worth>,
}

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    size: u64,
    used: u64,
    last_use: Instant,
    renewed: Instant,
}

impl Cache {
    /// The cache that the options ask for.
    pub(super) fn new(options: &RemoteOptions) -> Result<Option<Self>> {
        let Some(dir) = &options.cache_dir else {
            return Ok(None);
        };
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let this = Self {
            dir: dir.clone(),
            limit: options.cache_bytes,
            open: Mutex::default(),
            fetching: Mutex::default(),
            declined: Mutex::default(),
            worth: Mutex::default(),
        };
        // Fails now rather than in the middle of a run where the folder cannot be written.
        this.lock_folder().map_err(Error::io("write", dir))?;
        Ok(Some(this))
    }

    /// Whether shards of so many bytes in all fit.
    pub(super) fn fits(&self, total: u64) -> bool {
        total <= self.limit
    }

    /// The local file of a shard, fetched if need be, for a read of `used` bytes; `None` when it is
    /// better read from the store: too large, not used enough, another process is fetching it, or
    /// the disk is full.
    pub(super) fn file(
        &self,
        object: &Arc<Object>,
        windows: &Arc<Windows>,
        used: u64,
    ) -> Result<Option<Arc<File>>, RemoteError> {
        if object.size.saturating_add(TRAILER) > self.limit {
            return Ok(None);
        }
        if let Some(file) = self.opened(&object.name, used) {
            return Ok(Some(file));
        }
        if lock(&self.declined).get(&object.name).is_some_and(|at| at.elapsed() < DECLINED) {
            return Ok(None);
        }
        let turn = Arc::clone(lock(&self.fetching).entry(Arc::clone(&object.name)).or_default());
        let turn = lock(&turn);
        if let Some(file) = self.opened(&object.name, used) {
            return Ok(Some(file));
        }
        let mut file = self.verified(object).ok().flatten();
        if file.is_none() && lock(&self.worth).is_worth_while() {
            file = self.fetch(object, windows)?;
        }
        if file.is_none() {
            lock(&self.declined).insert(Arc::clone(&object.name), Instant::now());
        }
        let file = file.map(|file| self.keep_open(object, file, used));
        drop(turn);
        lock(&self.fetching).remove(&object.name);
        Ok(file)
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{name}.{kind}"))
    }

    fn opened(&self, name: &Arc<str>, used: u64) -> Option<Arc<File>> {
        let mut open = lock(&self.open);
        let opened = open.get_mut(name)?;
        let now = Instant::now();
        (opened.last_use, opened.used) = (now, opened.used + used);
        if now.duration_since(opened.renewed) > RENEW {
            opened.renewed = now;
            // Only the order of eviction depends on it.
            let _ = opened.file.set_modified(SystemTime::now());
        }
        Some(Arc::clone(&opened.file))
    }

    fn keep_open(&self, object: &Object, file: File, used: u64) -> Arc<File> {
        let file = Arc::new(file);
        let now = Instant::now();
        let mut open = lock(&self.open);
        // Files that other processes have removed give their space back only now.
        open.retain(|name, _| self.path(name, "shard").exists());
        if open.len() >= MAX_OPEN
            && let Some(oldest) = open.iter().min_by_key(|(_, opened)| opened.last_use)
        {
            let oldest = Arc::clone(oldest.0);
            open.remove(&oldest);
        }
        let (size, last_use, renewed) = (object.size, now, now);
        let opened = Opened { file: Arc::clone(&file), size, used, last_use, renewed };
        open.insert(Arc::clone(&object.name), opened);
        file
    }

    /// The complete file of a shard, if there is one and it is sound; a damaged one is removed.
    fn verified(&self, object: &Object) -> std::io::Result<Option<File>> {
        let path = self.path(&object.name, "shard");
        // Writable, so that its time can be renewed.
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if is_sound(&mut file, object.size)? {
            file.set_modified(SystemTime::now())?;
            return Ok(Some(file));
        }
        std::fs::remove_file(path)?;
        Ok(None)
    }

    /// Fetches a shard. Trouble with the disk means doing without, trouble with the store not.
    fn fetch(
        &self,
        object: &Arc<Object>,
        windows: &Arc<Windows>,
    ) -> Result<Option<File>, RemoteError> {
        let Ok(Some(mut part)) = self.begin(object) else {
            return Ok(None);
        };
        let mut hash = blake3::Hasher::new();
        let mut at = 0;
        while at < object.size {
            let (window, start) = windows.get(object, at, windows.window())?;
            let bytes = window.get((at - start) as usize..).unwrap_or_default();
            hash.update(bytes);
            if part.file.write_all(bytes).is_err() {
                return Ok(None);
            }
            at = start + window.len() as u64;
        }
        Ok(self.finish(part, object, hash.finalize().as_bytes()).ok())
    }

    /// Makes room and creates the unfinished file, at its full length so that it counts.
    fn begin(&self, object: &Object) -> std::io::Result<Option<Part>> {
        let _folder = self.lock_folder()?;
        let path = self.path(&object.name, "part");
        let size = object.size + TRAILER;
        if !self.make_room(size)? {
            return Ok(None);
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let part = Part { file, path };
        part.file.set_len(size)?;
        Ok(Some(part))
    }

    fn finish(&self, mut part: Part, object: &Object, hash: &[u8; 32]) -> std::io::Result<File> {
        part.file.write_all(hash)?;
        part.file.write_all(MARK)?;
        part.file.sync_all()?;
        let _folder = self.lock_folder()?;
        std::fs::rename(&part.path, self.path(&object.name, "shard"))?;
        part.file.unlock()?;
        // A second handle of the same file; the first one's drop finds nothing left to remove.
        part.file.try_clone()
    }

    fn lock_folder(&self) -> std::io::Result<File> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(file)
    }

    /// Removes what was used longest ago until `size` more bytes fit. The folder is locked.
    fn make_room(&self, size: u64) -> std::io::Result<bool> {
        let mut shards = Vec::new();
        let mut total = size;
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Ok(found) = path.symlink_metadata() else {
                continue;
            };
            match (found.is_file(), our_kind(&path)) {
                (true, Some("shard")) => {
                    total += found.len();
                    shards.push((found.modified()?, found.len(), path));
                }
                // Nobody holds it: its process has died.
                (true, Some("part")) if is_abandoned(&path) => std::fs::remove_file(path)?,
                (true, Some("part")) => total += found.len(),
                _ => {}
            }
        }
        shards.sort();
        for (_, bytes, path) in shards {
            if total <= self.limit {
                break;
            }
            std::fs::remove_file(&path)?;
            total -= bytes;
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(opened) = lock(&self.open).remove(name) {
                lock(&self.worth).evicted(opened.used, opened.size);
            }
        }
        Ok(total <= self.limit)
    }
}

/// A download under way; what is left of it goes when it is dropped.
struct Part {
    file: File,
    path: PathBuf,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Fails after the rename, which is as it should be.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `shard` or `part` for a file of the cache, which touches no other.
fn our_kind(path: &Path) -> Option<&str> {
    let stem = path.file_stem()?.to_str()?;
    let ours = stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    path.extension()?.to_str().filter(|_| ours)
}

fn is_abandoned(path: &Path) -> bool {
    OpenOptions::new().write(true).open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// Whether a file has the length, the mark and the hash that it should have.
fn is_sound(file: &mut File, size: u64) -> std::io::Result<bool> {
    if file.metadata()?.len() != size + TRAILER {
        return Ok(false);
    }
    file.rewind()?;
    let mut hash = blake3::Hasher::new();
    hash.update_reader((&mut *file).take(size))?;
    let mut trailer = [0; TRAILER as usize];
    file.read_exact(&mut trailer)?;
    Ok(trailer[..32] == *hash.finalize().as_bytes() && trailer[32..] == *MARK)
}
