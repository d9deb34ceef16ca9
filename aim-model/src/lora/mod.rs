//! Low-rank adapters on the attention of a frozen trunk (paper 5.5; Hu et al., "LoRA", 2021; ml-aim's `LoraAttention`).
//!
//! ```text
//! qkv  = x Wqkv^T + s (x A_q^T) B_q^T in the columns of the queries, the same with A_v, B_v in those of the values
//! proj = x Wproj^T + s (x A_p^T) B_p^T                       s = alpha / rank, A and B of rank 8 in the paper
//! ```
//!
//! A starts uniform in +-1/sqrt(inputs) (`kaiming_uniform` with a = sqrt 5, loralib's and PEFT's), B at zero: training
//! begins at the trunk as it was. ml-aim keeps loralib's alpha of 1; the default here is alpha = rank, so that s = 1.
//! Queries, values and projection are 6 rank dim parameters a block: 0.1 % of AIM-7B.
//!
//! The parts of a fused qkv share one parameter of stacked A, `[parts * rank, dim]`, and one of stacked B,
//! `[parts * dim, rank]`: what PEFT would have as blocks of zeros in B does not exist here, so nothing can train it.
//!
//! | module | what |
//! |---|---|
//! | `merge` | adapters added to the weights |
//! | [`peft`] | the files that Hugging Face PEFT reads and writes |

mod merge;
pub mod peft;

use std::ops::Range;
use std::str::FromStr;

use aim_tensor::{LowRank, ParamId, ParamLayout, ParamSpec, Parameters, Philox, Tape, Var};
use serde::{Deserialize, Serialize};

use crate::config::AimConfig;
use crate::error::ModelError;
use crate::trunk::{bind, spec};

pub use merge::merged_weights;

/// What an adapter is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraTarget {
    /// The queries of the fused qkv.
    Q,
    /// Its keys.
    K,
    /// Its values.
    V,
    /// The fused qkv as one layer, with one A for all of it: what PEFT does by itself.
    Qkv,
    /// The attention's output projection.
    Proj,
}

impl LoraTarget {
    /// Name, as in `--lora-targets`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Qkv => "qkv",
            Self::Proj => "proj",
        }
    }
}

impl FromStr for LoraTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Q, Self::K, Self::V, Self::Qkv, Self::Proj]
            .into_iter()
            .find(|target| target.name() == text)
            .ok_or_else(|| format!("{text:?}: expected q, k, v, qkv or proj"))
    }
}

/// Which adapters, and of what size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of each adapter (8 in the paper).
    pub rank: usize,
    /// Adapters are multiplied by `alpha / rank`.
    pub alpha: f64,
    /// What they are put on.
    pub targets: Vec<LoraTarget>,
    /// The blocks that have them, ascending.
    pub blocks: Vec<usize>,
}

impl LoraConfig {
    /// The paper's: rank 8 on queries, values and projection, in the first `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        let targets = vec![LoraTarget::Q, LoraTarget::V, LoraTarget::Proj];
        Self { rank: 8, alpha: 8.0, targets, blocks: (0..blocks).collect() }
    }

    /// Factor of every adapter.
    pub fn scaling(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Checks the values against a model.
    ///
    /// # Errors
    /// [`ModelError::BadLora`].
    pub fn validate(&self, model: &AimConfig) -> Result<(), ModelError> {
        let bad = |key, value: String, expected: String| {
            Err(ModelError::BadLora { key, value, expected })
        };
        if self.rank == 0 || self.rank > model.embed_dim {
            let expected = format!("from 1 to the width {}", model.embed_dim);
            return bad("rank", self.rank.to_string(), expected);
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0 && self.alpha <= 1e6) {
            return bad("alpha", self.alpha.to_string(), "above 0, such as the rank".into());
        }
        let names: Vec<_> = self.targets.iter().map(|target| target.name()).collect();
        let has = |target| self.targets.contains(&target);
        let parts = has(LoraTarget::Q) || has(LoraTarget::K) || has(LoraTarget::V);
        let mut unique = self.targets.clone();
        unique.sort_unstable();
        unique.dedup();
        if self.targets.is_empty()
            || unique.len() != self.targets.len()
            || (has(LoraTarget::Qkv) && parts)
        {
            let expected =
                "some of q, k, v and proj, each once; or qkv as a whole instead of q, k and v";
            return bad("targets", names.join(","), expected.into());
        }
        let ascending = self.blocks.windows(2).all(|pair| pair[0] < pair[1]);
        let last = self.blocks.last().copied().unwrap_or(usize::MAX);
        if !ascending || last >= model.num_blocks {
            let expected = format!("block numbers below {}, ascending", model.num_blocks);
            return bad("blocks", format!("{:?}", self.blocks), expected);
        }
        Ok(())
    }

    /// Columns of the fused qkv that have adapters.
    fn qkv_segments(&self, dim: usize) -> Vec<Range<usize>> {
        if self.targets.contains(&LoraTarget::Qkv) {
            return std::iter::once(0..3 * dim).collect();
        }
        [LoraTarget::Q, LoraTarget::K, LoraTarget::V]
            .into_iter()
            .enumerate()
            .filter(|(_, target)| self.targets.contains(target))
            .map(|(part, _)| part * dim..(part + 1) * dim)
            .collect()
    }

    /// Columns of a layer that have adapters.
    fn segments(&self, layer: Layer, dim: usize) -> Vec<Range<usize>> {
        match layer {
            Layer::Qkv => self.qkv_segments(dim),
            Layer::Proj if self.targets.contains(&LoraTarget::Proj) => {
                std::iter::once(0..dim).collect()
            }
            Layer::Proj => Vec::new(),
        }
    }

    /// Describes the adapters' parameters: `trunk.blocks.N.attn.qkv.lora_A.weight` and so on.
    pub fn specs(&self, model: &AimConfig) -> Vec<ParamSpec> {
        let dim = model.embed_dim;
        let mut specs = Vec::new();
        for &block in &self.blocks {
            for layer in Layer::ALL {
                let segments = self.segments(layer, dim);
                if segments.is_empty() {
                    continue;
                }
                let covered: usize = segments.iter().map(ExactSizeIterator::len).sum();
                let shape = [self.rank * segments.len(), dim];
                specs.push(spec(layer.parameter(block, "lora_A"), shape, true, true));
                specs.push(spec(
                    layer.parameter(block, "lora_B"),
                    [covered, self.rank],
                    true,
                    true,
                ));
            }
        }
        specs
    }
}

/// A linear layer of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Qkv,
    Proj,
}

impl Layer {
    pub(crate) const ALL: [Self; 2] = [Self::Qkv, Self::Proj];

    /// Its name inside the attention.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Qkv { "qkv" } else { "proj" }
    }

    /// ml-aim's name of the layer of a block.
    pub(crate) fn module(self, block: usize) -> String {
        format!("trunk.blocks.{block}.attn.{}", self.name())
    }

    fn parameter(self, block: usize, which: &str) -> String {
        format!("{}.{which}.weight", self.module(block))
    }
}

/// An adapter of one layer in a layout.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    pub(crate) layer: Layer,
    pub(crate) block: usize,
    pub(crate) a: ParamId,
    pub(crate) b: ParamId,
    pub(crate) segments: Vec<Range<usize>>,
    scaling: f64,
}

impl Adapter {
    /// Records the adapter's part that comes before the layer it is put on.
    pub(crate) fn record(&self, tape: &mut Tape, x: Var) -> Result<LowRank, ModelError> {
        let mut u = tape.linear(x, self.a, None, None)?;
        if self.scaling != 1.0 {
            u = tape.scale(u, self.scaling as f32)?;
        }
        Ok(LowRank { u, weight: self.b, segments: self.segments.clone() })
    }
}

/// The adapters of a trunk in a layout.
#[derive(Clone, Debug)]
pub struct Adapters {
    config: LoraConfig,
    dim: usize,
    adapters: Vec<Adapter>,
}

impl Adapters {
    /// Finds the adapters' parameters in a layout.
    ///
    /// # Errors
    /// When one is missing, or the configuration does not fit the model.
    pub fn bind(
        config: &LoraConfig,
        model: &AimConfig,
        layout: &ParamLayout,
    ) -> Result<Self, ModelError> {
        config.validate(model)?;
        let dim = model.embed_dim;
        let mut adapters = Vec::new();
        for &block in &config.blocks {
            for layer in Layer::ALL {
                let segments = config.segments(layer, dim);
                if segments.is_empty() {
                    continue;
                }
                let covered: usize = segments.iter().map(ExactSizeIterator::len).sum();
                let a = [config.rank * segments.len(), dim];
                adapters.push(Adapter {
                    layer,
                    block,
                    a: bind(layout, &layer.parameter(block, "lora_A"), a)?,
                    b: bind(layout, &layer.parameter(block, "lora_B"), [covered, config.rank])?,
                    segments,
                    scaling: config.scaling(),
                });
            }
        }
        Ok(Self { config: config.clone(), dim, adapters })
    }

    /// Which adapters.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Fresh values: A uniform in +-1/sqrt(inputs), B zero. They depend on seed and name only.
    pub fn initialize(&self, params: &mut Parameters, seed: u64) {
        let layout = params.layout().clone();
        let bound = 1.0 / (self.dim as f32).sqrt();
        for adapter in &self.adapters {
            let name = &layout.get(adapter.a).spec.name;
            Philox::new(seed, name).fill_uniform(bound, params.value_mut(adapter.a));
            params.value_mut(adapter.b).fill(0.0);
        }
    }

    pub(crate) fn get(&self, block: usize, layer: Layer) -> Option<&Adapter> {
        self.adapters.iter().find(|adapter| adapter.block == block && adapter.layer == layer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Adapter> {
        self.adapters.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_values_and_projection_are_six_rank_dim_a_block() {
        for (preset, share) in [("aim-600M", None), ("aim-7B", Some(0.00098))] {
            let model = AimConfig::preset(preset).unwrap();
            let config = LoraConfig::new(model.num_blocks);
            let count: usize = config.specs(&model).iter().map(|spec| spec.shape.len()).sum();
            assert_eq!(count, 6 * 8 * model.embed_dim * model.num_blocks, "{preset}");
            if let Some(share) = share {
                // The paper: 0.1 % of the trunk's parameters.
                assert!((count as f64 / 6_445_404_160.0 - share).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let model = AimConfig::preset("aim-nano").unwrap();
        let good = LoraConfig::new(12);
        good.validate(&model).unwrap();
        use LoraTarget::{Proj, Q, Qkv};
        for (bad, key) in [
            (LoraConfig { rank: 0, ..good.clone() }, "rank"),
            (LoraConfig { rank: 193, ..good.clone() }, "rank"),
            (LoraConfig { alpha: f64::NAN, ..good.clone() }, "alpha"),
            (LoraConfig { targets: vec![], ..good.clone() }, "targets"),
            (LoraConfig { targets: vec![Q, Q], ..good.clone() }, "targets"),
            (LoraConfig { targets: vec![Qkv, Q, Proj], ..good.clone() }, "targets"),
            (LoraConfig { blocks: vec![12], ..good.clone() }, "blocks"),
            (LoraConfig { blocks: vec![1, 0], ..good.clone() }, "blocks"),
            (LoraConfig { blocks: vec![], ..good.clone() }, "blocks"),
        ] {
            let error = bad.validate(&model).unwrap_err().to_string();
            assert!(error.starts_with(&format!("lora.{key}")), "{error}");
        }
        assert!("fc1".parse::<LoraTarget>().unwrap_err().contains("q, k, v, qkv or proj"));
    }
}
