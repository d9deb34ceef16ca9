//! `aim-cli weights`: released weights in, ours out, and a look at either.

mod export;
mod import;
mod published;
mod verify;

use std::path::Path;

use aim_model::weights::transfer::{self, Precision};
use aim_tensor::io::TensorSource;
use aim_tensor::io::safetensors::{StreamTensor, write_stream};
use aim_train::durable;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::args::{Weights, WeightsDtype};
use crate::progress::{Pace, Progress};

pub(crate) fn run(args: &Weights, quiet: bool) -> Result<()> {
    match args {
        Weights::Import(args) => import::run(args, quiet),
        Weights::Export(args) => export::run(args, quiet),
        Weights::Verify(args) => verify::run(args, quiet),
    }
}

/// What was written, for `--json`.
#[derive(Debug, Serialize)]
struct Summary {
    out: String,
    files: Vec<String>,
    tensors: usize,
    bytes: u64,
}

impl From<WeightsDtype> for Precision {
    fn from(dtype: WeightsDtype) -> Self {
        match dtype {
            WeightsDtype::Fp32 => Self::F32,
            WeightsDtype::Bf16 => Self::Bf16,
        }
    }
}

/// Fills a directory that appears whole or not at all: `body` gets a temporary neighbour, which is renamed.
fn publish<T>(out: &Path, body: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let taken = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.symlink_metadata().is_ok(),
    };
    if taken {
        bail!("{}: expected a new or empty directory; remove it or choose another", out.display());
    }
    let Some(name) = out.file_name() else {
        bail!("{}: expected a directory's name", out.display());
    };
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    durable::create_dir(parent)?;
    let mut temporary = std::ffi::OsString::from(".tmp-");
    temporary.push(name);
    temporary.push(format!("-{}", std::process::id()));
    let temporary = parent.join(temporary);
    if temporary.exists() {
        durable::remove_dir_all(&temporary)?;
    }
    durable::create_dir(&temporary)?;
    let done = body(&temporary).and_then(|value| {
        durable::sync_dir(&temporary)?;
        durable::rename(&temporary, out)?;
        durable::sync_dir(parent)?;
        Ok(value)
    });
    if done.is_err() {
        // Best effort: the first error is the one to report.
        let _ = durable::remove_dir_all(&temporary);
    }
    done
}

fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(durable::replace(&dir.join(name), &text)?)
}

/// Writes `model.safetensors` or its shards, one tensor in memory at a time. `source` says where each tensor is read.
fn write_model<'s>(
    dir: &Path,
    tensors: &[StreamTensor],
    max_shard_bytes: u64,
    quiet: bool,
    source: impl Fn(&str) -> &'s dyn TensorSource,
) -> Result<Summary> {
    let mut bytes = 0;
    for tensor in tensors {
        bytes += tensor.bytes().map_err(aim_tensor::TensorError::from)? as u64;
    }
    let every = Pace::Every(std::time::Duration::from_secs(5));
    let mut progress = Progress::new(quiet, "tensors written", tensors.len() as u64, every);
    let (mut buffer, mut done) = (Vec::new(), 0);
    let files = write_stream(
        dir,
        "model",
        tensors,
        max_shard_bytes,
        &transfer::metadata(),
        |tensor, out| {
            transfer::write_values(source(&tensor.name), tensor, &mut buffer, out)?;
            done += 1;
            progress.update(done, String::new);
            Ok(())
        },
    );
    progress.finish();
    let files = files.map_err(aim_tensor::TensorError::from).context("the weights")?;
    Ok(Summary { out: String::new(), files, tensors: tensors.len(), bytes })
}
