//! [`ProbeStep`]: one classifier on a tape.

use std::borrow::Cow;

use aim_tensor::{DType, Parameters, PlanOptions, Session, Tape, Var};

use super::Probe;
use crate::error::ModelError;

/// A classifier on batches of one size.
pub struct ProbeStep {
    session: Session,
    probe: Probe,
    features: Var,
    labels: Var,
    normed: Var,
    logits: Var,
    loss: Var,
}

impl ProbeStep {
    /// Plans the classifier for features `[batch, tokens, dim]`.
    ///
    /// # Errors
    /// When memory is short, or training is asked for on a single row.
    pub fn new(
        probe: &Probe,
        batch: usize,
        tokens: usize,
        training: bool,
    ) -> Result<Self, ModelError> {
        let mut tape = Tape::new(probe.layout.clone());
        let features = tape.input([batch, tokens, probe.config.dim], DType::F32);
        let labels = tape.input([batch], DType::I32);
        let (normed, logits) = probe.record(&mut tape, features, training)?;
        tape.output(logits);
        let loss = tape.cross_entropy(logits, labels)?;
        tape.set_loss(loss);
        let session = Session::new(tape, PlanOptions { backward: training, ..Default::default() })?;
        Ok(Self { session, probe: probe.clone(), features, labels, normed, logits, loss })
    }

    /// Runs the classifier; returns the sum of the losses of images whose label is not negative.
    ///
    /// # Errors
    /// When sizes differ from the plan's or a label is not below the number of classes.
    pub fn forward(
        &mut self,
        params: &Parameters,
        features: &[f32],
        labels: &[i32],
    ) -> Result<f64, ModelError> {
        self.session.write_f32(self.features, features)?;
        self.session.write_i32(self.labels, labels)?;
        self.session.forward(params)?;
        Ok(self.session.read(self.loss)?.iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Adds gradients of `scale` times the summed loss, and moves the running statistics towards the batch's.
    ///
    /// # Errors
    /// When the step was not planned for training.
    pub fn backward(&mut self, params: &mut Parameters, scale: f32) -> Result<(), ModelError> {
        self.session.backward(params, scale)?;
        self.probe.track(&self.session, self.normed, params)
    }

    /// Logits `[batch, classes]` of the last run.
    ///
    /// # Errors
    /// None after a run.
    pub fn logits(&self) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(self.session.read(self.logits)?)
    }
}
