//! `aim-cli pretrain`.

use std::path::Path;

use aim_tensor::{Category, Device, Memory, Recompute};
use aim_train::config::Resolved;
use aim_train::signals::Stop;
use aim_train::trainer::{self, DeviceChoice, Event, StepMetrics, Trainer};
use anyhow::Result;
use serde_json::json;

use super::Outcome;
use crate::args::{Pretrain, Resume};
use crate::progress::{Pace, Progress, note};
use crate::stdout;
use crate::table::{bytes, thousands};

pub(crate) fn run(args: &Pretrain, quiet: bool) -> Result<Outcome> {
    let resolved = args.config.resolve()?;
    let resume = match &args.resume {
        Resume::Auto => trainer::Resume::Auto,
        Resume::Never => trainer::Resume::Never,
        Resume::From(dir) => trainer::Resume::From(dir.clone()),
    };
    let (outcome, last) = pretrain(&resolved, &args.out, &resume, args.device.device, quiet)?;
    if args.json {
        stdout::print_json(&summary(&resolved, &args.out, outcome, last.as_ref()))?;
    }
    Ok(outcome)
}

/// Trains into `out`; returns how it ended and the last step's numbers, if any step ran.
pub(crate) fn pretrain(
    resolved: &Resolved,
    out: &Path,
    resume: &trainer::Resume,
    device: DeviceChoice,
    quiet: bool,
) -> Result<(Outcome, Option<StepMetrics>)> {
    let stop = Stop::install()?;
    let mut view = View::new(quiet, resolved);
    let mut trainer =
        Trainer::open(resolved, out, resume, device, &mut |event: Event<'_>| view.show(&event))?;
    let outcome = trainer.run(&stop, &mut |event: Event<'_>| view.show(&event));
    view.progress.finish();
    let outcome = match outcome? {
        trainer::Outcome::Finished => {
            note(
                quiet,
                &format!("done: {} steps in {}", resolved.config.train.steps, out.display()),
            );
            Outcome::Done
        }
        trainer::Outcome::Stopped(signal) => {
            let name = signal.name();
            note(
                quiet,
                &format!(
                    "stopped by {name}; everything is saved, the same command goes on from here"
                ),
            );
            Outcome::Stopped
        }
    };
    Ok((outcome, view.last))
}

/// What the user sees of a training run.
struct View {
    quiet: bool,
    progress: Progress,
    last: Option<StepMetrics>,
    last_validation: Option<String>,
    skipped: u64,
}

impl View {
    /// Skipped images named one by one before the rest is only counted.
    const NAMED: u64 = 10;

    fn new(quiet: bool, resolved: &Resolved) -> Self {
        let config = &resolved.config;
        let pace = Pace::Steps(config.log.every_steps);
        let progress = Progress::new(quiet, "step", config.train.steps, pace);
        Self { quiet, progress, last: None, last_validation: None, skipped: 0 }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready {
                step,
                steps,
                images_per_step,
                parameters,
                memory,
                state_bytes,
                recompute,
                flops_per_image,
            } => {
                self.progress.note(&format!(
                    "{} parameters, {:.2} GFLOP an image; steps {step} to {steps} of {images_per_step} images",
                    thousands(*parameters as u64),
                    *flops_per_image as f64 * 1e-9,
                ));
                self.progress.note(&memory_line(*state_bytes, memory, *recompute));
            }
            Event::Device { device, note } => match note {
                Some(note) => self.progress.note(note),
                None if **device != Device::Cpu => self.progress.note(&format!("on {device}")),
                None => {}
            },
            Event::Resumed { step, path } => {
                self.progress.note(&format!("resumed from {} (step {step})", path.display()));
            }
            Event::CheckpointSkipped { path, reason } => {
                self.progress
                    .warn(&format!("checkpoint {} is passed over: {reason}", path.display()));
            }
            Event::SetAside { path } => {
                self.progress.note(&format!("kept, but out of the run's way: {}", path.display()))
            }
            Event::DeviceNote(text) => self.progress.note(text),
            Event::DataNote(text) => self.progress.note(&format!("data: {text}")),
            Event::SampleSkipped(skipped) => {
                self.skipped += 1;
                if self.skipped <= Self::NAMED {
                    self.progress.warn(&format!("skipped {}", skipped.defect));
                } else if self.skipped == Self::NAMED + 1 {
                    self.progress
                        .warn("more images are skipped; skipped.jsonl in the run directory names them all");
                }
            }
            Event::Step(metrics) => self.step(metrics),
            Event::Saved { .. } => {}
            _ => {}
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        if let Some(v) = metrics.validation {
            let line = format!(
                "step {}: validation loss {:.4} (baseline {:.4}), from one patch on {:.4} (baseline {:.4})",
                metrics.step, v.loss, v.baseline, v.loss_causal, v.baseline_causal
            );
            if !self.quiet {
                self.progress.note(&line);
            }
            self.last_validation = Some(format!("val {:.4}", v.loss));
        }
        let validation = self.last_validation.as_deref().unwrap_or("");
        self.progress.update(metrics.step, || {
            let StepMetrics { loss, images_per_s, .. } = metrics;
            // Two digits at least: large models take seconds an image on a CPU.
            let digits = if *images_per_s < 10.0 { 2 } else { 0 };
            format!("loss {loss:.4}  {validation}  {images_per_s:.digits$} img/s")
        });
        self.last = Some(*metrics);
    }
}

/// Where the memory goes.
fn memory_line(state: u64, memory: &Memory, recompute: Recompute) -> String {
    let categories = Category::ALL.iter().zip(memory.by_category).filter(|(_, size)| *size > 0);
    let parts: Vec<String> =
        categories.map(|(category, size)| format!("{category} {}", bytes(size as u64))).collect();
    format!(
        "memory: {} for masters, gradients and moments; {} for a step ({}); recomputation: {recompute}",
        bytes(state),
        bytes(memory.arena_bytes as u64),
        parts.join(", "),
    )
}

fn summary(
    resolved: &Resolved,
    out: &Path,
    outcome: Outcome,
    last: Option<&StepMetrics>,
) -> serde_json::Value {
    let validation = last.and_then(|metrics| metrics.validation);
    json!({
        "run": out,
        "finished": outcome == Outcome::Done,
        "step": last.map(|metrics| metrics.step),
        "steps": resolved.config.train.steps,
        "loss": last.map(|metrics| metrics.loss),
        "images_seen": last.map(|metrics| metrics.images_seen),
        "val_loss": validation.map(|v| v.loss),
        "val_loss_causal": validation.map(|v| v.loss_causal),
        "val_baseline": validation.map(|v| v.baseline),
        "val_baseline_causal": validation.map(|v| v.baseline_causal),
    })
}
