//! `aim-cli finetune`: low-rank adapters and a classifier on a frozen trunk, and what is done with them.

use std::time::Duration;

use aim_model::lora::{LoraConfig, LoraTarget};
use aim_train::config::Recompute;
use aim_train::finetune::merge;
use aim_train::finetune::{
    self, AdapterDir, Augment, Base, Evaluation, Event, FinetuneSettings, Finetuner, Open,
};
use aim_train::signals::Stop;
use aim_train::trainer;
use anyhow::{Result, bail};
use serde_json::json;

use super::{Outcome, Usage};
use crate::args::finetune::{
    AugmentArg, Finetune, FinetuneCommand, FinetuneEval, FinetuneMerge, FinetuneTrain,
    FinetuneUnmerge, LoraArgs, RecipeArgs,
};
use crate::progress::{Pace, Progress, note, warn};
use crate::stdout;
use crate::table::{Table, bytes, thousands};
use crate::weights::{Weights, open_device, parse_layers};

pub(crate) fn run(args: &Finetune, quiet: bool) -> Result<Outcome> {
    match &args.command {
        Some(FinetuneCommand::Eval(args)) => eval(args, quiet).map(|()| Outcome::Done),
        Some(FinetuneCommand::Merge(args)) => merge(args, quiet).map(|()| Outcome::Done),
        Some(FinetuneCommand::Unmerge(args)) => unmerge(args, quiet).map(|()| Outcome::Done),
        None => train(&args.train, quiet),
    }
}

impl Weights {
    fn base<'a>(&'a self, name: &'a str) -> Base<'a> {
        Base {
            name,
            file: &self.file,
            dir: &self.dir,
            model: &self.config,
            mean: self.mean,
            std: self.std,
        }
    }
}

fn lora(args: &LoraArgs, layers: &[usize], num_blocks: usize) -> Result<LoraConfig> {
    let targets = args
        .lora_targets
        .iter()
        .map(|text| text.trim().parse::<LoraTarget>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Usage(format!("--lora-targets {error}")))?;
    let seen = layers.iter().max().map_or(0, |last| last + 1);
    let blocks = match &args.lora_blocks {
        None => (0..seen).collect(),
        Some(text) if text.starts_with("last:") => parse_layers(text, seen)?,
        Some(text) => {
            let mut blocks = parse_layers(text, num_blocks)?;
            blocks.sort_unstable();
            blocks
        }
    };
    let rank = args.lora_rank as usize;
    Ok(LoraConfig { rank, alpha: args.lora_alpha.unwrap_or(rank as f64), targets, blocks })
}

fn settings(args: &RecipeArgs) -> FinetuneSettings {
    let default = FinetuneSettings::default();
    let size = |value: Option<u32>, default: usize| value.map_or(default, |n| n as usize);
    FinetuneSettings {
        epochs: args.epochs.unwrap_or(default.epochs),
        batch_size: size(args.batch_size, default.batch_size),
        accumulate: size(args.accumulate, default.accumulate),
        lr: args.lr.unwrap_or(default.lr),
        min_lr: args.min_lr.unwrap_or(default.min_lr.min(args.lr.unwrap_or(default.lr))),
        warmup_epochs: args.warmup_epochs.unwrap_or(default.warmup_epochs),
        weight_decay: args.weight_decay.unwrap_or(default.weight_decay),
        clip: args.clip.unwrap_or(default.clip),
        mixup: args.mixup.unwrap_or(default.mixup),
        label_smoothing: args.label_smoothing.unwrap_or(default.label_smoothing),
        augment: args.augment.map_or(default.augment, |augment| match augment {
            AugmentArg::None => Augment::None,
            AugmentArg::Light => Augment::Light,
            AugmentArg::Paper => Augment::Paper,
        }),
        seed: args.seed.unwrap_or(default.seed),
        checkpoint_steps: args.checkpoint_steps.unwrap_or(default.checkpoint_steps),
        workers: size(args.workers, default.workers),
        recompute: match args.recompute.as_deref() {
            Some("none") => Recompute::None,
            Some("norms") => Recompute::Norms,
            Some("norms_gelu") => Recompute::NormsGelu,
            Some("block") => Recompute::Block,
            _ => default.recompute,
        },
    }
}

fn train(args: &FinetuneTrain, quiet: bool) -> Result<Outcome> {
    let (Some(checkpoint), Some(train), Some(val), Some(out)) =
        (&args.checkpoint, &args.train, &args.val, &args.out)
    else {
        bail!(Usage("expected --checkpoint, --train, --val and --out".into()));
    };
    let settings = settings(&args.recipe);
    settings.validate().map_err(|error| Usage(format!("--{error}")))?;
    let weights = Weights::open(checkpoint)?;
    let layers = parse_layers(&args.layers, weights.config.num_blocks)?;
    let lora = lora(&args.lora, &layers, weights.config.num_blocks)?;
    let name = checkpoint.display().to_string();
    let stop = Stop::install()?;
    let mut view = View::new(quiet);
    let open = Open {
        base: weights.base(&name),
        train: aim_data::spec::open(train)?,
        val: aim_data::spec::open(val)?,
        lora,
        layers,
        head: args.head.clone(),
        settings,
        device: open_device(args.device.device, quiet)?,
    };
    let mut trainer = Finetuner::open(open, out, &mut |event: Event<'_>| view.show(&event))?;
    let outcome = trainer.run(&stop, &mut |event: Event<'_>| view.show(&event));
    view.finish();
    let outcome = match outcome? {
        trainer::Outcome::Finished => {
            note(quiet, &format!("adapters and classifier: {}", out.display()));
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
    if let (Outcome::Done, Some(evaluation)) = (outcome, trainer.evaluation()) {
        print(&evaluation, args.json)?;
    }
    Ok(outcome)
}

fn print(evaluation: &Evaluation, as_json: bool) -> Result<()> {
    let Evaluation { accuracy, loss } = *evaluation;
    if as_json {
        return stdout::print_json(&json!({
            "images": accuracy.images,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "loss": loss,
        }));
    }
    let mut table = Table::new(&[">images", ">top-1 %", ">top-5 %", ">loss"]);
    table.row([
        thousands(accuracy.images as u64),
        format!("{:.2}", 100.0 * accuracy.top1),
        format!("{:.2}", 100.0 * accuracy.top5),
        format!("{loss:.4}"),
    ]);
    stdout::print(&table.to_string())
}

fn eval(args: &FinetuneEval, quiet: bool) -> Result<()> {
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    let name = args.checkpoint.display().to_string();
    let base = weights.base(&name);
    let adapter = AdapterDir::open(&args.adapter)?;
    if args.head.is_none() && !adapter.has_head() {
        bail!("{}: no head.safetensors; name a classifier with --head", adapter.path.display());
    }
    let layers = match (&args.layers, &adapter.info) {
        (Some(text), _) => Some(parse_layers(text, weights.config.num_blocks)?),
        (None, Some(_)) => None,
        (None, None) => Some(parse_layers("last:6", weights.config.num_blocks)?),
    };
    let (model, params) = merge::load(&base, &adapter, layers.as_deref(), args.head.as_deref())?;
    let params = params.to(&device)?;
    let source = aim_data::spec::open(&args.data)?;
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pace = Pace::Every(Duration::from_secs(10));
    let mut progress = Progress::new(quiet, "images", source.len(), pace);
    let evaluation = finetune::evaluate(
        &model,
        &params,
        &source,
        &base.image_options(workers),
        &mut |done, _| progress.update(done, String::new),
        &mut |skipped| warn(&format!("skipped {}", skipped.defect)),
    );
    progress.finish();
    print(&evaluation?, args.json)
}

fn merge(args: &FinetuneMerge, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.checkpoint)?;
    let name = args.checkpoint.display().to_string();
    let adapter = AdapterDir::open(&args.adapter)?;
    let count = merge::merge(&weights.base(&name), &adapter, &args.out, !args.no_undo)?;
    note(quiet, &format!("{count} weights with adapters in them: {}", args.out.display()));
    Ok(())
}

fn unmerge(args: &FinetuneUnmerge, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.checkpoint)?;
    let name = args.checkpoint.display().to_string();
    let count = merge::unmerge(&weights.base(&name), &args.out)?;
    note(quiet, &format!("{count} weights as they were before the merge: {}", args.out.display()));
    Ok(())
}

/// What the user sees of a run.
struct View {
    quiet: bool,
    progress: Option<Progress>,
    skipped: u64,
    /// Of all evaluations so far.
    best: Option<f64>,
}

impl View {
    /// Skipped images named one by one before the rest is only counted.
    const NAMED: u64 = 10;

    fn new(quiet: bool) -> Self {
        Self { quiet, progress: None, skipped: 0, best: None }
    }

    fn finish(self) {
        if let Some(progress) = self.progress {
            progress.finish();
        }
    }

    fn note(&mut self, text: &str) {
        match &mut self.progress {
            Some(progress) => progress.note(text),
            None => note(self.quiet, text),
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready {
                step,
                steps,
                images_per_step,
                adapter_parameters,
                head_parameters,
                trunk_parameters,
                memory,
                state_bytes,
                flops_per_image,
            } => {
                self.note(&format!(
                    "{} parameters in adapters ({:.2} % of the trunk's {}), {} in the classifier",
                    thousands(*adapter_parameters as u64),
                    100.0 * *adapter_parameters as f64 / (*trunk_parameters).max(1) as f64,
                    thousands(*trunk_parameters as u64),
                    thousands(*head_parameters as u64),
                ));
                self.note(&format!(
                    "{:.2} GFLOP an image, {} for parameters and {} for a step; steps {step} to {steps} of {images_per_step} images",
                    *flops_per_image as f64 * 1e-9,
                    bytes(*state_bytes),
                    bytes(memory.arena_bytes as u64),
                ));
                let pace = Pace::Every(Duration::from_secs(10));
                self.progress = Some(Progress::new(self.quiet, "step", *steps, pace));
            }
            Event::Resumed { step, path } => {
                self.note(&format!("resumed from {} (step {step})", path.display()));
            }
            Event::CheckpointSkipped { path, reason } => {
                warn(&format!("checkpoint {} is passed over: {reason}", path.display()));
            }
            Event::DataNote(text) => self.note(&format!("data: {text}")),
            Event::SampleSkipped(skipped) => {
                self.skipped += 1;
                if self.skipped <= Self::NAMED {
                    warn(&format!("skipped {}", skipped.defect));
                } else if self.skipped == Self::NAMED + 1 {
                    warn(
                        "more images are skipped; skipped.jsonl in the run directory names them all",
                    );
                }
            }
            Event::Step(metrics) => {
                if let Some(Evaluation { accuracy, loss }) = metrics.evaluation {
                    self.best =
                        Some(self.best.map_or(accuracy.top1, |best| best.max(accuracy.top1)));
                    let text = format!(
                        "epoch {:.0}: top-1 {:.2} %, top-5 {:.2} %, loss {loss:.4}",
                        metrics.epoch,
                        100.0 * accuracy.top1,
                        100.0 * accuracy.top5,
                    );
                    self.note(&text);
                }
                let best = self.best.map(|best| format!("top-1 {:.2} %  ", 100.0 * best));
                if let Some(progress) = &mut self.progress {
                    progress.update(metrics.step, || {
                        let (loss, rate) = (metrics.loss, metrics.images_per_s);
                        format!("loss {loss:.4}  {}{rate:.0} img/s", best.unwrap_or_default())
                    });
                }
            }
            _ => {}
        }
    }
}
