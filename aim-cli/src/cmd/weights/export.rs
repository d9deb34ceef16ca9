//! `aim-cli weights export`.

use std::path::Path;

use aim_model::weights::{released, transfer};
use aim_tensor::io::{TensorSource, Tensors};
use anyhow::{Context as _, Result};

use super::{Summary, publish, write_json, write_model};
use crate::args::WeightsExport;
use crate::cmd::Usage;
use crate::progress::{note, warn};
use crate::stdout;
use crate::weights::{Weights, parse_layers};

/// What ml-aim's LayerNorms add to the variance; no key of its config.json says otherwise.
const ML_AIM_EPS: f32 = 1e-6;

pub(super) fn run(args: &WeightsExport, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
    let config = &weights.config;
    let trunk: &dyn TensorSource = &weights.file;
    let given = match &args.head {
        Some(path) => Some(Tensors::open(path).map_err(aim_tensor::TensorError::from)?),
        None => None,
    };
    let head: Option<&dyn TensorSource> = match &given {
        Some(head) => Some(head),
        None => weights.file.contains("head.linear.weight").then_some(trunk),
    };
    let mut specs = transfer::trunk(config);
    transfer::check(trunk, &specs)?;
    let mut ml_aim = transfer::ml_aim_config(config, None, None);
    if let Some(head) = head {
        let layers = layers(args, &weights, given.as_ref())?;
        let head_specs = transfer::attentive_head(head, config).context("the head to export")?;
        specs.extend(head_specs);
        let classes = head.shape("head.linear.weight").and_then(<[usize]>::first).copied();
        ml_aim = transfer::ml_aim_config(config, Some(layers), classes);
    } else {
        warn(
            "no head is exported (--head FILE): AIMForImageClassification.from_pretrained(dir, strict=True) needs one, \
             without strict its head is random",
        );
    }
    if config.norm_eps != ML_AIM_EPS {
        warn(&format!(
            "these weights were trained with model.norm_eps = {:e}; ml-aim's LayerNorms always use {ML_AIM_EPS:e}, so its \
             features will differ a little",
            config.norm_eps
        ));
    }
    let tensors = transfer::describe(&specs, args.dtype.into());
    let limit = args.max_shard_size.unwrap_or(u64::MAX);
    let summary = publish(&args.out, |dir| {
        let source = |name: &str| match head {
            Some(head) if name.starts_with("head.") => head,
            _ => trunk,
        };
        let summary = write_model(dir, &tensors, limit, quiet, source)?;
        write_json(dir, "config.json", &ml_aim)?;
        Ok(Summary { out: args.out.display().to_string(), ..summary })
    })?;
    if summary.files.len() > 1 {
        warn(
            "from_pretrained of a local directory reads model.safetensors only: without --max-shard-size it is one file",
        );
    }
    note(quiet, &format!("{} tensors in {}", summary.tensors, args.out.display()));
    if args.json { stdout::print_json(&summary) } else { Ok(()) }
}

/// The blocks that the head was trained on.
fn layers(args: &WeightsExport, weights: &Weights, head: Option<&Tensors>) -> Result<Vec<usize>> {
    let blocks = weights.config.num_blocks;
    if let Some(text) = &args.layers {
        return Ok(parse_layers(text, blocks)?);
    }
    let written = match head {
        Some(head) => {
            let metadata = head.metadata().and_then(|metadata| metadata.get("layers"));
            let by_name = || {
                let path: &Path = head.path();
                released::probe_layers(path, &weights.config)
            };
            match metadata {
                Some(text) => Some(
                    parse_layers(text.trim_matches(['[', ']']), blocks)
                        .context("the head's `layers`")?,
                ),
                None => by_name(),
            }
        }
        None => weights.file.probe_layers(),
    };
    let unknown = || {
        Usage(
            "which blocks the head was trained on is written neither in its file nor in config.json: \
             give them with --layers, such as last:6"
                .to_owned(),
        )
    };
    Ok(written.ok_or_else(unknown)?)
}
