//! Several files with an index, named as Hugging Face names them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use super::write::{FilePlan, TensorRef, write_beside};
use crate::io::IoError;

/// The size above which files are split: Hugging Face's 5 GB.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// One file of a [`ShardPlan`].
#[derive(Debug, Clone)]
pub struct PlannedFile<'a> {
    /// Its name in the directory.
    pub name: String,
    body: Body<'a>,
}

#[derive(Debug, Clone)]
enum Body<'a> {
    Tensors(FilePlan<'a>),
    Index(Vec<u8>),
}

impl PlannedFile<'_> {
    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        match &self.body {
            Body::Tensors(plan) => plan.bytes(),
            Body::Index(text) => text.len() as u64,
        }
    }

    /// Writes the file. `out` should buffer small writes.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.body {
            Body::Tensors(plan) => plan.write_to(out),
            Body::Index(text) => out.write_all(text),
        }
    }
}

/// The files that a set of tensors makes: `stem.safetensors`, or from the size limit on
/// `stem-00001-of-0000N.safetensors` and `stem.safetensors.index.json`.
#[derive(Debug, Clone)]
pub struct ShardPlan<'a> {
    files: Vec<PlannedFile<'a>>,
}

impl<'a> ShardPlan<'a> {
    /// Fills shards in the order of the tensors; a tensor larger than the limit has a shard of its
    /// own.
    ///
    /// # Errors
    /// As [`FilePlan::new`]; a name that comes twice is found across shards too.
    pub fn new(
        stem: &str,
        tensors: &[TensorRef<'a>],
        max_shard_bytes: u64,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, IoError> {
        let single = FilePlan::new(tensors, metadata)?;
        let total: u64 = tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
        let groups = split(tensors, max_shard_bytes);
        if groups.len() <= 1 {
            let name = format!("{stem}.safetensors");
            return Ok(Self { files: vec![PlannedFile { name, body: Body::Tensors(single) }] });
        }
        let mut files = Vec::with_capacity(groups.len() + 1);
        let mut weight_map = BTreeMap::new();
        for (index, group) in groups.iter().enumerate() {
            let name = format!("{stem}-{:05}-of-{:05}.safetensors", index + 1, groups.len());
            weight_map.extend(group.iter().map(|tensor| (tensor.name, name.clone())));
            let body = Body::Tensors(FilePlan::new(group, metadata)?);
            files.push(PlannedFile { name, body });
        }
        let index =
            serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let name = format!("{stem}.safetensors.index.json");
        let body = Body::Index(format!("{index:#}\n").into_bytes());
        files.push(PlannedFile { name, body });
        Ok(Self { files })
    }

    /// The files in the order to write them: the index last.
    pub fn files(&self) -> &[PlannedFile<'a>] {
        &self.files
    }
}

/// Consecutive tensors whose bytes together stay within the limit.
fn split<'s, 'a>(tensors: &'s [TensorRef<'a>], max_bytes: u64) -> Vec<&'s [TensorRef<'a>]> {
    let mut groups = Vec::new();
    let mut rest = tensors;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|tensor| {
            bytes += tensor.data.len() as u64;
            bytes <= max_bytes
        });
        let count = fits.count().max(1);
        let (group, after) = rest.split_at(count);
        groups.push(group);
        rest = after;
    }
    groups
}

/// Writes the files of a [`ShardPlan`] without metadata into a directory and returns their names.
/// Each file is complete when its name appears. Not synced to disk: for exports.
///
/// # Errors
/// As [`ShardPlan::new`], [`IoError::Os`] when a file cannot be written, and
/// [`IoError::Unwritable`] if a single file of this stem would hide the shards from readers.
pub fn write_sharded(
    dir: impl AsRef<Path>,
    stem: &str,
    tensors: &[TensorRef<'_>],
    max_shard_bytes: u64,
) -> Result<Vec<String>, IoError> {
    let plan = ShardPlan::new(stem, tensors, max_shard_bytes, &BTreeMap::new())?;
    let single = dir.as_ref().join(format!("{stem}.safetensors"));
    if plan.files().len() > 1 && single.exists() {
        let reason = format!(
            "readers prefer the older {} to the shards; remove it or choose another directory",
            single.display()
        );
        return Err(IoError::Unwritable { name: stem.to_string(), reason });
    }
    for file in plan.files() {
        write_beside(&dir.as_ref().join(&file.name), &|out| file.write_to(out))?;
    }
    Ok(plan.files().iter().map(|file| file.name.clone()).collect())
}
