//! Arguments that several commands take.

use std::path::PathBuf;

use aim_train::config::{ConfigBuilder, ConfigError, Resolved};
use aim_train::trainer::DeviceChoice;
use clap::Args;

/// Where a configuration comes from: defaults < preset < file < --set and flags.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct ConfigArgs {
    /// Start from a named size (see `aim-cli presets`)
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Read values from a TOML file, such as another run's config.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one value, such as train.lr=5e-4; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Training data, SPEC or SPEC@WEIGHT; may be repeated to mix sources
    #[arg(long = "data", value_name = "SPEC")]
    pub(crate) data: Vec<String>,
    /// Validation data
    #[arg(long, value_name = "SPEC")]
    pub(crate) val: Option<String>,
    /// Optimizer steps (train.steps)
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u32>,
    /// Seed of everything random (train.seed)
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,
    /// Arithmetic, fp32 or bf16 (train.precision)
    #[arg(long, value_name = "NAME")]
    pub(crate) precision: Option<String>,
}

impl ConfigArgs {
    /// The layers merged and checked.
    pub(crate) fn resolve(&self) -> Result<Resolved, ConfigError> {
        self.layers(ConfigBuilder::new())?.build()
    }

    /// Adds what was given to `builder`.
    pub(crate) fn layers(&self, mut builder: ConfigBuilder) -> Result<ConfigBuilder, ConfigError> {
        if let Some(name) = &self.preset {
            builder = builder.preset(name)?;
        }
        if let Some(path) = &self.config {
            builder = builder.file(path)?;
        }
        for text in &self.set {
            builder = builder.set(text)?;
        }
        if !self.data.is_empty() {
            builder = builder.flag("--data", "data.train", self.data.clone())?;
        }
        if let Some(spec) = &self.val {
            builder = builder.flag("--val", "data.val", spec.as_str())?;
        }
        if let Some(steps) = self.steps {
            builder = builder.flag("--steps", "train.steps", i64::from(steps))?;
        }
        if let Some(seed) = self.seed {
            builder = builder.flag("--seed", "train.seed", i64::from(seed))?;
        }
        if let Some(name) = &self.precision {
            builder = builder.flag("--precision", "train.precision", name.as_str())?;
        }
        Ok(builder)
    }
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub(crate) device: DeviceChoice,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!(parse_device("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        assert!(parse_device("cuda:").is_err());
        assert!(parse_device("gpu").is_err());
    }
}
