//! A run that goes on from a checkpoint leaves the same bits as one that never stopped.

use std::path::{Path, PathBuf};

use aim_train::checkpoint::{checkpoints_dir, step_name};
use aim_train::config::{ConfigBuilder, Resolved};
use aim_train::signals::Stop;
use aim_train::trainer::{DeviceChoice, Event, Resume, Trainer};
use anyhow::{Context as _, Result, ensure};

use super::Context;
use super::record::{Check, Record};

const STEPS: u64 = 4;
/// The step of the checkpoint that the second run starts from.
const HALF: u64 = 2;
const GROUP: &str = "resumed run";

/// 64 tokens of a width of 128, on stripes.
fn config() -> Result<Resolved> {
    let mut builder = ConfigBuilder::new();
    for setting in [
        "model.img_size=32",
        "model.patch_size=4",
        "model.embed_dim=128",
        "model.num_blocks=2",
        "model.num_heads=1",
        "model.head_width=128",
        "model.head_depth=2",
        "data.train=['synthetic:stripes,n=64,size=32']",
        "train.batch_size=4",
        "train.precision=bf16",
        "validation.num_images=0",
        "checkpoint.keep=10",
        "log.tensorboard=false",
    ] {
        builder = builder.set(setting)?;
    }
    let builder = builder.set(&format!("train.steps={STEPS}"))?;
    Ok(builder.set(&format!("checkpoint.every_steps={HALF}"))?.build()?)
}

/// A folder that goes when this does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn run(context: &Context) -> Result<()> {
    let parent = context.out.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch(parent.join(format!("gpu-check-{}", std::process::id())));
    let (whole, resumed) = (scratch.0.join("whole"), scratch.0.join("resumed"));
    let config = config()?;
    let losses = train(&config, &whole, &Resume::Auto)?;
    let half = checkpoints_dir(&whole).join(step_name(HALF));
    let more = train(&config, &resumed, &Resume::From(half))?;
    ensure!(losses.len() as u64 == STEPS, "{} steps instead of {STEPS}", losses.len());
    let emit = |name: &str, holds| context.emit(Record::Check(Check::holds(GROUP, name, holds)));
    emit("losses", more == losses[HALF as usize..])?;
    let last = |run: &Path| checkpoints_dir(run).join(step_name(STEPS));
    let (a, b) = (last(&whole), last(&resumed));
    let mut files = 0;
    for entry in std::fs::read_dir(&a).with_context(|| a.display().to_string())? {
        let name = entry?.file_name();
        if !name.to_string_lossy().ends_with(".safetensors") {
            continue;
        }
        let read = |dir: &Path| {
            let path = dir.join(&name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        emit(&name.to_string_lossy(), read(&a)? == read(&b)?)?;
        files += 1;
    }
    emit("parameters and two moments", files == 3)
}

/// Trains to the end; the bits of the losses.
fn train(config: &Resolved, out: &Path, resume: &Resume) -> Result<Vec<u64>> {
    let mut losses = Vec::new();
    let mut observer = |event: Event<'_>| {
        if let Event::Step(metrics) = event {
            losses.push(metrics.loss.to_bits());
        }
    };
    let mut trainer = Trainer::open(config, out, resume, DeviceChoice::Cuda(0), &mut observer)?;
    trainer.run(&Stop::detached(), &mut observer)?;
    drop(trainer);
    Ok(losses)
}
