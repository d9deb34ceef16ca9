//! [`Trainer`]: pre-training as a loop, from a configuration to a run directory.
//!
//! | module | what |
//! |---|---|
//! | `device` | choosing the device, and the recomputation that fits it |
//! | `events` | what the trainer tells |
//! | `setup` | opening data, model and run directory; resuming |
//! | `skipped` | `skipped.jsonl`, the samples that could not be used |
//! | `state` | what a checkpoint holds |
//! | `validation` | validation losses and their baseline |

pub(crate) mod device;
mod events;
mod setup;
pub(crate) mod skipped;
mod state;
mod validation;

use std::path::{Path, PathBuf};
use std::time::Instant;

use aim_data::loader::{Batch, Images, Loader, LoaderState};
use aim_model::objective::{PrefixSampler, Selection};
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep};
use aim_model::trunk::ImageBatch;
use aim_tensor::{Parameters, PlanOptions, Recompute};
use serde_json::{Map, Value};

pub use device::{Chosen, DeviceChoice};
pub use events::{Event, Observer, StepMetrics, Validation};
pub use setup::{Resume, open_data};
pub use state::{AimJson, TrainerState};

use crate::checkpoint;
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::metrics::jsonl::JsonlWriter;
use crate::metrics::tensorboard::EventWriter;
use crate::optimizer::{AdamW, Update, clip_scale, grad_norm};
use crate::schedule::lr_at;
use crate::signals::{Signal, Stop};

use skipped::{Set, SkippedLog};
use validation::ValidationSet;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// A signal asked to stop; everything is saved.
    Stopped(Signal),
}

/// A run: everything that the loop needs. Made by [`Trainer::open`].
pub struct Trainer {
    config: RunConfig,
    run_dir: PathBuf,
    model: PretrainModel,
    params: Parameters,
    optimizer: AdamW,
    loader: Loader,
    /// Where the loader stood after the last whole step.
    consumed: LoaderState,
    validation: Option<ValidationSet>,
    prefixes: PrefixSampler,
    recompute: Recompute,
    images: ImageBatch,
    step: Option<PretrainStep>,
    selections: Vec<Selection>,
    batch: Batch,
    /// Steps done when the run was opened.
    first: u64,
    done: u64,
    saved: Option<u64>,
    metrics: JsonlWriter,
    skipped: SkippedLog,
    tensorboard: Option<EventWriter>,
    _lock: RunLock,
}

impl Trainer {
    /// Trains until all steps are done or `stop` is asked for.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] before an update that would spoil the parameters; data that are too bad; files that
    /// cannot be written. The last checkpoint stays as it is.
    pub fn run(&mut self, stop: &Stop, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        let steps = self.config.train.steps;
        self.tell_ready(observer)?;
        while self.done < steps {
            let stepped = self.train_step(stop);
            if stepped.is_err() {
                // What could not be used may be why. That error comes first, whatever happens here.
                let _ = self.record_skipped(self.done + 1, observer);
            }
            let Some(metrics) = stepped? else {
                self.save(observer)?;
                return Ok(self.stopped(stop));
            };
            if self.done == self.first {
                for note in device::settle(&self.params.device()) {
                    observer.event(Event::DeviceNote(&note));
                }
            }
            self.done += 1;
            self.consumed = self.loader.state().clone();
            let metrics = self.validate(metrics)?;
            self.record(&metrics, observer)?;
            if due(self.config.checkpoint.every_steps, self.done) || self.done == steps {
                self.save(observer)?;
            }
            if stop.requested().is_some() && self.done < steps {
                self.save(observer)?;
                return Ok(self.stopped(stop));
            }
        }
        Ok(Outcome::Finished)
    }

    fn stopped(&self, stop: &Stop) -> Outcome {
        stop.requested().map_or(Outcome::Finished, Outcome::Stopped)
    }

    /// One update from one global batch (paper 4.1): the mean squared error of every patch after its prefix, averaged
    /// over all of them. None when asked to stop between two micro-batches: a step of thousands of images can take
    /// longer than whoever asks will wait, and its half is not worth keeping.
    fn train_step(&mut self, stop: &Stop) -> Result<Option<StepMetrics>, TrainError> {
        let started = Instant::now();
        let step = self.done + 1;
        let scored = self.draw_prefixes();
        let train = &self.config.train;
        let scale = 1.0 / scored as f32;
        let options = self.options();

        self.params.zero_grads()?;
        let mut waited_s = 0.0;
        let mut loss = 0.0;
        for micro in 0..train.accumulate {
            if micro > 0 && stop.requested().is_some() {
                return Ok(None);
            }
            let waiting = Instant::now();
            self.loader.next_into(&mut self.batch)?;
            waited_s += waiting.elapsed().as_secs_f64();
            let selection = &self.selections[micro];
            let rows = selection.rows.len();
            let ready = match self.step.take() {
                Some(ready) => ready.adapted(&self.model, self.images, rows, options)?,
                None => PretrainStep::on(
                    &self.params.device(),
                    &self.model,
                    self.images,
                    rows,
                    options,
                )?,
            };
            let ready = self.step.insert(ready);
            loss += ready.forward(&self.params, pixels(&self.batch.images)?, selection)?;
            ready.backward(&mut self.params, scale)?;
        }
        let loss = loss / scored as f64;
        let norm = grad_norm(&self.params)?;
        for (what, value) in [("the loss", loss), ("the gradient norm", norm)] {
            if !value.is_finite() {
                return Err(TrainError::NonFinite { step, what, value });
            }
        }
        let lr = lr_at(self.done, train.steps, train.lr, train.warmup_fraction);
        let update = Update {
            lr,
            betas: train.betas,
            eps: train.eps,
            weight_decay: train.weight_decay,
            step,
            grad_scale: clip_scale(norm, train.clip),
        };
        self.optimizer.step(&mut self.params, update)?;
        let elapsed_s = started.elapsed().as_secs_f64().max(1e-9);
        Ok(Some(StepMetrics {
            step,
            loss,
            lr,
            grad_norm: norm,
            images_per_s: train.images_per_step() as f64 / elapsed_s,
            data_wait_share: waited_s / elapsed_s,
            images_seen: step * train.images_per_step() as u64,
            validation: None,
        }))
    }

    fn options(&self) -> PlanOptions {
        PlanOptions {
            backward: true,
            recompute: self.recompute,
            ..device::options(&self.config.train)
        }
    }

    /// Prefixes of every micro-batch of the next step; returns the number of patches that will be scored.
    fn draw_prefixes(&mut self) -> usize {
        let batch = self.config.train.batch_size;
        let tokens = self.model.config().num_patches();
        let mut prefix = Vec::with_capacity(batch);
        let mut scored = 0;
        for (micro, selection) in self.selections.iter_mut().enumerate() {
            self.prefixes.draw(self.done, micro * batch..(micro + 1) * batch, &mut prefix);
            selection.fill_next_patch(&prefix, tokens);
            scored += selection.rows.len();
        }
        scored
    }

    fn validate(&mut self, mut metrics: StepMetrics) -> Result<StepMetrics, TrainError> {
        let last = self.done == self.config.train.steps;
        if let Some(set) = &mut self.validation
            && (due(self.config.validation.every_steps, self.done) || last)
        {
            if self.params.on_device().is_some() {
                // A step may fill the card: its memory is lent to the validation.
                self.step = None;
            }
            let options = device::options(&self.config.train);
            metrics.validation = Some(set.run(&self.model, self.images, &self.params, options)?);
        }
        Ok(metrics)
    }

    fn record(
        &mut self,
        metrics: &StepMetrics,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let fields = fields(metrics);
        if let Some(writer) = &mut self.tensorboard {
            for (name, value) in &fields {
                if let Some(value) = value.as_f64().filter(|_| name != "step") {
                    writer.scalar(metrics.step, name, value as f32)?;
                }
            }
        }
        self.metrics.line(&fields)?;
        self.record_skipped(metrics.step, observer)?;
        observer.event(Event::Step(metrics));
        Ok(())
    }

    /// Tells and writes down which samples could not be used in this step.
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
        if let Some(writer) = &mut self.tensorboard {
            writer.sync()?;
        }
        let state = TrainerState {
            step: self.done,
            images_seen: self.done * self.config.train.images_per_step() as u64,
            loader: self.consumed.clone(),
            config: self.config.clone(),
        };
        let path = state::save(&self.run_dir, &state, &self.params, &self.optimizer)?;
        self.saved = Some(self.done);
        let keep = &self.config.checkpoint;
        checkpoint::prune(&self.run_dir, self.done, keep.keep, keep.keep_every_steps)?;
        observer.event(Event::Saved { step: self.done, path });
        Ok(())
    }

    fn tell_ready(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let rows = {
            self.draw_prefixes();
            self.selections.first().map_or(0, |selection| selection.rows.len())
        };
        let device = self.params.device();
        let ready = PretrainStep::on(&device, &self.model, self.images, rows, self.options())?;
        let flops = aim_tensor::count::flops(ready.session().tape());
        observer.event(Event::Ready {
            step: self.done,
            steps: self.config.train.steps,
            images_per_step: self.config.train.images_per_step(),
            parameters: self.model.layout().count(),
            memory: ready.session().memory(),
            state_bytes: self.params.bytes() + self.optimizer.bytes(),
            recompute: self.recompute,
            flops_per_image: (flops.forward + flops.backward) / self.images.batch.max(1) as u64,
        });
        self.step = Some(ready);
        Ok(())
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The model and its parameters.
    pub fn model(&self) -> (&PretrainModel, &Parameters) {
        (&self.model, &self.params)
    }
}

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn pixels(images: &Images) -> Result<Pixels<'_>, TrainError> {
    match images {
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
    put("loss", metrics.loss.into());
    put("lr", metrics.lr.into());
    put("grad_norm", metrics.grad_norm.into());
    put("images_per_s", metrics.images_per_s.into());
    put("data_wait_share", metrics.data_wait_share.into());
    put("images_seen", metrics.images_seen.into());
    if let Some(validation) = metrics.validation {
        put("val_loss", validation.loss.into());
        put("val_loss_causal", validation.loss_causal.into());
        put("val_baseline", validation.baseline.into());
        put("val_baseline_causal", validation.baseline_causal.into());
    }
    fields
}
