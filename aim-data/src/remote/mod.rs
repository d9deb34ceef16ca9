//! Tar shards in object stores and on web servers: `s3://`, `gs://`, `az://`, `https://`.
//!
//! A shard is read in two ways, chosen by how it is used. Where most of it is wanted (an index
//! pass, an epoch in the order of the shards or shuffled within a block of them), in windows: large
//! ranges, fetched once, kept in memory and fetched ahead, or, with a cache folder, the whole shard
//! onto the local disk. Where samples are picked from more shards than memory and cache hold, each
//! by a request of its own, since a window per sample would fetch everything many times over.
//! Neither changes what is read.
//!
//! Every request has limits on tries, on silence and on time in all; what still fails ends the run
//! with an [`Error::Remote`](crate::Error::Remote) that names the object, the bytes, the tries and
//! the last reason. Memory is bounded by [`RemoteOptions::memory_bytes`] and one window or sample
//! for every reading thread.
//!
//! - [`RemoteOptions`]: limits, cache, settings of the store; [`ByteSize`]: bytes as people write them
//! - [`RemoteError`]: what could not be had, and why

mod location;
mod options;

#[cfg(feature = "object-store")]
mod cache;
#[cfg(feature = "object-store")]
mod client;
#[cfg(feature = "object-store")]
mod index;
#[cfg(feature = "object-store")]
mod reader;
#[cfg(feature = "object-store")]
mod retry;
#[cfg(feature = "object-store")]
mod runtime;
#[cfg(feature = "object-store")]
mod store;
#[cfg(feature = "object-store")]
mod windows;

use std::fmt;
use std::ops::Range;

pub use location::is_remote;
pub(crate) use location::redacted;
pub use options::{ByteSize, RemoteOptions};

/// Whether this build reads remote shards (feature `object-store`).
pub const AVAILABLE: bool = cfg!(feature = "object-store");

#[cfg(feature = "object-store")]
pub(crate) use reader::{RemoteShard, index_all, open_pattern};

/// Why something could not be had from an object store or a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// The object, or the pattern that was listed.
    pub url: String,
    /// The bytes asked for; `None` when it was about the object as a whole.
    pub range: Option<Range<u64>>,
    /// Requests made.
    pub tries: u32,
    /// The kind of failure.
    pub kind: RemoteErrorKind,
    /// The last reason.
    pub reason: String,
}

/// Kinds of [`RemoteError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemoteErrorKind {
    /// There is no such object or bucket.
    Missing,
    /// The store refuses access.
    Denied,
    /// The request can never work: wrong region, address or settings.
    Misconfigured,
    /// The object is not the one that was indexed.
    Changed,
    /// It did not answer properly within the limits on tries and time.
    Unavailable,
}

impl RemoteErrorKind {
    /// Whether asking again can help.
    #[cfg(feature = "object-store")]
    pub(crate) fn is_temporary(self) -> bool {
        self == Self::Unavailable
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {}", self.url)?;
        if let Some(Range { start, end }) = &self.range {
            write!(f, ", bytes {start}..{end}")?;
        }
        match self.tries {
            0 => {}
            1 => f.write_str(" (1 try)")?,
            tries => write!(f, " ({tries} tries)")?,
        }
        write!(f, ": {}", self.reason)?;
        f.write_str(match self.kind {
            RemoteErrorKind::Missing => ". Check bucket, key and endpoint",
            RemoteErrorKind::Denied => {
                ". Check the credentials in the environment (AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME \
                 and AZURE_STORAGE_ACCOUNT_KEY), or for public data set AWS_SKIP_SIGNATURE=true. \
                 S3 also answers so for a missing object where listing is not allowed"
            }
            RemoteErrorKind::Misconfigured => match self.url.split(':').next() {
                Some("s3") => {
                    ". Check AWS_REGION, AWS_ENDPOINT and, for an http:// endpoint, \
                     AWS_ALLOW_HTTP=true"
                }
                Some("gs") => ". Check GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
                Some("az") => ". Check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
                _ => ". Check the address; a web server must answer requests for ranges",
            },
            RemoteErrorKind::Changed => ". Start again to index the new content",
            RemoteErrorKind::Unavailable => "",
        })
    }
}

impl std::error::Error for RemoteError {}

impl From<RemoteError> for std::io::Error {
    fn from(error: RemoteError) -> Self {
        Self::other(error)
    }
}

/// The remote failure behind an I/O error, if that is what it is.
pub(crate) fn behind(error: &std::io::Error) -> Option<&RemoteError> {
    error.get_ref()?.downcast_ref()
}
