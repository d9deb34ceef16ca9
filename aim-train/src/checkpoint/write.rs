//! Writing a checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use aim_tensor::io::safetensors::{MAX_SHARD_BYTES, ShardPlan, TensorRef};
use serde::Serialize;

use super::manifest::{self, FORMAT_VERSION, MANIFEST, Manifest};
use super::{REPLACED, TEMPORARY, checkpoints_dir, step_name};
use crate::TrainError;
use crate::durable::{self, DurableFile, FileRecord};

/// A checkpoint that is being written and that nobody sees before [`CheckpointWriter::commit`].
/// Dropped before that, for example because the disk is full, it removes what it wrote.
#[derive(Debug)]
pub struct CheckpointWriter {
    parent: PathBuf,
    /// Taken by the commit.
    temporary: Option<PathBuf>,
    step: u64,
    files: Vec<FileRecord>,
    max_shard_bytes: u64,
}

impl CheckpointWriter {
    /// Starts the checkpoint of `step` (the number of updates applied). The caller holds the run's
    /// lock.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`].
    pub fn begin(run_dir: &Path, step: u64) -> Result<Self, TrainError> {
        let parent = checkpoints_dir(run_dir);
        durable::create_dir(&parent)?;
        let temporary = parent.join(format!("{TEMPORARY}{}", step_name(step)));
        if temporary.exists() {
            durable::remove_dir_all(&temporary)?;
        }
        durable::create_dir(&temporary)?;
        let files = Vec::new();
        let max_shard_bytes = MAX_SHARD_BYTES;
        Ok(Self { parent, temporary: Some(temporary), step, files, max_shard_bytes })
    }

    /// Splits tensor files above another size than 5 GB.
    #[must_use]
    pub fn max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Adds a JSON file.
    ///
    /// # Errors
    /// [`TrainError::Json`] if the value has no JSON form, and as [`CheckpointWriter::bytes`].
    pub fn json(&mut self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| TrainError::Json {
            path: self.parent.join(step_name(self.step)).join(name),
            reason: error.to_string(),
        })?;
        self.bytes(name, format!("{text}\n").as_bytes())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`]; [`TrainError::Checkpoint`] for a name that
    /// is taken or is no plain file name.
    pub fn bytes(&mut self, name: &str, content: &[u8]) -> Result<(), TrainError> {
        self.add(name, |out| out.write_all(content))
    }

    /// Adds `stem.safetensors`, or its shards and their index, straight from where the tensors lie.
    ///
    /// # Errors
    /// [`TrainError::TensorFile`] if the tensors make no valid file, and as
    /// [`CheckpointWriter::bytes`].
    pub fn tensors(&mut self, stem: &str, tensors: &[TensorRef<'_>]) -> Result<(), TrainError> {
        let plan = ShardPlan::new(stem, tensors, self.max_shard_bytes, &BTreeMap::new())?;
        for file in plan.files() {
            self.add(&file.name, |out| file.write_to(out))?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(), TrainError> {
        let taken = name == MANIFEST || self.files.iter().any(|file| file.name == name);
        if taken || !manifest::is_plain_name(name) {
            return Err(TrainError::Checkpoint {
                path: self.parent.join(step_name(self.step)),
                file: name.into(),
                reason: "the name is taken, or is no plain file name".into(),
            });
        }
        let mut file = DurableFile::create(self.directory().join(name))?;
        file.write_with(body)?;
        self.files.push(file.finish()?);
        Ok(())
    }

    fn directory(&self) -> &Path {
        // Only `commit`, which takes `self`, leaves it empty.
        self.temporary.as_deref().unwrap_or(&self.parent)
    }

    /// Writes the manifest, makes everything last and the checkpoint visible. An older checkpoint
    /// of the same step is replaced: it stays until the new one has its name.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::DiskFull`]; the checkpoints of before are then still
    /// there.
    pub fn commit(mut self) -> Result<PathBuf, TrainError> {
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            writer: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
            step: self.step,
            files: std::mem::take(&mut self.files),
        };
        self.json_manifest(&manifest)?;
        durable::sync_dir(self.directory())?;

        let name = step_name(self.step);
        let target = self.parent.join(&name);
        let replaced = self.parent.join(format!("{REPLACED}{name}"));
        // An interrupted replacement is put in order by `clean_stale` at the run's start, so what
        // is still here was superseded.
        if replaced.exists() {
            durable::remove_dir_all(&replaced)?;
        }
        if target.exists() {
            durable::rename(&target, &replaced)?;
        }
        if let Err(error) = durable::rename(self.directory(), &target) {
            if replaced.exists() {
                durable::rename(&replaced, &target)?;
            }
            return Err(error);
        }
        self.temporary = None;
        durable::sync_dir(&self.parent)?;
        if replaced.exists() {
            durable::remove_dir_all(&replaced)?;
        }
        Ok(target)
    }

    fn json_manifest(&self, manifest: &Manifest) -> Result<(), TrainError> {
        let path = self.directory().join(MANIFEST);
        let text = serde_json::to_string_pretty(manifest)
            .map_err(|error| TrainError::Json { path: path.clone(), reason: error.to_string() })?;
        let mut file = DurableFile::create(path)?;
        file.write_with(|out| writeln!(out, "{text}"))?;
        file.finish().map(|_| ())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Best effort: `clean_stale` removes it at the next start otherwise.
            let _ = fs::remove_dir_all(temporary);
        }
    }
}
