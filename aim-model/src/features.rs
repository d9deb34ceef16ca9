//! [`FeatureExtractor`]: block outputs of a frozen trunk, all tokens seeing all tokens (paper 4.2, downstream).

use std::borrow::Cow;
use std::sync::Arc;

use aim_tensor::{ParamLayout, Parameters, PlanOptions, Session, Tape};

use crate::config::AimConfig;
use crate::error::ModelError;
use crate::pretrain::Pixels;
use crate::trunk::{ImageBatch, Trunk, TrunkVars};

/// A frozen trunk that turns images into features.
pub struct FeatureExtractor {
    config: AimConfig,
    trunk: Trunk,
    params: Parameters,
    layers: Vec<usize>,
    run: Option<(Session, TrunkVars, ImageBatch)>,
}

impl FeatureExtractor {
    /// Reserves a trunk's parameters, all zero until filled; see [`crate::weights`] and [`crate::init`].
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], or when memory is short.
    pub fn parameters(config: &AimConfig) -> Result<Parameters, ModelError> {
        config.validate()?;
        let layout = Arc::new(ParamLayout::new(Trunk::specs(config, false))?);
        Ok(Parameters::new(layout)?)
    }

    /// An extractor of the outputs of `layers` (block indices from 0, each below `num_blocks`), on the device where
    /// the parameters are.
    ///
    /// # Errors
    /// When a layer does not exist or none is asked for.
    pub fn new(
        config: &AimConfig,
        params: Parameters,
        layers: &[usize],
    ) -> Result<Self, ModelError> {
        if layers.is_empty() || layers.iter().any(|&layer| layer >= config.num_blocks) {
            return Err(ModelError::BadConfig {
                key: "layers",
                value: format!("{layers:?}"),
                expected: format!(
                    "block indices from 0 to {}",
                    config.num_blocks.saturating_sub(1)
                ),
            });
        }
        let trunk = Trunk::bind(config, params.layout())?;
        Ok(Self { config: config.clone(), trunk, params, layers: layers.to_vec(), run: None })
    }

    /// The trunk's sizes.
    pub fn config(&self) -> &AimConfig {
        &self.config
    }

    /// The trunk's parameters.
    pub fn params(&self) -> &Parameters {
        &self.params
    }

    /// The blocks whose outputs are given.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Runs the trunk. Blocks behind the last layer asked for are not computed.
    ///
    /// # Errors
    /// When images are no whole number of patches or pixels are of another size.
    pub fn run(&mut self, images: ImageBatch, pixels: Pixels<'_>) -> Result<(), ModelError> {
        let previous = self.run.take();
        let (mut session, vars) = match previous {
            Some((session, vars, same)) if same == images => (session, vars),
            other => self.record(images, other.map(|(session, ..)| session))?,
        };
        match pixels {
            Pixels::U8(pixels) => session.write_u8(vars.images, pixels)?,
            Pixels::F32(pixels) => session.write_f32(vars.images, pixels)?,
        }
        session.forward(&self.params)?;
        self.run = Some((session, vars, images));
        Ok(())
    }

    fn record(
        &self,
        images: ImageBatch,
        old: Option<Session>,
    ) -> Result<(Session, TrunkVars), ModelError> {
        let mut tape = Tape::new(self.params.layout().clone());
        let depth = self.layers.iter().max().map_or(0, |last| last + 1);
        let vars = self.trunk.record(&mut tape, images, depth, false)?;
        for &layer in &self.layers {
            tape.output(vars.blocks[layer]);
        }
        let options = PlanOptions::default();
        let mut session = match old {
            Some(old) => old.reusing(tape, options)?,
            None => Session::on(&self.params.device(), tape, options)?,
        };
        let tokens = (vars.grid.0 * vars.grid.1) as i32;
        let positions: Vec<i32> = (0..images.batch).flat_map(|_| 0..tokens).collect();
        session.write_i32(vars.positions, &positions)?;
        session.write_i32(vars.prefix, &vec![tokens; images.batch])?;
        Ok((session, vars))
    }

    /// Output of `layers[i]` of the last run: `[batch, tokens, dim]`, not normalised (ml-aim gives it so too).
    ///
    /// # Errors
    /// When nothing ran yet or there is no such layer.
    pub fn layer(&self, i: usize) -> Result<Cow<'_, [f32]>, ModelError> {
        match (&self.run, self.layers.get(i)) {
            (Some((session, vars, _)), Some(&layer)) => Ok(session.read(vars.blocks[layer])?),
            _ => Err(ModelError::BadConfig {
                key: "layers",
                value: i.to_string(),
                expected: format!("one of {} layers, after a run", self.layers.len()),
            }),
        }
    }

    /// Mean over the layers of the last run: `[batch, tokens, dim]`, the probe's input.
    ///
    /// # Errors
    /// When nothing ran yet.
    pub fn average(&self, out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.clear();
        out.resize(self.layer(0)?.len(), 0.0);
        let share = 1.0 / self.layers.len() as f32;
        for i in 0..self.layers.len() {
            for (sum, value) in out.iter_mut().zip(self.layer(i)?.iter()) {
                *sum += share * value;
            }
        }
        Ok(())
    }

    /// Tokens of an image in the last run.
    pub fn tokens(&self) -> usize {
        self.run.as_ref().map_or(0, |(_, vars, _)| vars.grid.0 * vars.grid.1)
    }
}
