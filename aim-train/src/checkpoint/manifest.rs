//! `MANIFEST.json`: which files make a checkpoint, how long they are and what they hash to.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::durable::FileRecord;

/// The manifest's file name.
pub const MANIFEST: &str = "MANIFEST.json";

/// The version of the layout that this crate writes, and the only one that it reads.
pub const FORMAT_VERSION: u64 = 1;

/// A manifest lists some ten files; sharded 7B models some sixty.
const MAX_BYTES: u64 = 16 << 20;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Program and version that wrote it.
    pub writer: String,
    /// The step: that many updates were applied.
    pub step: u64,
    /// Every file but the manifest itself.
    pub files: Vec<FileRecord>,
}

/// Whether a name can only mean a file of the directory it is joined to.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0', ':'])
}

impl Manifest {
    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Reads and checks the manifest of a checkpoint, not the files that it lists.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] naming what is wrong with it.
    pub fn read(dir: &Path) -> Result<Self, TrainError> {
        let bad = |reason: String| TrainError::Checkpoint {
            path: dir.to_path_buf(),
            file: MANIFEST.into(),
            reason,
        };
        let text = read_small(&dir.join(MANIFEST), MAX_BYTES).map_err(bad)?;
        // The version first: a later one may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }
        let version: Version =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if version.format_version != FORMAT_VERSION {
            return Err(bad(format!(
                "format version {}, this program reads {FORMAT_VERSION}: use the program that wrote it",
                version.format_version
            )));
        }
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let mut names = HashSet::new();
        for file in &manifest.files {
            if !is_plain_name(&file.name) || !names.insert(&file.name) {
                return Err(bad(format!("it lists {:?}, no plain name or twice", file.name)));
            }
        }
        if manifest.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.bytes)).is_none() {
            return Err(bad("the sizes it lists overflow".into()));
        }
        Ok(manifest)
    }
}

/// The content of a regular file, if it is no larger than it may be.
pub(super) fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let kind = fs::metadata(path).map_err(|error| error.to_string())?;
    if !kind.is_file() || kind.len() > max_bytes {
        return Err(format!(
            "expected a file of at most {max_bytes} bytes, found {} bytes or no regular file",
            kind.len()
        ));
    }
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(max_bytes).read_to_end(&mut content));
    read.map_err(|error| error.to_string())?;
    Ok(content)
}
