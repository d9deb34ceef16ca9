//! [`PretrainModel`]: trunk, pixel head and loss, and [`PretrainStep`]: one of their tapes, ready to run.

use std::borrow::Cow;
use std::sync::Arc;

use aim_tensor::count::Flops;
use aim_tensor::{DType, Device, ParamLayout, Parameters, PlanOptions, Session, Tape, Var};

use crate::config::AimConfig;
use crate::error::ModelError;
use crate::objective::Selection;
use crate::pixel_head::PixelHead;
use crate::trunk::{ImageBatch, Trunk, TrunkVars};

/// What a patch is compared with (paper table 3a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Pixels normalised patch by patch: mean and unbiased variance over all values of a patch, eps 1e-6 in the root.
    NormalizedPixels,
    /// Pixels as they enter the model.
    RawPixels,
}

/// An AIM with its pre-training head.
#[derive(Clone, Debug)]
pub struct PretrainModel {
    config: AimConfig,
    target: Target,
    layout: Arc<ParamLayout>,
    trunk: Trunk,
    head: PixelHead,
}

/// Pixels of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Pixels<'a> {
    /// `[batch, height, width, 3]`
    U8(&'a [u8]),
    /// `[batch, 3, height, width]`, normalised.
    F32(&'a [f32]),
}

/// Values on a pre-training tape.
#[derive(Clone, Debug)]
pub struct PretrainVars {
    /// The trunk's.
    pub trunk: TrunkVars,
    /// Input: i32 `[rows]`, which rows of the trunk's output predict.
    pub rows: Var,
    /// Input: i32 `[rows]`, their positions in the grid.
    pub head_positions: Var,
    /// Input: i32 `[rows]`, the patch each is scored against.
    pub targets: Var,
    /// `[rows, 3 p^2]`, in the order (row in patch, column, channel).
    pub predictions: Var,
    /// `[rows]`: mean squared error of each predicted patch.
    pub loss: Var,
}

impl PretrainModel {
    /// Describes a model; nothing is allocated.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub fn new(config: &AimConfig, target: Target) -> Result<Self, ModelError> {
        config.validate()?;
        let mut specs = Trunk::specs(config, true);
        specs.extend(PixelHead::specs(config));
        let layout = Arc::new(ParamLayout::new(specs)?);
        let trunk = Trunk::bind(config, &layout)?;
        let head = PixelHead::bind(config, &layout)?;
        Ok(Self { config: config.clone(), target, layout, trunk, head })
    }

    /// The model's sizes.
    pub fn config(&self) -> &AimConfig {
        &self.config
    }

    /// The model's parameters.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// What patches are compared with.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Records a step for images of that kind, of which `rows` rows predict.
    ///
    /// # Errors
    /// When the image is no whole number of patches.
    pub fn record(
        &self,
        images: ImageBatch,
        rows: usize,
    ) -> Result<(Tape, PretrainVars), ModelError> {
        self.record_with(images, rows, false)
    }

    /// As [`PretrainModel::record`], with a gradient for f32 images: to see what a prediction depends on.
    ///
    /// # Errors
    /// As [`PretrainModel::record`].
    pub fn record_with(
        &self,
        images: ImageBatch,
        rows: usize,
        differentiable_images: bool,
    ) -> Result<(Tape, PretrainVars), ModelError> {
        let mut tape = Tape::new(self.layout.clone());
        let trunk =
            self.trunk.record(&mut tape, images, self.config.num_blocks, differentiable_images)?;
        let index = [(); 3].map(|()| tape.input([rows], DType::I32));
        let [rows, head_positions, targets] = index;
        let last = trunk.blocks.last().copied().unwrap_or(trunk.embed);
        // The final norm treats each row by itself, so it too runs on the predicting rows only.
        let picked = tape.gather_rows(last, rows)?;
        let picked = self.trunk.record_post_norm(&mut tape, picked)?;
        let predictions = self.head.record(&mut tape, picked, head_positions, trunk.grid)?;
        let normalize = self.target == Target::NormalizedPixels;
        let patch = self.config.patch_size;
        let loss = tape.patch_loss(predictions, trunk.patches, targets, patch, normalize)?;
        tape.set_loss(loss);
        Ok((tape, PretrainVars { trunk, rows, head_positions, targets, predictions, loss }))
    }

    /// FLOPs of a training step on `batch` images of the configured size with uniform prefixes, per image.
    ///
    /// # Errors
    /// Those of [`PretrainModel::record`].
    pub fn flops_per_image(&self) -> Result<Flops, ModelError> {
        let tokens = self.config.num_patches();
        let (tape, _) = self.record(self.image_batch(2), tokens)?;
        let Flops { forward, backward } = aim_tensor::count::flops(&tape);
        Ok(Flops { forward: forward / 2, backward: backward / 2 })
    }

    /// A batch of u8 images of the configured size, not normalised.
    pub fn image_batch(&self, batch: usize) -> ImageBatch {
        let format = crate::trunk::PixelFormat::U8 { mean: [0.0; 3], std: [1.0; 3] };
        let size = self.config.img_size;
        ImageBatch { batch, height: size.height, width: size.width, format }
    }
}

/// A recorded and planned step with its memory.
pub struct PretrainStep {
    session: Session,
    vars: PretrainVars,
    images: ImageBatch,
    rows: usize,
    head_positions: Vec<i32>,
}

impl PretrainStep {
    /// Records, plans and reserves memory, on the CPU.
    ///
    /// # Errors
    /// Those of [`PretrainModel::record`] and [`Session::new`].
    pub fn new(
        model: &PretrainModel,
        images: ImageBatch,
        rows: usize,
        options: PlanOptions,
    ) -> Result<Self, ModelError> {
        Self::on(&Device::Cpu, model, images, rows, options)
    }

    /// As [`PretrainStep::new`], on a device.
    ///
    /// # Errors
    /// Those of [`PretrainModel::record`] and [`Session::on`].
    pub fn on(
        device: &Device,
        model: &PretrainModel,
        images: ImageBatch,
        rows: usize,
        options: PlanOptions,
    ) -> Result<Self, ModelError> {
        let (mut tape, vars) = model.record(images, rows)?;
        if !options.backward {
            // Pictures and measurements look at predictions and targets.
            tape.output(vars.predictions);
            tape.output(vars.trunk.patches);
        }
        Self::ready(Session::on(device, tape, options)?, vars, images, rows)
    }

    fn ready(
        session: Session,
        vars: PretrainVars,
        images: ImageBatch,
        rows: usize,
    ) -> Result<Self, ModelError> {
        let mut step =
            Self { session, vars, images, rows, head_positions: Vec::with_capacity(rows) };
        let tokens = step.tokens() as i32;
        let positions: Vec<i32> = (0..images.batch).flat_map(|_| 0..tokens).collect();
        step.session.write_i32(step.vars.trunk.positions, &positions)?;
        Ok(step)
    }

    /// The step for other images or another number of rows; recorded again only if either differs.
    ///
    /// # Errors
    /// As [`PretrainStep::new`].
    pub fn adapted(
        self,
        model: &PretrainModel,
        images: ImageBatch,
        rows: usize,
        options: PlanOptions,
    ) -> Result<Self, ModelError> {
        if self.images == images && self.rows == rows {
            return Ok(self);
        }
        let (mut tape, vars) = model.record(images, rows)?;
        if !options.backward {
            tape.output(vars.predictions);
            tape.output(vars.trunk.patches);
        }
        Self::ready(self.session.reusing(tape, options)?, vars, images, rows)
    }

    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        self.vars.trunk.grid.0 * self.vars.trunk.grid.1
    }

    /// Rows that predict.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The planned tape.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The tape's values.
    pub fn vars(&self) -> &PretrainVars {
        &self.vars
    }

    /// Runs the forward pass. Returns the sum of the losses of the scored patches, which [`PretrainStep::rows`]
    /// counts; a mean over a global batch is the sum of these sums over the sum of the counts.
    ///
    /// # Errors
    /// When pixels or selection are of another size than the step was recorded for.
    pub fn forward(
        &mut self,
        params: &Parameters,
        pixels: Pixels<'_>,
        selection: &Selection,
    ) -> Result<f64, ModelError> {
        match pixels {
            Pixels::U8(pixels) => self.session.write_u8(self.vars.trunk.images, pixels)?,
            Pixels::F32(pixels) => self.session.write_f32(self.vars.trunk.images, pixels)?,
        }
        let tokens = self.tokens() as i32;
        self.head_positions.clear();
        self.head_positions.extend(selection.rows.iter().map(|row| row % tokens));
        self.session.write_i32(self.vars.trunk.prefix, &selection.prefix)?;
        self.session.write_i32(self.vars.rows, &selection.rows)?;
        self.session.write_i32(self.vars.head_positions, &self.head_positions)?;
        self.session.write_i32(self.vars.targets, &selection.targets)?;
        self.session.forward(params)?;
        Ok(self.losses()?.iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Adds gradients of `scale` times the sum of the losses. Follows [`PretrainStep::forward`].
    ///
    /// # Errors
    /// Those of [`Session::backward`].
    pub fn backward(&mut self, params: &mut Parameters, scale: f32) -> Result<(), ModelError> {
        Ok(self.session.backward(params, scale)?)
    }

    /// Mean squared error of each scored patch, in the selection's order.
    ///
    /// # Errors
    /// None after a forward pass.
    pub fn losses(&self) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(self.session.read(self.vars.loss)?)
    }

    /// Predictions `[rows, 3 p^2]`, of a step planned without a backward pass.
    ///
    /// # Errors
    /// When the step was planned with a backward pass.
    pub fn predictions(&self) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(self.session.read(self.vars.predictions)?)
    }

    /// Patches `[batch * tokens, 3 p^2]` in the order (channel, row, column), of a step planned without a backward
    /// pass.
    ///
    /// # Errors
    /// When the step was planned with a backward pass.
    pub fn patches(&self) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(self.session.read(self.vars.trunk.patches)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_papers() {
        for (preset, trunk, head) in [
            ("aim-600M", 680_535_552, 407_059_020),
            ("aim-1B", 1_209_370_624, 408_107_596),
            ("aim-3B", 2_720_025_600, 410_204_748),
            ("aim-7B", 6_445_404_160, 412_301_900_usize),
        ] {
            let config = AimConfig::preset(preset).unwrap();
            let count = |specs: Vec<aim_tensor::ParamSpec>| {
                specs.iter().map(|s| s.shape.len()).sum::<usize>()
            };
            assert_eq!(count(Trunk::specs(&config, true)), trunk, "{preset} trunk");
            assert_eq!(count(PixelHead::specs(&config)), head, "{preset} head");
            assert_eq!(
                PretrainModel::new(&config, Target::NormalizedPixels).unwrap().layout().count(),
                trunk + head
            );
        }
    }

    #[test]
    fn l3m_head_has_its_extra_norms() {
        let clean = AimConfig::preset("aim-600M").unwrap();
        let l3m = AimConfig { head_residual: crate::config::HeadResidual::L3m, ..clean };
        let count: usize = PixelHead::specs(&l3m).iter().map(|s| s.shape.len()).sum();
        assert_eq!(count, 407_108_172);
    }
}
