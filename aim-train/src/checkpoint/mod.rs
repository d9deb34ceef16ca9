//! Checkpoints: whole or invisible, verified before they are used.
//!
//! ```text
//! RUN/checkpoints/step-00012000/
//!   MANIFEST.json                     format version, step, files with sizes and hashes; written last
//!   config.json aim.json              the model, in ml-aim's keys and in ours
//!   model.safetensors                 fp32 masters; sharded with an index above 5 GB
//!   optimizer.safetensors             moments, under the parameters' names
//!   trainer.json                      step, loader state, counters, schedule
//! ```
//!
//! A checkpoint is written to a temporary directory, every file is synced, the directory is synced,
//! renamed, and its parent synced: at whatever moment the process or the machine dies, a directory
//! with a `step-` name is complete. Names with a leading dot are work in progress: `.tmp-` is being
//! written, `.old-` is being replaced by another save of the same step, `.del-` is being removed;
//! [`clean_stale`] puts them in order when a run starts. `aside-` names are checkpoints after the
//! one that a user went back to ([`set_aside`]); nothing here reads or removes them.
//!
//! ```
//! use aim_tensor::io::safetensors::{SafeTensors, TensorRef};
//! use aim_train::checkpoint::{self, CheckpointWriter};
//!
//! let run = tempfile::tempdir()?;
//! let mut writer = CheckpointWriter::begin(run.path(), 100)?;
//! writer.json("trainer.json", &serde_json::json!({ "step": 100 }))?;
//! writer.tensors("model", &[TensorRef::f32("weight", &[2], &[0.5, -0.5])])?;
//! let path = writer.commit()?;
//!
//! let found = checkpoint::newest_valid(run.path(), |path, error| {
//!     eprintln!("skipping {}: {error}", path.display());
//! })?.ok_or("no checkpoint")?;
//! assert_eq!((found.step, &found.path), (100, &path));
//! let weight = SafeTensors::open(&found.path)?.tensor("weight")?.to_f32()?;
//! assert_eq!(weight, [0.5, -0.5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod manifest;
mod prune;
mod read;
mod write;

use std::path::{Path, PathBuf};

pub use manifest::{FORMAT_VERSION, MANIFEST, Manifest};
pub use prune::{clean_stale, prune, set_aside};
pub use read::{Entry, Found, list, newest_valid, read_json, verify};
pub use write::CheckpointWriter;

/// Being written.
const TEMPORARY: &str = ".tmp-";
/// Complete, and being replaced by a new save of the same step.
const REPLACED: &str = ".old-";
/// Being removed.
const DELETED: &str = ".del-";

/// Of a future that the run was told to leave.
const ASIDE: &str = "aside-";

/// Where the checkpoints of a run are.
pub fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("checkpoints")
}

/// The name of the checkpoint of a step: `step-00012000`.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint's name, for exactly the names that [`step_name`] makes.
fn parse_step_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_names() {
        assert_eq!(step_name(12_000), "step-00012000");
        for step in [0, 7, 99_999_999, 100_000_000, u64::MAX] {
            assert_eq!(parse_step_name(&step_name(step)), Some(step));
        }
        for name in ["step-1", "step-+0000001", "step-000000001", ".tmp-step-00000001", "step-"] {
            assert_eq!(parse_step_name(name), None, "{name}");
        }
    }
}
