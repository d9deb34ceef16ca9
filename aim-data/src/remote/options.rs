//! [`RemoteOptions`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How remote shards are read.
///
/// Credentials and addresses come from the variables that the stores' own tools use
/// (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT`, `GOOGLE_APPLICATION_CREDENTIALS`,
/// `AZURE_STORAGE_ACCOUNT_NAME`, ...).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RemoteOptions {
    /// Folder for whole shards on the local disk; without one they are read from the store each
    /// epoch. Several processes may share it.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of shards in the cache folder, unfinished ones included. A shard that a process
    /// has open when another one evicts it takes space until the process turns to its next shard.
    pub cache_bytes: u64,
    /// Folder for indices of shards; without one, every start reads every shard once.
    pub index_dir: Option<PathBuf>,
    /// Most bytes of shards held in memory, whatever the number of shards and threads.
    pub memory_bytes: u64,
    /// Bytes of a shard fetched at a time; a quarter of `memory_bytes` at most.
    pub window_bytes: u64,
    /// Requests made for one range before giving up.
    pub max_tries: u32,
    /// Time for one range in all, tries and pauses included.
    pub total_timeout: Duration,
    /// Time to reach the server.
    pub connect_timeout: Duration,
    /// Longest silence of a server, before and within its answer.
    pub stall_timeout: Duration,
    /// Pause before the second try, doubled for each further one up to
    /// [`max_pause`](Self::max_pause) and shortened at random by up to half.
    pub first_pause: Duration,
    /// Longest pause between two tries.
    pub max_pause: Duration,
    /// Settings put over those of the environment, under the names of the `object_store` crate
    /// (`aws_endpoint`, `aws_region`, ...). Never shown.
    pub settings: Vec<(String, String)>,
}

impl Default for RemoteOptions {
    /// No folders, 256 MiB of memory in windows of 8 MiB, 8 tries within 2 minutes.
    fn default() -> Self {
        Self {
            cache_dir: None,
            cache_bytes: 64 << 30,
            index_dir: None,
            memory_bytes: 256 << 20,
            window_bytes: 8 << 20,
            max_tries: 8,
            total_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            first_pause: Duration::from_millis(200),
            max_pause: Duration::from_secs(10),
            settings: Vec::new(),
        }
    }
}

impl RemoteOptions {
    /// The defaults with the folders that the environment names: `AIM_SHARD_CACHE` for shards,
    /// with at most `AIM_SHARD_CACHE_BYTES` (`200G`; 64G unless given) in it, and for indices
    /// `index` in that folder, else `shard-index` in `$AIM_CACHE`, `$XDG_CACHE_HOME/aim` or
    /// `~/.cache/aim`.
    ///
    /// # Errors
    /// A number of bytes that is none.
    pub fn from_env() -> Result<Self> {
        let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let absolute = |name| folder(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let mut this = Self::default();
        if let Some(dir) = folder("AIM_SHARD_CACHE") {
            this = this.with_cache(dir);
        } else {
            this.index_dir = folder("AIM_CACHE")
                .map(PathBuf::from)
                .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("aim")))
                .or_else(|| Some(absolute("HOME")?.join(".cache/aim")))
                .map(|dir| dir.join("shard-index"));
        }
        if let Some(text) = folder("AIM_SHARD_CACHE_BYTES") {
            let text = text.to_string_lossy();
            this.cache_bytes = parse_bytes(&text).ok_or_else(|| {
                Error::Config(format!(
                    "AIM_SHARD_CACHE_BYTES is `{text}`, expected a number of bytes such as 200G"
                ))
            })?;
        }
        Ok(this)
    }

    /// These options with what a configuration says about the cache over them: an empty folder and 0
    /// bytes say nothing.
    ///
    /// # Errors
    /// [`Error::Config`] for a bound without a folder, and for either in a build without object
    /// stores, where they would do nothing.
    pub fn configured(mut self, dir: &Path, bytes: ByteSize) -> Result<Self> {
        let named = !dir.as_os_str().is_empty();
        if (named || bytes.0 > 0) && !super::AVAILABLE {
            return Err(Error::Config(
                "a cache of remote shards is configured, and this program was built without \
                 object stores: build it with `--features object-store`, or leave out the cache"
                    .into(),
            ));
        }
        if named {
            self = self.with_cache(dir);
        }
        if bytes.0 > 0 {
            if self.cache_dir.is_none() {
                return Err(Error::Config(format!(
                    "a cache of {bytes} is configured for remote shards, and no folder for it"
                )));
            }
            self.cache_bytes = bytes.0;
        }
        Ok(self)
    }

    /// The same with a cache folder; indices go into `index` in it.
    #[must_use]
    pub fn with_cache(mut self, dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        self.index_dir = Some(dir.join("index"));
        self.cache_dir = Some(dir);
        self
    }
}

/// A number of bytes as people write it: `20GiB`, `512M`, `1000000`. `K`, `M`, `G` and `T`, with or
/// without `iB` or `B` behind them, are powers of 1024.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(try_from = "ByteSizeRepr", into = "String")]
pub struct ByteSize(pub u64);

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes such as \"20GiB\"")]
enum ByteSizeRepr {
    Number(u64),
    Text(String),
}

impl TryFrom<ByteSizeRepr> for ByteSize {
    type Error = Error;

    fn try_from(repr: ByteSizeRepr) -> Result<Self> {
        match repr {
            ByteSizeRepr::Number(bytes) => Ok(Self(bytes)),
            ByteSizeRepr::Text(text) => text.parse(),
        }
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_bytes(text).map(Self).ok_or_else(|| {
            Error::Config(format!(
                "`{text}`: expected a whole number of bytes, such as 20GiB, 512M or 1000000"
            ))
        })
    }
}

impl fmt::Display for ByteSize {
    /// With the largest unit that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let whole = units.iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift));
        match whole {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

/// The number of bytes that a text names.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let text = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
    let (digits, shift) = match text.char_indices().last()? {
        (at, unit) if !unit.is_ascii_digit() => {
            (text[..at].trim_end(), 10 * (1 + "KMGT".find(unit.to_ascii_uppercase())? as u32))
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings may hold credentials: their names only.
        let settings: Vec<&str> = self.settings.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RemoteOptions")
            .field("cache_dir", &self.cache_dir)
            .field("cache_bytes", &self.cache_bytes)
            .field("index_dir", &self.index_dir)
            .field("memory_bytes", &self.memory_bytes)
            .field("window_bytes", &self.window_bytes)
            .field("max_tries", &self.max_tries)
            .field("total_timeout", &self.total_timeout)
            .field("settings", &settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts() {
        let good =
            [("7", 7), ("2K", 2048), ("1m", 1 << 20), ("200 GiB", 200 << 30), ("3TB", 3 << 40)];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
            assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
        assert_eq!(ByteSize(200 << 30).to_string(), "200GiB");
        assert_eq!(
            (ByteSize(1025).to_string(), ByteSize(0).to_string()),
            ("1025".into(), "0".into())
        );
        for (json, bytes) in [("\"20GiB\"", 20 << 30), ("77", 77)] {
            assert_eq!(serde_json::from_str::<ByteSize>(json).unwrap(), ByteSize(bytes));
        }
        let error = serde_json::from_str::<ByteSize>("\"20GX\"").unwrap_err().to_string();
        assert!(error.contains("`20GX`: expected") && error.contains("20GiB"), "{error}");
        for bad in ["", "G", " G", "iB", "-1", "1.5G", "9999999999999T", "10X", "1é"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_configured_cache_goes_over_the_rest() {
        let usual = RemoteOptions::default;
        assert_eq!(usual().configured(Path::new(""), ByteSize(0)).unwrap(), usual());
        let from_env = RemoteOptions { cache_bytes: 7, ..usual().with_cache("/env") };
        let both = from_env.clone().configured(Path::new("/mine"), ByteSize(20 << 30));
        let bound = from_env.clone().configured(Path::new(""), ByteSize(9));
        let alone = usual().configured(Path::new(""), ByteSize(9));
        if super::super::AVAILABLE {
            let both = both.unwrap();
            assert_eq!((both.cache_dir, both.cache_bytes), (Some("/mine".into()), 20 << 30));
            assert_eq!(both.index_dir, Some("/mine/index".into()));
            let bound = bound.unwrap();
            assert_eq!((bound.cache_dir, bound.cache_bytes), (Some("/env".into()), 9));
            assert!(alone.unwrap_err().to_string().contains("no folder"));
        } else {
            for refused in [both, bound, alone] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains("--features object-store"), "{text}");
            }
        }
    }

    #[test]
    fn settings_are_not_shown() {
        let settings = vec![("aws_secret_access_key".to_owned(), "hush".to_owned())];
        let shown = format!("{:?}", RemoteOptions { settings, ..RemoteOptions::default() });
        assert!(shown.contains("aws_secret_access_key") && !shown.contains("hush"), "{shown}");
    }
}
