//! Released files against the hashes that Apple publishes.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aim_model::weights::released;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::progress::{Pace, Progress};

/// A released file and its hash.
#[derive(Debug, Serialize)]
pub(super) struct Hashed {
    file: String,
    sha256: String,
    /// The published start of it.
    published: &'static str,
}

impl std::fmt::Display for Hashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: SHA-256 {} as published ({}...)", self.file, self.sha256, self.published)
    }
}

/// Hashes the files whose names are those of released ones.
pub(super) fn check(files: &[PathBuf], quiet: bool) -> Result<Vec<Hashed>> {
    let mut hashed = Vec::new();
    for path in files {
        let Some(released) = released::find(path) else { continue };
        let sha256 = sha256(path, quiet)?;
        if !sha256.starts_with(released.sha256) {
            bail!(
                "{}: expected a SHA-256 that starts with {} (published in ml-aim's aim-v1/README.md), found {sha256}: \
                 the file is damaged or not the released one; download it again, or rename it if it is another on purpose",
                path.display(),
                released.sha256
            );
        }
        let file = path.display().to_string();
        hashed.push(Hashed { file, sha256, published: released.sha256 });
    }
    Ok(hashed)
}

fn sha256(path: &Path, quiet: bool) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let total = file.metadata().with_context(context)?.len();
    let label = format!("SHA-256 of {}, MiB", path.file_name().unwrap_or_default().display());
    let mut progress =
        Progress::new(quiet, &label, total >> 20, Pace::Every(std::time::Duration::from_secs(5)));
    let (mut hasher, mut piece, mut done) = (Sha256::new(), vec![0; 1 << 20], 0u64);
    loop {
        let count = file.read(&mut piece).with_context(context)?;
        if count == 0 {
            break;
        }
        hasher.update(piece.get(..count).unwrap_or_default());
        done += count as u64;
        progress.update(done >> 20, String::new);
    }
    progress.finish();
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
