//! One trainer per run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::{TrainError, durable};

/// An advisory lock (`flock`) on `RUN/lock`, held until it is dropped. The system releases it when
/// the process ends, however it ends, so there are no stale locks; the file itself stays, since
/// removing it would let two processes hold locks on two files of the same name.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks a run directory, which is created if need be, and notes this process and host there.
    ///
    /// # Errors
    /// [`TrainError::Locked`] with the holder's process and host; [`TrainError::Io`] if the lock
    /// file cannot be opened.
    pub fn acquire(run_dir: &Path) -> Result<Self, TrainError> {
        durable::create_dir(run_dir)?;
        let path = run_dir.join("lock");
        let io = |op| move |path: &Path, source| TrainError::io(op, path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| io("open")(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder may be between locking and writing: then its name is not known yet.
                let read = file.take(200).read_to_string(&mut holder);
                let holder = holder.trim();
                let known = read.is_ok() && !holder.is_empty();
                return Err(TrainError::Locked {
                    path: run_dir.to_path_buf(),
                    holder: if known { holder.into() } else { "another process".into() },
                });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(&path, source)),
        }
        let text = format!("process {} on {}\n", std::process::id(), host_name());
        let noted = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(text.as_bytes()));
        noted.map_err(|source| io("write")(&path, source))?;
        Ok(Self { _file: file })
    }
}

/// The machine's name, without characters that do not belong into a file name.
pub(crate) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .take(64)
        .collect();
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_trainer_is_told_who_holds_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("new/run");
        let held = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        let holder = format!("in use by process {} on {}", std::process::id(), host_name());
        assert!(message.contains(&holder), "{message}");
        drop(held);
        assert!(RunLock::acquire(&run).is_ok());
    }

    #[test]
    fn an_older_longer_note_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "x".repeat(500)).unwrap();
        let _held = RunLock::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert!(text.starts_with("process ") && text.lines().count() == 1, "{text}");
    }
}
