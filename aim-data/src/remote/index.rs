//! Indices of remote shards, kept in a folder so that a shard is gone through once only.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::store::Object;
use crate::source::img2dataset::{MAX_STATS, Rows};
use crate::source::tar_index::{TarIndex, TarSample};

/// Part of the file's name: goes up with every change of what is in it or of how it is made.
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Kept<I, F> {
    /// For people.
    url: String,
    size: u64,
    index: I,
    /// What `img2dataset` says about the shard.
    statistics: F,
}

/// The name covers everything that the index depends on: the object, and how it was read.
fn name(object: &Object, choice: &str) -> String {
    let text = format!("{VERSION} {} {choice}", object.name);
    format!("{}.index", &blake3::hash(text.as_bytes()).to_hex()[..32])
}

/// The index of a shard, if a sound one is there.
pub(super) fn load(dir: &Path, object: &Object, choice: &str) -> Option<(TarIndex, Option<Rows>)> {
    // A member takes 1,024 bytes of the shard and some hundred here, escapes in its name included.
    let limit = object.size.saturating_mul(8).saturating_add(1 << 16).saturating_add(2 * MAX_STATS);
    let file = File::open(dir.join(name(object, choice))).ok()?;
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text).ok()?;
    let (hash, body) = text.split_at_checked(65)?;
    if hash != format!("{}\n", blake3::hash(body).to_hex()).as_bytes() {
        return None;
    }
    let kept: Kept<TarIndex, Option<Rows>> = serde_json::from_slice(body).ok()?;
    let inside = |offset: u64, size: u64| offset.checked_add(size).is_some_and(|e| e <= kept.size);
    let sound = |sample: &TarSample| {
        let beside = sample.beside.as_deref();
        let members = beside.map(|beside| [beside.text, beside.metadata]).into_iter().flatten();
        inside(sample.offset, sample.size)
            && members.flatten().all(|(offset, size)| inside(offset, size))
            && sample.label != Some(u32::MAX)
    };
    let sound = kept.size == object.size && kept.index.samples.iter().all(sound);
    sound.then_some((kept.index, kept.statistics))
}

/// Keeps the index of a shard. A reader sees all of the file or none.
pub(super) fn store(
    dir: &Path,
    object: &Object,
    choice: &str,
    (index, statistics): (&TarIndex, Option<&Rows>),
) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let kept = Kept { url: object.url.clone(), size: object.size, index, statistics };
    let body = serde_json::to_vec(&kept)?;
    let mut file = tempfile::Builder::new().prefix(".index-").tempfile_in(dir)?;
    writeln!(file, "{}", blake3::hash(&body).to_hex())?;
    file.write_all(&body)?;
    file.persist(dir.join(name(object, choice)))?;
    Ok(())
}
