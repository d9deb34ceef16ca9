//! Removing checkpoints: those no longer kept, and what killed runs left behind.

use std::path::{Path, PathBuf};

use super::read::directories;
use super::{ASIDE, DELETED, REPLACED, TEMPORARY, checkpoints_dir, list, parse_step_name};
use crate::{TrainError, durable};

/// Removes what is not kept and returns the paths that are gone. Kept are the newest `keep` (at
/// least one) of the checkpoints up to `current_step`, and those whose step is a multiple of
/// `keep_every_steps` (0: none). Checkpoints after `current_step` are left alone: a run that fell
/// back to an older one because they did not verify must not delete its own for theirs.
///
/// # Errors
/// [`TrainError::Io`]; what is left is removed by a later call.
pub fn prune(
    run_dir: &Path,
    current_step: u64,
    keep: usize,
    keep_every_steps: u64,
) -> Result<Vec<PathBuf>, TrainError> {
    let past = list(run_dir)?.into_iter().filter(|entry| entry.step <= current_step);
    let mut removed = Vec::new();
    for entry in past.skip(keep.max(1)) {
        if keep_every_steps > 0 && entry.step.is_multiple_of(keep_every_steps) {
            continue;
        }
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
        let deleted = entry.path.with_file_name(format!("{DELETED}{name}"));
        if deleted.exists() {
            durable::remove_dir_all(&deleted)?;
        }
        // A removal stopped half-way must not leave half a checkpoint under a visible name.
        durable::rename(&entry.path, &deleted)?;
        durable::remove_dir_all(&deleted)?;
        removed.push(entry.path);
    }
    Ok(removed)
}

/// Renames the checkpoints after `step`, which a run that goes on from there on purpose leaves: as
/// the newest ones they would be taken by the next automatic resume. Returns their new paths.
///
/// # Errors
/// [`TrainError::Io`].
pub fn set_aside(run_dir: &Path, step: u64) -> Result<Vec<PathBuf>, TrainError> {
    let mut moved = Vec::new();
    for entry in list(run_dir)?.into_iter().filter(|entry| entry.step > step) {
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
        let target = (1u64..)
            .map(|n| match n {
                1 => format!("{ASIDE}{name}"),
                n => format!("{ASIDE}{name}-{n}"),
            })
            .map(|name| entry.path.with_file_name(name))
            .find(|target| !target.exists());
        let Some(target) = target else { continue };
        durable::rename(&entry.path, &target)?;
        moved.push(target);
    }
    if !moved.is_empty() {
        durable::sync_dir(&checkpoints_dir(run_dir))?;
    }
    Ok(moved)
}

/// Puts in order what a killed run left: half-written and half-removed checkpoints are removed, one
/// whose replacement never got its name is given it back. Call it once, when the run's lock is held
/// and before anything is read. Returns the paths that are gone.
///
/// # Errors
/// [`TrainError::Io`].
pub fn clean_stale(run_dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let parent = checkpoints_dir(run_dir);
    let mut gone = Vec::new();
    for (name, path) in directories(&parent)? {
        let replaced = name.strip_prefix(REPLACED).filter(|rest| parse_step_name(rest).is_some());
        let target = replaced.map(|rest| parent.join(rest)).filter(|target| !target.exists());
        if let Some(target) = target {
            durable::rename(&path, &target)?;
            durable::sync_dir(&parent)?;
            gone.push(path);
            continue;
        }
        let rest = [TEMPORARY, DELETED, REPLACED].iter().find_map(|p| name.strip_prefix(p));
        if rest.is_some_and(|rest| parse_step_name(rest).is_some()) {
            durable::remove_dir_all(&path)?;
            gone.push(path);
        }
    }
    Ok(gone)
}
