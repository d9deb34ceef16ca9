//! `config.json` and `aim.json` beside the weights.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{AimConfig, ImageSize};
use crate::error::ModelError;

/// `config.json` as ml-aim reads it: it passes every key to its constructor, so only its own keys may stand there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlAimConfig {
    /// Image size in pixels.
    pub img_size: ImageSize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Transformer blocks.
    pub num_blocks: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Hidden width of an MLP over its input width; left out when it is ml-aim's default of 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<f64>,
    /// Blocks whose outputs the probe averages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_layers: Option<Vec<usize>>,
    /// Classes of the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Colour channels; 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_channels: Option<usize>,
}

impl MlAimConfig {
    /// ml-aim's part of a configuration.
    pub fn of(config: &AimConfig) -> Self {
        Self {
            img_size: config.img_size,
            patch_size: config.patch_size,
            embed_dim: config.embed_dim,
            num_blocks: config.num_blocks,
            num_heads: config.num_heads,
            mlp_ratio: (config.mlp_ratio != 4).then_some(config.mlp_ratio as f64),
            probe_layers: None,
            num_classes: None,
            num_channels: None,
        }
    }

    /// The configuration of a trunk, with ml-aim's eps and the paper's head.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub fn to_config(&self) -> Result<AimConfig, ModelError> {
        let ratio = self.mlp_ratio.unwrap_or(4.0);
        if ratio.fract() != 0.0 || !(1.0..=64.0).contains(&ratio) {
            return Err(ModelError::BadConfig {
                key: "mlp_ratio",
                value: ratio.to_string(),
                expected: "a whole number from 1 to 64".into(),
            });
        }
        if let Some(channels) = self.num_channels.filter(|&n| n != 3) {
            let (key, value) = ("num_channels", channels.to_string());
            return Err(ModelError::BadConfig { key, value, expected: "3".into() });
        }
        let config = AimConfig {
            img_size: self.img_size,
            patch_size: self.patch_size,
            embed_dim: self.embed_dim,
            num_blocks: self.num_blocks,
            num_heads: self.num_heads,
            mlp_ratio: ratio as usize,
            ..AimConfig::default()
        };
        config.validate()?;
        Ok(config)
    }
}

/// Reads the model's configuration beside its weights: `aim.json` if we wrote it, else ml-aim's `config.json`.
///
/// # Errors
/// When neither can be read, or what they say cannot work.
pub fn read_config(dir: &Path) -> Result<AimConfig, ModelError> {
    let ours = dir.join("aim.json");
    let config: AimConfig = if ours.is_file() {
        #[derive(Deserialize)]
        struct Ours {
            model: AimConfig,
        }
        read_json::<Ours>(&ours)?.model
    } else {
        read_json::<MlAimConfig>(&dir.join("config.json"))?.to_config()?
    };
    config.validate()?;
    Ok(config)
}

/// Reads ml-aim's `config.json`.
///
/// # Errors
/// When it cannot be read or holds other keys.
pub fn read_ml_aim_config(dir: &Path) -> Result<MlAimConfig, ModelError> {
    read_json(&dir.join("config.json"))
}

/// Largest configuration file that is read.
const MAX_JSON_BYTES: u64 = 1 << 20;

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let bad = |reason: String| ModelError::BadFile { path: path.to_owned(), reason };
    let len = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if len > MAX_JSON_BYTES {
        return Err(bad(format!("expected at most {MAX_JSON_BYTES} bytes, found {len}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
}
