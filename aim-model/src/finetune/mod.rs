//! [`FinetuneModel`]: a frozen trunk with adapters and a classifier on it, on one tape (paper 5.5, table 8).
//!
//! Images see each other's tokens both ways, as everywhere downstream (4.2), and the classifier sees the mean of the
//! chosen blocks' outputs, as a probe does. Gradients exist for adapters and classifier only: the trunk's weights have
//! neither gradient nor moments, and no gradient of an activation is computed below the first adapter.

mod head;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use aim_tensor::{
    DType, Device, ParamLayout, Parameters, PlanOptions, Recompute, Session, Tape, TensorError, Var,
};

use crate::config::AimConfig;
use crate::error::ModelError;
use crate::lora::{Adapters, LoraConfig};
use crate::pretrain::Pixels;
use crate::trunk::{ImageBatch, Trunk, TrunkVars};
use head::{Head, HeadVars};

/// What is adapted, and to what.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneConfig {
    /// The trunk.
    pub model: AimConfig,
    /// The adapters.
    pub lora: LoraConfig,
    /// Blocks whose outputs the classifier sees the mean of.
    pub layers: Vec<usize>,
    /// Classes.
    pub classes: usize,
}

impl FinetuneConfig {
    /// Blocks that run.
    pub fn depth(&self) -> usize {
        self.layers.iter().max().map_or(0, |last| last + 1)
    }
}

/// A trunk, its adapters and a classifier. See the module's page.
#[derive(Clone, Debug)]
pub struct FinetuneModel {
    config: FinetuneConfig,
    layout: Arc<ParamLayout>,
    trunk: Trunk,
    adapters: Adapters,
    head: Head,
}

/// Values on a tape.
#[derive(Clone, Debug)]
pub struct FinetuneVars {
    /// The trunk's.
    pub trunk: TrunkVars,
    /// Input: f32 `[batch, classes]`, the share of each class; in training only.
    pub targets: Option<Var>,
    /// `[batch, classes]`
    pub logits: Var,
    /// `[batch]`, in training only.
    pub loss: Option<Var>,
    head: HeadVars,
}

impl FinetuneModel {
    /// Describes a model; nothing is allocated.
    ///
    /// # Errors
    /// When a value does not fit the trunk: see [`LoraConfig::validate`]; a layer that does not exist; no class; an
    /// adapter behind the last block that the classifier sees.
    pub fn new(config: FinetuneConfig) -> Result<Self, ModelError> {
        config.model.validate()?;
        config.lora.validate(&config.model)?;
        let num_blocks = config.model.num_blocks;
        if config.layers.is_empty() || config.layers.iter().any(|&layer| layer >= num_blocks) {
            return Err(ModelError::BadConfig {
                key: "layers",
                value: format!("{:?}", config.layers),
                expected: format!("block indices from 0 to {}", num_blocks.saturating_sub(1)),
            });
        }
        if let Some(last) = config.lora.blocks.last().filter(|&&last| last >= config.depth()) {
            return Err(ModelError::BadLora {
                key: "blocks",
                value: last.to_string(),
                expected: format!(
                    "blocks up to {}, the last one that the classifier sees",
                    config.depth() - 1
                ),
            });
        }
        let mut specs = Trunk::specs(&config.model, false);
        specs.extend(config.lora.specs(&config.model));
        specs.extend(Head::specs(&config));
        let layout = Arc::new(ParamLayout::new(specs)?);
        Ok(Self {
            trunk: Trunk::bind(&config.model, &layout)?,
            adapters: Adapters::bind(&config.lora, &config.model, &layout)?,
            head: Head::bind(&config, &layout)?,
            layout,
            config,
        })
    }

    /// What is adapted.
    pub fn config(&self) -> &FinetuneConfig {
        &self.config
    }

    /// Parameters of trunk, adapters and classifier.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// The adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Fresh adapters and classifier; the trunk is left as it is.
    pub fn initialize(&self, params: &mut Parameters, seed: u64) {
        self.adapters.initialize(params, seed);
        self.head.initialize(params, seed);
    }

    /// Whether a parameter belongs to the classifier.
    pub fn is_head(name: &str) -> bool {
        name.starts_with("head.")
    }

    /// Whether a parameter is an adapter's.
    pub fn is_adapter(name: &str) -> bool {
        name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
    }

    /// Whether a parameter is an adapter's or the classifier's: what trains, and the classifier's statistics.
    pub fn is_adapted(name: &str) -> bool {
        Self::is_adapter(name) || Self::is_head(name)
    }

    /// Records the model for images of that kind: logits, and in training the loss.
    ///
    /// # Errors
    /// When an image is no whole number of patches.
    pub fn record(
        &self,
        images: ImageBatch,
        training: bool,
    ) -> Result<(Tape, FinetuneVars), ModelError> {
        let mut tape = Tape::new(self.layout.clone());
        let depth = self.config.depth();
        let trunk =
            self.trunk.record_adapted(&mut tape, images, depth, false, Some(&self.adapters))?;
        let layers: Vec<Var> =
            self.config.layers.iter().map(|&layer| trunk.blocks[layer]).collect();
        let features = tape.average(&layers)?;
        let head = self.head.record(&mut tape, features, training)?;
        let logits = head.logits;
        tape.output(logits);
        let (mut targets, mut loss) = (None, None);
        if training {
            let shares = tape.input([images.batch, self.config.classes], DType::F32);
            let losses = tape.soft_cross_entropy(logits, shares)?;
            tape.set_loss(losses);
            (targets, loss) = (Some(shares), Some(losses));
        }
        Ok((tape, FinetuneVars { trunk, targets, logits, loss, head }))
    }
}

/// A recorded and planned step with its memory.
pub struct FinetuneStep {
    session: Session,
    vars: FinetuneVars,
    head: Head,
    images: ImageBatch,
}

impl FinetuneStep {
    /// Records, plans and reserves memory on a device: for training with that recomputation, or for logits only.
    ///
    /// # Errors
    /// Those of [`FinetuneModel::record`] and [`Session::on`].
    pub fn new(
        model: &FinetuneModel,
        images: ImageBatch,
        training: Option<Recompute>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (tape, vars) = model.record(images, training.is_some())?;
        let options = PlanOptions {
            backward: training.is_some(),
            recompute: training.unwrap_or_default(),
            ..PlanOptions::default()
        };
        let mut session = Session::on(device, tape, options)?;
        let tokens = (vars.trunk.grid.0 * vars.trunk.grid.1) as i32;
        let positions: Vec<i32> = (0..images.batch).flat_map(|_| 0..tokens).collect();
        session.write_i32(vars.trunk.positions, &positions)?;
        session.write_i32(vars.trunk.prefix, &vec![tokens; images.batch])?;
        Ok(Self { session, vars, head: model.head.clone(), images })
    }

    /// The images that it takes.
    pub fn images(&self) -> ImageBatch {
        self.images
    }

    /// The planned tape.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Computes the logits.
    ///
    /// # Errors
    /// When pixels are of another size than the step was recorded for.
    pub fn forward(&mut self, params: &Parameters, pixels: Pixels<'_>) -> Result<(), ModelError> {
        match pixels {
            Pixels::U8(pixels) => self.session.write_u8(self.vars.trunk.images, pixels)?,
            Pixels::F32(pixels) => self.session.write_f32(self.vars.trunk.images, pixels)?,
        }
        Ok(self.session.forward(params)?)
    }

    /// As [`FinetuneStep::forward`] in training: `targets` `[batch, classes]` are the shares of the classes. Returns the
    /// sum of the losses.
    ///
    /// # Errors
    /// Also when the step was not planned for training.
    pub fn forward_training(
        &mut self,
        params: &Parameters,
        pixels: Pixels<'_>,
        targets: &[f32],
    ) -> Result<f64, ModelError> {
        let (Some(shares), Some(loss)) = (self.vars.targets, self.vars.loss) else {
            return Err(not_for_training().into());
        };
        self.session.write_f32(shares, targets)?;
        self.forward(params, pixels)?;
        Ok(self.session.read(loss)?.iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Adds gradients of `scale` times the sum of the losses, and moves the classifier's running statistics towards the
    /// batch's. Follows [`FinetuneStep::forward_training`].
    ///
    /// # Errors
    /// When the step was not planned for training.
    pub fn backward(&mut self, params: &mut Parameters, scale: f32) -> Result<(), ModelError> {
        self.session.backward(params, scale)?;
        self.head.track(&self.session, self.vars.head, params)
    }

    /// Logits `[batch, classes]` of the last run.
    ///
    /// # Errors
    /// None after a run.
    pub fn logits(&self) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(self.session.read(self.vars.logits)?)
    }
}

fn not_for_training() -> TensorError {
    TensorError::BadArgument {
        op: "forward_training",
        expected: "a step planned for training",
        found: "one for logits only".into(),
    }
}
