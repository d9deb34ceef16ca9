//! Classifiers on frozen features: ml-aim's attentive probe and a linear probe.
//!
//! ```text
//! attentive   f = batch_norm(features over batch and tokens)        no affine, eps 1e-6
//!             k = f Wk^T,  v = f Wv^T                               no bias
//!             z = softmax(q k^T / sqrt(head_dim)) v                 q learned (cls_token), heads as in the trunk
//!             logits = z W^T                                        no bias
//! linear      f = batch_norm(mean over tokens of features),  logits = f W^T + b
//! ```
//!
//! Names of the attentive probe are ml-aim's `head.*`, so that it loads there.
//!
//! | module | what |
//! |---|---|
//! | [`grid`] | many probes trained and run at once on frozen features |
//! | [`layers`] | the blocks whose outputs a probe sees |
//! | [`step`] | one probe on a tape, for what trains below it too |

pub mod grid;
pub mod layers;
pub mod step;

use std::sync::Arc;

use aim_tensor::{ParamId, ParamLayout, ParamSpec, Parameters, Philox, Session, Tape, Var};

use crate::error::ModelError;
use crate::trunk::{bind, spec};

pub use grid::GridStep;
pub use layers::best_layers;
pub use step::ProbeStep;

/// Added to the variance in the probes' batch norm (ml-aim).
const BATCH_NORM_EPS: f32 = 1e-6;
/// Share of the batch's statistics in the running ones (ml-aim, PyTorch's default).
const BATCH_NORM_MOMENTUM: f32 = 0.1;

/// Which classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Learned attention over tokens.
    Attentive,
    /// Mean over tokens and one linear layer.
    Linear,
}

/// Sizes of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Which classifier.
    pub kind: ProbeKind,
    /// Width of the features.
    pub dim: usize,
    /// Attention heads, as many as the trunk has.
    pub heads: usize,
    /// Classes.
    pub classes: usize,
}

/// A classifier's parameters in a layout.
#[derive(Clone, Debug)]
pub struct Probe {
    config: ProbeConfig,
    layout: Arc<ParamLayout>,
    running: (ParamId, ParamId),
    linear: (ParamId, Option<ParamId>),
    attention: Option<Attention>,
}

#[derive(Clone, Copy, Debug)]
struct Attention {
    queries: ParamId,
    key: ParamId,
    value: ParamId,
}

impl Probe {
    /// Describes a classifier.
    ///
    /// # Errors
    /// When a size is zero or the heads do not divide the width.
    pub fn new(config: ProbeConfig) -> Result<Self, ModelError> {
        let ProbeConfig { dim, heads, classes, .. } = config;
        if classes == 0 || dim == 0 || heads == 0 || !dim.is_multiple_of(heads) {
            return Err(ModelError::BadConfig {
                key: "num_classes",
                value: classes.to_string(),
                expected: format!(
                    "at least one class, and {heads} heads that divide the width {dim}"
                ),
            });
        }
        let layout = Arc::new(ParamLayout::new(Self::specs(config))?);
        Self::bind(config, layout)
    }

    /// Finds the parameters of [`Probe::specs`] in a layout that may have others as well.
    pub(crate) fn bind(config: ProbeConfig, layout: Arc<ParamLayout>) -> Result<Self, ModelError> {
        let ProbeConfig { kind, dim, classes, .. } = config;
        let running = (
            bind(&layout, "head.bn.running_mean", [dim])?,
            bind(&layout, "head.bn.running_var", [dim])?,
        );
        let weight = bind(&layout, "head.linear.weight", [classes, dim])?;
        let (attention, bias) = match kind {
            ProbeKind::Attentive => {
                let queries = bind(&layout, "head.cls_token", [dim])?;
                let key = bind(&layout, "head.k.weight", [dim, dim])?;
                let value = bind(&layout, "head.v.weight", [dim, dim])?;
                (Some(Attention { queries, key, value }), None)
            }
            ProbeKind::Linear => (None, Some(bind(&layout, "head.linear.bias", [classes])?)),
        };
        Ok(Self { config, layout, running, linear: (weight, bias), attention })
    }

    /// Describes a classifier's parameters; the batch norm's running statistics are frozen ones.
    pub fn specs(config: ProbeConfig) -> Vec<ParamSpec> {
        let ProbeConfig { kind, dim, classes, .. } = config;
        let mut specs = vec![
            spec("head.bn.running_mean".into(), [dim], false, false),
            spec("head.bn.running_var".into(), [dim], false, false),
            spec("head.linear.weight".into(), [classes, dim], true, true),
        ];
        match kind {
            ProbeKind::Attentive => {
                specs.push(spec("head.cls_token".into(), [1, 1, dim], false, true));
                specs.push(spec("head.k.weight".into(), [dim, dim], true, true));
                specs.push(spec("head.v.weight".into(), [dim, dim], true, true));
            }
            ProbeKind::Linear => {
                specs.push(spec("head.linear.bias".into(), [classes], false, true))
            }
        }
        specs
    }

    /// Sizes.
    pub fn config(&self) -> ProbeConfig {
        self.config
    }

    /// The classifier's parameters.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// Fresh parameters: the query normal with standard deviation 0.02, matrices uniform in +-1/sqrt(inputs)
    /// (PyTorch's default, which ml-aim keeps), running variance 1.
    ///
    /// # Errors
    /// When memory is short.
    pub fn init(&self, seed: u64) -> Result<Parameters, ModelError> {
        let mut params = Parameters::new(self.layout.clone())?;
        self.initialize(&mut params, seed);
        Ok(params)
    }

    /// As [`Probe::init`], in parameters that may have others as well.
    pub(crate) fn initialize(&self, params: &mut Parameters, seed: u64) {
        params.value_mut(self.running.0).fill(0.0);
        params.value_mut(self.running.1).fill(1.0);
        let bound = 1.0 / (self.config.dim as f32).sqrt();
        let uniform = [Some(self.linear.0), self.linear.1]
            .into_iter()
            .flatten()
            .chain(self.attention.iter().flat_map(|a| [a.key, a.value]));
        for id in uniform {
            let random = Philox::new(seed, &self.layout.get(id).spec.name);
            random.fill_uniform(bound, params.value_mut(id));
        }
        if let Some(attention) = self.attention {
            Philox::new(seed, "head.cls_token")
                .fill_normal(0.02, params.value_mut(attention.queries));
        }
    }

    /// Records the classifier on features `[batch, tokens, dim]`; returns the batch norm's output and the logits
    /// `[batch, classes]`. In training the batch norm uses the batch's own statistics, and gradients reach the
    /// features where those need them; [`Probe::track`] is then due after each backward pass.
    ///
    /// # Errors
    /// When the features have another width.
    pub fn record(
        &self,
        tape: &mut Tape,
        features: Var,
        training: bool,
    ) -> Result<(Var, Var), ModelError> {
        let running = (!training).then_some(self.running);
        match self.attention {
            Some(Attention { queries, key, value }) => {
                let normed = tape.batch_norm(features, running, BATCH_NORM_EPS)?;
                let pooled =
                    tape.attention_pool(normed, [queries, key, value], self.config.heads)?;
                Ok((normed, tape.linear(pooled, self.linear.0, None, None)?))
            }
            None => {
                let pooled = tape.mean_pool(features)?;
                let normed = tape.batch_norm(pooled, running, BATCH_NORM_EPS)?;
                Ok((normed, tape.linear(normed, self.linear.0, self.linear.1, None)?))
            }
        }
    }

    /// Moves the running statistics towards those of the batch whose norm `normed` a session computed.
    ///
    /// # Errors
    /// When the session did not run, or normalised by the running statistics.
    pub fn track(
        &self,
        session: &Session,
        normed: Var,
        params: &mut Parameters,
    ) -> Result<(), ModelError> {
        let rows = session.tape().shape(normed).rows();
        let [mean, rstd] = session.batch_statistics(normed)?;
        let biased = |rstd: &f32| (1.0 / (rstd * rstd) - BATCH_NORM_EPS).max(0.0);
        let var: Vec<f32> = rstd.iter().map(biased).collect();
        self.move_running(params, &mean, &var, rows)
    }

    /// Moves the running statistics towards those of a training batch (PyTorch's momentum and unbiased variance).
    /// `mean` and the biased `var` are the batch norm's, over `rows` rows: images times tokens for an attentive probe.
    fn move_running(
        &self,
        params: &mut Parameters,
        mean: &[f32],
        var: &[f32],
        rows: usize,
    ) -> Result<(), ModelError> {
        let unbiased = rows as f32 / (rows as f32 - 1.0).max(1.0);
        let (keep, take) = (1.0 - BATCH_NORM_MOMENTUM, BATCH_NORM_MOMENTUM);
        for (id, batch, factor) in
            [(self.running.0, mean, take), (self.running.1, var, take * unbiased)]
        {
            let mut running = params.read(id)?.into_owned();
            running.iter_mut().zip(batch).for_each(|(running, v)| {
                *running = keep * *running + factor * v;
            });
            params.write(id, &running)?;
        }
        Ok(())
    }
}
