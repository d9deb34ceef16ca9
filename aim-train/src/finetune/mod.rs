//! Adapting a frozen trunk to labelled images: low-rank adapters and an attentive classifier, trained together (paper
//! 5.5, table 8).
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | what a run is made with |
//! | [`merge`] | weights with the adapters in them, and back |
//! | `mixup` | mixed images and their soft targets |
//! | [`files`] | adapters, classifier and what they belong to, as files |
//! | `state` | what a checkpoint holds: never the trunk |
//! | `evaluate` | top-1 and top-5 |
//! | `events` | what the trainer tells |
//! | `setup` | opening data, model and run directory; resuming |

mod evaluate;
mod events;
pub mod files;
pub mod merge;
mod mixup;
pub mod settings;
mod setup;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use aim_data::loader::{Batch, Images, Loader, LoaderState};
use aim_data::source::Source;
use aim_model::finetune::{FinetuneModel, FinetuneStep};
use aim_model::pretrain::Pixels;
use aim_model::trunk::ImageBatch;
use aim_tensor::{Parameters, Recompute};
use serde_json::{Map, Value};

pub use evaluate::{Evaluation, evaluate};
pub use events::{Event, Observer, StepMetrics};
pub use files::{AdapterDir, AdapterInfo};
pub use mixup::Mixup;
pub use settings::{Augment, FinetuneSettings};
pub use setup::{Base, Open};

use crate::checkpoint;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::metrics::jsonl::JsonlWriter;
use crate::optimizer::{AdamW, Update, clip_scale, grad_norm};
use crate::probe::features::ImageOptions;
use crate::schedule::lr_with_floor;
use crate::signals::Stop;
use crate::trainer::Outcome;
use crate::trainer::skipped::{Set, SkippedLog};

/// Checkpoints that stay.
const KEEP: usize = 2;

/// A run: everything that the loop needs. Made by [`Finetuner::open`].
pub struct Finetuner {
    settings: FinetuneSettings,
    info: AdapterInfo,
    run_dir: PathBuf,
    model: FinetuneModel,
    params: Parameters,
    optimizer: AdamW,
    loader: Loader,
    /// Where the loader stood after the last whole step.
    consumed: LoaderState,
    /// Images in an epoch.
    images_per_epoch: u64,
    mixup: Mixup,
    images: ImageBatch,
    recompute: Recompute,
    step: Option<FinetuneStep>,
    batch: Batch,
    targets: Vec<f32>,
    val: Arc<dyn Source>,
    evaluation: ImageOptions,
    done: u64,
    saved: Option<u64>,
    last: Option<Evaluation>,
    metrics: JsonlWriter,
    skipped: SkippedLog,
    _lock: RunLock,
}

impl Finetuner {
    /// Trains until all epochs are done or `stop` is asked for; at the end the adapters are in the run directory, as
    /// PEFT reads them.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] before an update that would spoil the parameters; data that are too bad or have no
    /// labels; files that cannot be written. The last checkpoint stays as it is.
    pub fn run(&mut self, stop: &Stop, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        let steps = self.steps();
        self.tell_ready(observer)?;
        while self.done < steps {
            let stepped = self.train_step(stop);
            if stepped.is_err() {
                // What could not be used may be why. That error comes first, whatever happens here.
                let _ = self.record_skipped(self.done + 1, observer);
            }
            let Some(mut metrics) = stepped? else {
                self.save(observer)?;
                return Ok(stopped(stop));
            };
            self.done += 1;
            self.consumed = self.loader.state().clone();
            let epoch_ends = self.epochs_after(self.done) > self.epochs_after(self.done - 1);
            if epoch_ends || self.done == steps {
                metrics.evaluation = Some(self.evaluate(observer)?);
                self.last = metrics.evaluation;
            }
            self.record(&metrics, observer)?;
            let every = self.settings.checkpoint_steps;
            let due = every > 0 && self.done.is_multiple_of(every);
            if due || epoch_ends || self.done == steps {
                self.save(observer)?;
            }
            if stop.requested().is_some() && self.done < steps {
                self.save(observer)?;
                return Ok(stopped(stop));
            }
        }
        if self.last.is_none() {
            // A finished run that is started again.
            self.last = Some(self.evaluate(observer)?);
        }
        let copy = self.params.fetch(FinetuneModel::is_adapted)?;
        let params = copy.as_ref().unwrap_or(&self.params);
        files::write(&self.run_dir, &self.info, &self.model, params)?;
        Ok(Outcome::Finished)
    }

    /// Updates in all.
    pub fn steps(&self) -> u64 {
        steps(&self.settings, self.images_per_epoch)
    }

    /// Whole epochs in that many steps.
    fn epochs_after(&self, step: u64) -> u64 {
        step * self.settings.images_per_step() as u64 / self.images_per_epoch.max(1)
    }

    /// One update from one batch; None when asked to stop between two micro-batches.
    fn train_step(&mut self, stop: &Stop) -> Result<Option<StepMetrics>, TrainError> {
        let started = Instant::now();
        let step = self.done + 1;
        let settings = &self.settings;
        let images = settings.images_per_step();
        self.params.zero_grads()?;
        let (mut waited_s, mut loss) = (0.0, 0.0);
        for micro in 0..settings.accumulate {
            if micro > 0 && stop.requested().is_some() {
                return Ok(None);
            }
            let waiting = Instant::now();
            self.loader.next_into(&mut self.batch)?;
            waited_s += waiting.elapsed().as_secs_f64();
            if let Some(i) = self.batch.labels.iter().position(Option::is_none) {
                let source = &self.loader.mixture().sources()[usize::from(self.batch.sources[i])];
                let location = source.location(self.batch.indices[i]);
                return Err(TrainError::NoLabel { location });
            }
            self.mixup.apply(&mut self.batch, &mut self.targets)?;
            let ready = match self.step.take() {
                Some(ready) => ready,
                None => {
                    let device = self.params.device();
                    FinetuneStep::new(&self.model, self.images, Some(self.recompute), &device)?
                }
            };
            let ready = self.step.insert(ready);
            loss += ready.forward_training(&self.params, pixels(&self.batch)?, &self.targets)?;
            ready.backward(&mut self.params, 1.0 / images as f32)?;
        }
        let loss = loss / images as f64;
        let norm = grad_norm(&self.params)?;
        for (what, value) in [("the loss", loss), ("the gradient norm", norm)] {
            if !value.is_finite() {
                return Err(TrainError::NonFinite { step, what, value });
            }
        }
        let lr = lr_with_floor(
            self.done,
            self.steps(),
            [settings.lr, settings.min_lr],
            warmup_steps(settings, self.images_per_epoch),
        );
        let update = Update {
            lr,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: settings.weight_decay,
            step,
            grad_scale: clip_scale(norm, settings.clip),
        };
        self.optimizer.step(&mut self.params, update)?;
        let elapsed_s = started.elapsed().as_secs_f64().max(1e-9);
        Ok(Some(StepMetrics {
            step,
            epoch: (step * images as u64) as f64 / self.images_per_epoch.max(1) as f64,
            loss,
            lr,
            grad_norm: norm,
            images_per_s: images as f64 / elapsed_s,
            data_wait_share: waited_s / elapsed_s,
            images_seen: step * images as u64,
            evaluation: None,
        }))
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<Evaluation, TrainError> {
        let mut unusable = Vec::new();
        let result = evaluate(
            &self.model,
            &self.params,
            &self.val,
            &self.evaluation,
            &mut |done, total| observer.event(Event::Evaluating { done, total }),
            &mut |skipped| unusable.push(skipped.clone()),
        );
        // Validation images are the same every time: those that cannot be used are told once.
        if self.last.is_none() {
            unusable.iter().for_each(|skipped| observer.event(Event::SampleSkipped(skipped)));
        }
        result
    }

    fn record(
        &mut self,
        metrics: &StepMetrics,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.metrics.line(&fields(metrics))?;
        self.record_skipped(metrics.step, observer)?;
        observer.event(Event::Step(metrics));
        Ok(())
    }

    fn record_skipped(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let skipped = self.loader.take_skipped();
        skipped.iter().for_each(|skipped| observer.event(Event::SampleSkipped(skipped)));
        self.skipped.write(step, Set::Train, &skipped)
    }

    /// Saves the run as it is, unless it already is or has not begun.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.saved == Some(self.done) || self.done == 0 {
            return Ok(());
        }
        // The log must reach at least as far as the checkpoint that a resumed run starts from.
        self.metrics.sync()?;
        self.skipped.sync()?;
        let state = state::State {
            step: self.done,
            loader: self.consumed.clone(),
            settings: self.settings.clone(),
        };
        let parts = state::Parts {
            info: &self.info,
            model: &self.model,
            params: &self.params,
            optimizer: &self.optimizer,
        };
        let path = state::save(&self.run_dir, &state, &parts)?;
        self.saved = Some(self.done);
        checkpoint::prune(&self.run_dir, self.done, KEEP, 0)?;
        observer.event(Event::Saved { step: self.done, path });
        Ok(())
    }

    fn tell_ready(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let (recompute, device) = (Some(self.recompute), self.params.device());
        let ready = FinetuneStep::new(&self.model, self.images, recompute, &device)?;
        let count = |wanted: &dyn Fn(&str) -> bool| -> usize {
            let params = self.model.layout().iter();
            params.filter(|p| wanted(&p.spec.name)).map(|p| p.range.len()).sum()
        };
        let flops = aim_tensor::count::flops(ready.session().tape());
        let images = self.images.batch.max(1) as u64;
        observer.event(Event::Ready {
            step: self.done,
            steps: self.steps(),
            images_per_step: self.settings.images_per_step(),
            adapter_parameters: count(&|name| FinetuneModel::is_adapter(name)),
            head_parameters: count(&|name| FinetuneModel::is_head(name)),
            trunk_parameters: count(&|name| !FinetuneModel::is_adapted(name)),
            memory: ready.session().memory(),
            state_bytes: self.params.bytes() + self.optimizer.bytes(),
            flops_per_image: (flops.forward + flops.backward) / images,
        });
        self.step = Some(ready);
        Ok(())
    }

    /// What was adapted, and to what.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// The model and its parameters.
    pub fn model(&self) -> (&FinetuneModel, &Parameters) {
        (&self.model, &self.params)
    }

    /// The last evaluation.
    pub fn evaluation(&self) -> Option<Evaluation> {
        self.last
    }
}

/// Updates in all: the last one may reach into the next epoch.
fn steps(settings: &FinetuneSettings, images_per_epoch: u64) -> u64 {
    (u64::from(settings.epochs) * images_per_epoch).div_ceil(settings.images_per_step() as u64)
}

fn warmup_steps(settings: &FinetuneSettings, images_per_epoch: u64) -> u64 {
    let images = settings.warmup_epochs * images_per_epoch as f64;
    ((images / settings.images_per_step() as f64).round() as u64)
        .min(steps(settings, images_per_epoch).saturating_sub(1))
}

fn stopped(stop: &Stop) -> Outcome {
    stop.requested().map_or(Outcome::Finished, Outcome::Stopped)
}

fn pixels(batch: &Batch) -> Result<Pixels<'_>, TrainError> {
    match &batch.images {
        Images::U8(bytes) => Ok(Pixels::U8(bytes)),
        Images::F32(values) => Ok(Pixels::F32(values)),
        _ => Err(TrainError::Internal("unknown kind of pixels")),
    }
}

/// The line of `metrics.jsonl`.
fn fields(metrics: &StepMetrics) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("step", metrics.step.into());
    put("epoch", metrics.epoch.into());
    put("loss", metrics.loss.into());
    put("lr", metrics.lr.into());
    put("grad_norm", metrics.grad_norm.into());
    put("images_per_s", metrics.images_per_s.into());
    put("data_wait_share", metrics.data_wait_share.into());
    put("images_seen", metrics.images_seen.into());
    if let Some(Evaluation { accuracy, loss }) = metrics.evaluation {
        put("val_loss", loss.into());
        put("val_top1", accuracy.top1.into());
        put("val_top5", accuracy.top5.into());
    }
    fields
}
