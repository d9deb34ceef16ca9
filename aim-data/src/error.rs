//! What can go wrong: [`Error`] ends an operation, a [`Defect`] condemns one sample only.

use std::fmt;
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on images could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb: `open`, `read`, `create`.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A data specification that cannot be understood or names nothing usable.
    #[error("data spec `{spec}`: {reason}\n{}", crate::spec::SPEC_FORMS)]
    Spec {
        /// The specification as given.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A place that was expected to hold images holds none.
    #[error("no images in {location}: {reason}")]
    Empty {
        /// The folder, shard pattern or file.
        location: String,
        /// What was looked for and what was found instead.
        reason: String,
    },

    /// A container (IDX file, safetensors file, packed index) that does not follow its format.
    #[error("{path}, byte {offset}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What was expected and what was found.
        reason: String,
    },

    /// A tar shard that is damaged or holds something no image shard should.
    #[error("shard {shard}, byte {offset}, key `{key}`: {problem}", shard = shard.display())]
    Shard {
        /// The tar file.
        shard: PathBuf,
        /// Where the member's header starts, in bytes.
        offset: u64,
        /// The member's key, or its whole name where it has no valid key.
        key: String,
        /// What is wrong.
        problem: ShardProblem,
    },

    /// Something in an object store or on a web server that cannot be had.
    #[error(transparent)]
    Remote(#[from] crate::remote::RemoteError),

    /// Options that contradict each other or the data.
    #[error("{0}")]
    Config(String),

    /// A loader state that belongs to other data.
    #[error(
        "the loader state was made with other data: {}. Give the data the run started with, or \
         start a new run",
        changed(expected, found, changes)
    )]
    StateMismatch {
        /// The fingerprint recorded in the state.
        expected: String,
        /// The fingerprint of the sources in use.
        found: String,
        /// What has changed, in words; empty for a state that remembers the fingerprint only.
        changes: Vec<String>,
    },

    /// Storage that did not answer, after all retries: not the sample's fault. To pass the sample
    /// over would make the order depend on the weather.
    #[error(
        "{}: {}. Start again when the storage can be reached: the run goes on where it was",
        defect.location,
        defect.reason
    )]
    Unavailable {
        /// The sample that was to be read, of kind [`DefectKind::Unavailable`].
        defect: Box<Defect>,
    },

    /// More samples than tolerated could not be used.
    #[error(
        "{bad} of {seen} samples could not be used (tolerated: {tolerated}). First of them:{}",
        list(first)
    )]
    TooManyBad {
        /// Samples that could not be used.
        bad: u64,
        /// Samples tried, the bad ones included.
        seen: u64,
        /// The limit in words.
        tolerated: String,
        /// The first few defects.
        first: Vec<Defect>,
    },

    /// No sample in a row of candidates could be used.
    #[error("{tried} samples in a row could not be used, beginning with:{}", list(first))]
    NoUsableSample {
        /// How many candidates were tried for one place in the batch.
        tried: u64,
        /// The first few defects.
        first: Vec<Defect>,
    },

    /// A loading thread panicked: a bug in a source or a decoder.
    #[error("a data loading thread panicked: {message}. This is a bug worth reporting")]
    WorkerPanic {
        /// The panic's message.
        message: String,
    },

    /// The loader was used after it had failed, or its threads have gone.
    #[error("the loader has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },

    /// The progress callback asked to stop.
    #[error("stopped on request after {done} of {total} samples")]
    Cancelled {
        /// Samples finished.
        done: u64,
        /// Samples there were to do.
        total: u64,
    },
}

impl Error {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }
}

fn changed(expected: &str, found: &str, changes: &[String]) -> String {
    if changes.is_empty() {
        return format!("fingerprint {expected} in the state, {found} for the data given now");
    }
    changes.join("; ")
}

fn list(defects: &[Defect]) -> String {
    defects.iter().map(|defect| format!("\n  {defect}")).collect()
}

/// What a tar shard was refused for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardProblem {
    /// The archive ends before a member or before its end-of-archive block.
    #[error("truncated: {0}. Fetch the shard again")]
    Truncated(String),
    /// A header that is no tar header.
    #[error("not a valid tar header ({0}). Is this an uncompressed .tar file?")]
    BadHeader(String),
    /// A member name that leaves the archive.
    #[error("the member's name is {0}; shards hold relative names without `..` only")]
    UnsafePath(&'static str),
    /// A member that is no regular file.
    #[error(
        "the member is a {0}; shards hold regular files only. Pack them again with links \
             followed (`tar --dereference --hard-dereference`)"
    )]
    NotAFile(&'static str),
    /// Files of one sample do not follow each other.
    #[error(
        "its files are not next to each other (the sample began at byte {first}); \
             sort the shard by name"
    )]
    Interleaved {
        /// Where the earlier group of the same key began.
        first: u64,
    },
    /// Two members have the same name, or a sample has two images.
    #[error("{0}")]
    Duplicate(String),
    /// A `.cls` member that is no class number.
    #[error("its .cls file holds {0}, expected a class number such as `7`")]
    BadLabel(String),
    /// A key of a sample's metadata that is no class number.
    #[error("`{key}` of its metadata is {found}, expected a class number such as 7")]
    BadJsonLabel {
        /// The key that was asked for.
        key: String,
        /// What is there.
        found: String,
    },
}

/// One sample that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("{location}: {kind}: {reason}")]
pub struct Defect {
    /// Index of the sample within its source.
    pub index: u64,
    /// The sample's key within its source.
    pub key: String,
    /// File, or shard and key, as a user would look for it.
    pub location: String,
    /// The kind of defect, for counting.
    pub kind: DefectKind,
    /// What was expected and what was found.
    pub reason: String,
}

/// Kinds of [`Defect`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DefectKind {
    /// Zero bytes.
    Empty,
    /// The bytes could not be read.
    Unreadable,
    /// Not an image in a supported format.
    UnknownFormat,
    /// More bytes or more pixels than the limits allow.
    TooLarge,
    /// The image data end too early.
    Truncated,
    /// The decoder refused the data.
    Corrupt,
    /// The storage could not be reached, after all retries. A loader does not pass over such a
    /// sample: it stops with [`Error::Unavailable`].
    Unavailable,
}

impl fmt::Display for DefectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Unreadable => "unreadable",
            Self::UnknownFormat => "unknown format",
            Self::TooLarge => "too large",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::Unavailable => "unavailable",
        })
    }
}
