//! `aim-cli weights import`.

use aim_model::weights::{transfer, verify};
use aim_tensor::io::TensorSource;
use aim_tensor::io::safetensors::MAX_SHARD_BYTES;
use aim_train::trainer::AimJson;
use anyhow::{Result, bail};

use super::{Summary, publish, published, write_json, write_model};
use crate::args::WeightsImport;
use crate::progress::{note, warn};
use crate::stdout;
use crate::weights::Weights;

pub(super) fn run(args: &WeightsImport, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.source)?;
    weights.announce(quiet);
    let (file, config) = (&weights.file, &weights.config);
    for hashed in published::check(file.files(), quiet)? {
        note(quiet, &hashed.to_string());
    }
    let coverage = verify::coverage(file);
    if let Some((name, expected, found)) = coverage.misshapen.first() {
        bail!("{}: tensor {name}: expected {expected}, found {found}", args.source.display());
    }
    if let Some(name) = coverage.missing.first() {
        bail!(
            "{}: {} tensors are missing, such as {name}; `aim-cli weights verify` lists them",
            args.source.display(),
            coverage.missing.len()
        );
    }
    if !coverage.extra.is_empty() {
        let some: Vec<&str> = coverage.extra.iter().take(5).map(String::as_str).collect();
        warn(&format!(
            "{} tensors are left out, such as {}",
            coverage.extra.len(),
            some.join(", ")
        ));
    }
    let mut specs = transfer::trunk(config);
    if file.names().any(|name| name.starts_with("pixel_head.")) {
        specs.extend(transfer::pixel_head(config));
    }
    if file.names().any(|name| name.starts_with("head.")) {
        specs.extend(transfer::attentive_head(file, config)?);
    }
    transfer::check(file, &specs)?;
    let tensors = transfer::describe(&specs, args.dtype.into());
    let ml_aim = transfer::ml_aim_config(config, file.probe_layers(), file.num_classes());
    let aim = AimJson { model: config.clone(), mean: weights.mean, std: weights.std };
    let summary = publish(&args.out, |dir| {
        let source: &dyn TensorSource = file;
        let summary = write_model(dir, &tensors, MAX_SHARD_BYTES, quiet, |_| source)?;
        write_json(dir, "config.json", &ml_aim)?;
        write_json(dir, "aim.json", &aim)?;
        Ok(Summary { out: args.out.display().to_string(), ..summary })
    })?;
    note(quiet, &format!("{} tensors in {}", summary.tensors, args.out.display()));
    if args.json { stdout::print_json(&summary) } else { Ok(()) }
}
