//! The classifier on the adapted trunk: the one place that knows how a probe is put on a tape.

use std::sync::Arc;

use aim_tensor::{ParamLayout, ParamSpec, Parameters, Session, Tape, Var};

use super::FinetuneConfig;
use crate::classifier::{Probe, ProbeConfig, ProbeKind};
use crate::error::ModelError;

/// An attentive probe whose parameters are in the model's layout.
#[derive(Clone, Debug)]
pub(super) struct Head(Probe);

/// Its values on a tape.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadVars {
    normed: Var,
    pub(super) logits: Var,
}

impl Head {
    fn config(config: &FinetuneConfig) -> ProbeConfig {
        ProbeConfig {
            kind: ProbeKind::Attentive,
            dim: config.model.embed_dim,
            heads: config.model.num_heads,
            classes: config.classes,
        }
    }

    pub(super) fn specs(config: &FinetuneConfig) -> Vec<ParamSpec> {
        Probe::specs(Self::config(config))
    }

    pub(super) fn bind(
        config: &FinetuneConfig,
        layout: &Arc<ParamLayout>,
    ) -> Result<Self, ModelError> {
        Ok(Self(Probe::bind(Self::config(config), layout.clone())?))
    }

    pub(super) fn initialize(&self, params: &mut Parameters, seed: u64) {
        self.0.initialize(params, seed);
    }

    /// Records the classifier on `[batch, tokens, dim]`.
    pub(super) fn record(
        &self,
        tape: &mut Tape,
        features: Var,
        training: bool,
    ) -> Result<HeadVars, ModelError> {
        let (normed, logits) = self.0.record(tape, features, training)?;
        Ok(HeadVars { normed, logits })
    }

    /// Moves the running statistics towards those of the session's batch.
    pub(super) fn track(
        &self,
        session: &Session,
        vars: HeadVars,
        params: &mut Parameters,
    ) -> Result<(), ModelError> {
        self.0.track(session, vars.normed, params)
    }
}
