//! What can go wrong while training, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The operating system refused a file operation.
    #[error("cannot {op} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried: "create", "write", "sync", "rename", ...
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk, or the user's share of it, is full.
    #[error(
        "cannot {op} {}: the disk is full{}. Nothing already saved was touched: free some space, or \
         lower `checkpoint.keep`, or choose another output directory, and run the same command again",
        path.display(),
        free_bytes.map(|free| format!(" ({free} bytes free)")).unwrap_or_default()
    )]
    DiskFull {
        /// What was tried.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Free bytes on that file system when it happened, where it says.
        free_bytes: Option<u64>,
        /// The system's reason.
        source: io::Error,
    },
    /// A JSON file does not say what it should.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected there.
        reason: String,
    },
    /// Another trainer holds the run directory.
    #[error(
        "{} is in use by {holder}: wait until it ends or stop it, or choose another output directory",
        path.display()
    )]
    Locked {
        /// The run directory.
        path: PathBuf,
        /// Process and host, as the lock file tells.
        holder: String,
    },
    /// The loss or the gradient norm is not a finite number. The update was not applied.
    #[error(
        "{what} is {value} at step {step}: stopped before the update, so the parameters are those of \
         step {}. Look at the data of this step, lower `train.lr`, or resume from an older checkpoint",
        step.saturating_sub(1)
    )]
    NonFinite {
        /// The step, counted from 1, whose update was not applied.
        step: u64,
        /// "the loss" or "the gradient norm".
        what: &'static str,
        /// What it was.
        value: f64,
    },
    /// The configuration differs from the one that the checkpoint was trained with.
    #[error(
        "the configuration differs from that of {}:{}\nuse the checkpoint's values, or start a new run \
         in another directory",
        checkpoint.display(),
        differences.iter().map(|each| format!("\n  {each}")).collect::<String>()
    )]
    ResumeMismatch {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Every key that differs.
        differences: Vec<Difference>,
    },
    /// A checkpoint is incomplete or damaged.
    #[error("checkpoint {}: {file}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// The file in it.
        file: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A new run was asked for in a directory that has one.
    #[error("{} exists: resume it with --resume auto, or choose another output directory", path.display())]
    RunExists {
        /// A checkpoint of the run.
        path: PathBuf,
    },
    /// A run has checkpoints and none of them is whole.
    #[error(
        "{}: none of its checkpoints is whole, see the warnings; repair them, or move the directory away to start over",
        path.display()
    )]
    NoGoodCheckpoint {
        /// The run directory.
        path: PathBuf,
    },
    /// An unfinished file of features that cannot be continued.
    #[error(
        "{}: {reason}\ngive the command that began it, choose another output file, or begin again with --restart",
        path.display()
    )]
    PartialFeatures {
        /// The journal of the unfinished file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// No training data was named.
    #[error("no training data: expected --data SPEC or data.train in the configuration")]
    NoData,
    /// An image without a label where one is needed.
    #[error("{location}: no label; a probe needs class folders, .cls members or an IDX label file")]
    NoLabel {
        /// Where the image lies.
        location: String,
    },
    /// A label beyond the classes.
    #[error(
        "label {}: expected a class below {classes}",
        found.map_or_else(|| "missing".to_owned(), |found| found.to_string())
    )]
    BadLabel {
        /// The label.
        found: Option<u32>,
        /// Number of classes.
        classes: usize,
    },
    /// A directory that would be written over.
    #[error("{} holds something already: choose a directory that is new or empty", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Adapters that belong to another trunk.
    #[error(
        "the adapters in {} were trained on the weights of {base}, and those of {} are others: give \
         --checkpoint the former",
        adapter.display(), found.display()
    )]
    OtherTrunk {
        /// The adapters.
        adapter: PathBuf,
        /// What their trunk was called.
        base: String,
        /// The weights given.
        found: PathBuf,
    },
    /// A setting that cannot work.
    #[error("{key} = {value}: expected {expected}")]
    BadSetting {
        /// Which setting.
        key: &'static str,
        /// The value found.
        value: String,
        /// What would work.
        expected: String,
    },
    /// Fewer images than a computation needs.
    #[error("expected at least {expected} images, found {found}")]
    TooFewImages {
        /// Images there are.
        found: usize,
        /// Images needed.
        expected: usize,
    },
    /// Something that this build or device cannot do.
    #[error("{what} is not available: {instead}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A signal asked to stop, and the work was left.
    #[error("stopped by {signal}: run the same command again")]
    Stopped {
        /// Its name.
        signal: &'static str,
    },
    /// Something that is kept for later does not fit where it should go.
    #[error(
        "{what}: {needed_bytes} bytes are needed in {}, {available_bytes} may be used: {instead}",
        path.display()
    )]
    NoRoom {
        /// What is kept.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// Its size.
        needed_bytes: u64,
        /// What the disk or the limit leaves.
        available_bytes: u64,
        /// What to do.
        instead: &'static str,
    },
    /// Something in the program contradicts itself.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] aim_data::Error),
    /// The model cannot be built.
    #[error(transparent)]
    Model(#[from] aim_model::ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] aim_tensor::TensorError),
    /// A tensor file could not be laid out or read.
    #[error(transparent)]
    TensorFile(#[from] aim_tensor::io::IoError),
}

/// One configuration key with two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, as `section.key`.
    pub key: String,
    /// The checkpoint's value.
    pub saved: String,
    /// The value asked for now.
    pub current: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in the checkpoint, {} now", self.key, self.saved, self.current)
    }
}

impl TrainError {
    /// An error of the operating system, with its operation and path; a full disk is told apart.
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let free_bytes = free_bytes(&path);
                Self::DiskFull { op, path, free_bytes, source }
            }
            _ => Self::Io { op, path, source },
        }
    }
}

/// Free bytes for this user on the file system of `path`, or of its parent if it does not exist.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).or_else(|error| match path.parent() {
        Some(parent) => rustix::fs::statvfs(parent),
        None => Err(error),
    });
    stat.ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What to try, for the failures that users meet.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": check who owns it and its permissions",
        io::ErrorKind::ReadOnlyFilesystem => ": choose an output directory that can be written",
        io::ErrorKind::NotADirectory => ": a file is in the way of a directory",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let full = TrainError::io("write", &path, io::ErrorKind::StorageFull.into()).to_string();
        assert!(full.contains("model.safetensors: the disk is full ("), "{full}");
        assert!(full.contains("bytes free") && full.contains("checkpoint.keep"), "{full}");
        let denied = TrainError::io("create", &path, io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().ends_with("check who owns it and its permissions"), "{denied}");

        let nan = TrainError::NonFinite { step: 17, what: "the loss", value: f64::NAN }.to_string();
        assert!(
            nan.starts_with("the loss is NaN at step 17") && nan.contains("of step 16"),
            "{nan}"
        );

        let difference =
            Difference { key: "model.patch_size".into(), saved: "14".into(), current: "7".into() };
        let checkpoint = PathBuf::from("run/checkpoints/step-00000010");
        let mismatch = TrainError::ResumeMismatch { checkpoint, differences: vec![difference] };
        let mismatch = mismatch.to_string();
        assert!(
            mismatch.contains("\n  model.patch_size: 14 in the checkpoint, 7 now\n"),
            "{mismatch}"
        );
    }
}
