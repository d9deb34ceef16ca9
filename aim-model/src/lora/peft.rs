//! Adapters as Hugging Face PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT knows layers, not the parts of a fused qkv. Adapters of rank r on queries and values are to it one of rank 2r on
//! the whole layer:
//!
//! ```text
//! base_model.model.trunk.blocks.N.attn.qkv.lora_A.weight  [2r, dim]      A_q above A_v
//! base_model.model.trunk.blocks.N.attn.qkv.lora_B.weight  [3 dim, 2r]    [B_q 0; 0 0; 0 B_v]
//! base_model.model.trunk.blocks.N.attn.proj.lora_A.weight [r, dim]       lora_B.weight [dim, r]
//! ```
//!
//! with `rank_pattern` and `alpha_pattern` that keep the factor alpha / r. Reading finds the parts by the zeros; a B
//! without such zeros is an adapter of the qkv as a whole ([`LoraTarget::Qkv`]).

use std::collections::BTreeMap;
use std::path::Path;

use aim_tensor::Parameters;
use aim_tensor::io::safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Adapters, Layer, LoraConfig, LoraTarget};
use crate::config::AimConfig;
use crate::error::ModelError;
use crate::weights::read_json;

/// Name of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weights, without `.safetensors`.
pub const MODEL_STEM: &str = "adapter_model";
/// What PEFT puts before the names of the model.
const PREFIX: &str = "base_model.model.";

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: [usize; 2],
    /// Its values.
    pub values: Vec<f32>,
}

/// `adapter_config.json` for these adapters; `base` names the weights that they belong to.
pub fn config(adapters: &Adapters, num_blocks: usize, base: &str) -> Value {
    let config = &adapters.config;
    let layers: Vec<Layer> = Layer::ALL
        .into_iter()
        .filter(|&layer| !config.segments(layer, adapters.dim).is_empty())
        .collect();
    let parts = config.qkv_segments(adapters.dim).len();
    let mut ranks = serde_json::Map::new();
    let mut alphas = serde_json::Map::new();
    if parts > 1 {
        ranks.insert("attn.qkv".into(), json!(parts * config.rank));
        alphas.insert("attn.qkv".into(), number(parts as f64 * config.alpha));
    }
    let names: Vec<_> = layers.iter().map(|layer| layer.name()).collect();
    let target_modules = if config.blocks.len() == num_blocks {
        json!(names.iter().map(|name| format!("attn.{name}")).collect::<Vec<_>>())
    } else {
        // A text is a regular expression for whole names.
        let blocks: Vec<_> = config.blocks.iter().map(usize::to_string).collect();
        json!(format!(r"trunk\.blocks\.({})\.attn\.({})", blocks.join("|"), names.join("|")))
    };
    json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "target_modules": target_modules,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    })
}

/// A whole number as one: PEFT declares `lora_alpha` as an integer.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { json!(value as i64) } else { json!(value) }
}

/// The tensors of `adapter_model.safetensors`.
pub fn tensors(adapters: &Adapters, params: &Parameters) -> Vec<PeftTensor> {
    let (rank, dim) = (adapters.config.rank, adapters.dim);
    let mut tensors = Vec::new();
    for adapter in adapters.iter() {
        let width = rank * adapter.segments.len();
        let outputs = if adapter.layer == Layer::Qkv { 3 * dim } else { dim };
        let mut b = vec![0.0; outputs * width];
        let mut rows = params.value(adapter.b).chunks_exact(rank);
        for (part, segment) in adapter.segments.iter().enumerate() {
            for (row, from) in segment.clone().zip(&mut rows) {
                b[row * width + part * rank..][..rank].copy_from_slice(from);
            }
        }
        let module = adapter.layer.module(adapter.block);
        let name = |which: &str| format!("{PREFIX}{module}.{which}.weight");
        let a = params.value(adapter.a).to_vec();
        tensors.push(PeftTensor { name: name("lora_A"), shape: [width, dim], values: a });
        tensors.push(PeftTensor { name: name("lora_B"), shape: [outputs, width], values: b });
    }
    tensors
}

/// What of `adapter_config.json` matters; PEFT adds keys with every version.
#[derive(Debug, Deserialize, Serialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Adapters that were read: their configuration, and values by the names of [`LoraConfig::specs`].
#[derive(Clone, Debug, PartialEq)]
pub struct PeftAdapters {
    /// Which adapters.
    pub config: LoraConfig,
    values: BTreeMap<String, Vec<f32>>,
}

impl PeftAdapters {
    /// Writes the values into parameters that have these adapters.
    ///
    /// # Errors
    /// When the parameters lack one of them.
    pub fn fill(&self, params: &mut Parameters) -> Result<(), ModelError> {
        for (name, values) in &self.values {
            let id = params
                .layout()
                .id(name)
                .ok_or_else(|| ModelError::MissingParameter { name: name.clone() })?;
            params.value_mut(id).copy_from_slice(values);
        }
        Ok(())
    }
}

/// A and B of one layer as the file has them, B `[outputs, rank]`.
struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scaling: f64,
}

/// Reads the adapters in a directory.
///
/// # Errors
/// When a file is missing or damaged, or holds adapters of another kind, of other layers, or of sizes that differ from
/// block to block; the message says which.
pub fn read(dir: &Path, model: &AimConfig) -> Result<PeftAdapters, ModelError> {
    let path = dir.join(CONFIG_FILE);
    let config: PeftConfig = read_json(&path)?;
    let refuse = |reason: String| ModelError::BadFile { path: path.clone(), reason };
    if config.peft_type != "LORA" {
        return Err(refuse(format!("peft_type {:?}: only LORA is read", config.peft_type)));
    }
    let others = [
        (config.use_dora, "use_dora"),
        (config.fan_in_fan_out, "fan_in_fan_out"),
        (config.bias.as_deref().is_some_and(|bias| bias != "none"), "bias"),
        (config.modules_to_save.as_ref().is_some_and(|list| !list.is_empty()), "modules_to_save"),
    ];
    if let Some((_, key)) = others.iter().find(|(set, _)| *set) {
        return Err(refuse(format!("{key} is set: only plain LoRA of linear layers is read")));
    }
    let file = SafeTensors::open_dir(dir, MODEL_STEM).map_err(aim_tensor::TensorError::from)?;
    let pairs = read_pairs(&file, &config, model, dir)?;
    let blocks: Vec<usize> =
        (0..model.num_blocks).filter(|&b| pairs.keys().any(|&(block, _)| block == b)).collect();
    let with = |layer| pairs.keys().filter(move |&&(_, l)| l == layer).count();
    for layer in Layer::ALL {
        if with(layer) != 0 && with(layer) != blocks.len() {
            return Err(refuse(format!(
                "adapters of attn.{} in {} blocks of {}: expected the same layers in every block",
                layer.name(),
                with(layer),
                blocks.len()
            )));
        }
    }
    let dim = model.embed_dim;
    let proj_rank = pairs.iter().find(|((_, l), _)| *l == Layer::Proj).map(|(_, pair)| pair.rank);
    let fused: Vec<&Pair> =
        pairs.iter().filter(|((_, l), _)| *l == Layer::Qkv).map(|(_, pair)| pair).collect();
    let mut targets = parts(&fused, proj_rank, dim)
        .ok_or_else(|| refuse("ranks that differ from layer to layer are not read".into()))?;
    let count = targets.iter().filter(|&&target| target != LoraTarget::Qkv).count().max(1);
    let rank = match (proj_rank, fused.first()) {
        (Some(rank), _) => rank,
        (None, Some(pair)) => pair.rank / count,
        (None, None) => return Err(refuse("no adapter of attn.qkv or attn.proj".into())),
    };
    if proj_rank.is_some() {
        targets.push(LoraTarget::Proj);
    }
    let scaling = pairs.values().next().map_or(1.0, |pair| pair.scaling);
    if pairs.values().any(|pair| pair.scaling != scaling) {
        let text = "alpha / rank differs from layer to layer: only one factor for all is read";
        return Err(refuse(text.into()));
    }
    let lora = LoraConfig { rank, alpha: scaling * rank as f64, targets, blocks };
    lora.validate(model)?;
    let mut values = BTreeMap::new();
    for (&(block, layer), pair) in &pairs {
        let segments = lora.segments(layer, dim);
        let mut b = Vec::new();
        for (part, segment) in segments.iter().enumerate() {
            for row in segment.clone() {
                b.extend_from_slice(&pair.b[row * pair.rank + part * rank..][..rank]);
            }
        }
        values.insert(layer.parameter(block, "lora_A"), pair.a.clone());
        values.insert(layer.parameter(block, "lora_B"), b);
    }
    Ok(PeftAdapters { config: lora, values })
}

/// All pairs of A and B in the file.
fn read_pairs(
    file: &SafeTensors,
    config: &PeftConfig,
    model: &AimConfig,
    dir: &Path,
) -> Result<BTreeMap<(usize, Layer), Pair>, ModelError> {
    let dim = model.embed_dim;
    let bad = |name: &str, expected: String, found: String| ModelError::BadWeight {
        path: dir.to_owned(),
        name: name.to_owned(),
        expected,
        found,
    };
    let mut pairs = BTreeMap::new();
    let mut known = 0;
    for block in 0..model.num_blocks {
        for layer in Layer::ALL {
            let module = layer.module(block);
            let [name_a, name_b] =
                ["lora_A", "lora_B"].map(|which| format!("{PREFIX}{module}.{which}.weight"));
            match (file.contains(&name_a), file.contains(&name_b)) {
                (false, false) => continue,
                (true, true) => known += 2,
                (has_a, _) => {
                    let name = if has_a { &name_b } else { &name_a };
                    return Err(bad(name, "an adapter of A and B".into(), "no such tensor".into()));
                }
            }
            let view = |name: &str| file.tensor(name).map_err(aim_tensor::TensorError::from);
            let (a, b) = (view(&name_a)?, view(&name_b)?);
            let rank = of_module(&config.rank_pattern, &module).unwrap_or(config.r);
            let outputs = if layer == Layer::Qkv { 3 * dim } else { dim };
            if rank == 0 || rank > 3 * dim || a.shape != [rank, dim] {
                return Err(bad(&name_a, format!("[{rank}, {dim}]"), format!("{:?}", a.shape)));
            }
            if b.shape != [outputs, rank] {
                return Err(bad(&name_b, format!("[{outputs}, {rank}]"), format!("{:?}", b.shape)));
            }
            let alpha = of_module(&config.alpha_pattern, &module).unwrap_or(config.lora_alpha);
            let scaling =
                alpha / if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            let read = |view: aim_tensor::io::safetensors::View<'_>| {
                view.to_f32().map_err(aim_tensor::TensorError::from)
            };
            let pair = Pair { a: read(a)?, b: read(b)?, rank, scaling };
            for (name, values) in [(&name_a, &pair.a), (&name_b, &pair.b)] {
                if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                    return Err(bad(name, "finite values".into(), value.to_string()));
                }
            }
            pairs.insert((block, layer), pair);
        }
    }
    if file.len() > known {
        let mut names = file.names();
        let other = names.find(|name| {
            !pairs.keys().any(|&(block, layer): &(usize, Layer)| {
                name.strip_prefix(PREFIX).is_some_and(|rest| {
                    rest.strip_prefix(layer.module(block).as_str())
                        .is_some_and(|rest| rest.starts_with(".lora_"))
                })
            })
        });
        return Err(bad(
            other.unwrap_or("?"),
            "adapters of trunk.blocks.N.attn.qkv and .proj only".into(),
            "an adapter of something else".into(),
        ));
    }
    Ok(pairs)
}

/// The value of a pattern table for a module: keys are ends of module names.
fn of_module<T: Copy>(table: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let ends = |key: &str| {
        module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    table.iter().find(|(key, _)| ends(&key.replace('\\', ""))).map(|(_, value)| *value)
}

/// Which parts of the fused qkv the adapters are on, found by the zeros of B; `None` when the ranks do not fit.
fn parts(fused: &[&Pair], proj_rank: Option<usize>, dim: usize) -> Option<Vec<LoraTarget>> {
    use LoraTarget::{K, Q, Qkv, V};
    let Some(width) = fused.first().map(|pair| pair.rank) else { return Some(Vec::new()) };
    if fused.iter().any(|pair| pair.rank != width) {
        return None;
    }
    let index = |target: LoraTarget| [Q, K, V].iter().position(|&t| t == target).unwrap_or(0);
    let candidates: [&[LoraTarget]; 7] = [&[Q, V], &[Q, K, V], &[Q, K], &[K, V], &[Q], &[K], &[V]];
    for candidate in candidates {
        let rank = width / candidate.len();
        if rank * candidate.len() != width || proj_rank.is_some_and(|r| r != rank) {
            continue;
        }
        let zero_outside = |pair: &&Pair| {
            pair.b.iter().enumerate().all(|(i, &v)| {
                let (part, column) = (i / width / dim, i % width / rank);
                v == 0.0 || index(candidate[column]) == part
            })
        };
        if fused.iter().all(zero_outside) {
            return Some(candidate.to_vec());
        }
    }
    proj_rank.is_none_or(|rank| rank == width).then(|| vec![Qkv])
}
