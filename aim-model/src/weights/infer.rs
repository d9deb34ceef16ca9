//! A model's sizes from the shapes of its weights, for files that come without a configuration.

use aim_tensor::io::TensorSource as _;

use super::checkpoint::Checkpoint;
use super::{l3m, released};
use crate::config::{AimConfig, HeadKind, HeadResidual, ImageSize};
use crate::error::ModelError;

/// Width of a head in every AIM that was released; it cannot be seen in the shapes.
const HEAD_DIM: usize = 128;
/// What the paper's models are trained at.
const IMAGE_SIDE: usize = 224;

/// The configuration, and a line that says where it came from.
pub(super) fn infer(checkpoint: &Checkpoint) -> Result<(AimConfig, String), ModelError> {
    let fail = |reason: String| ModelError::BadFile {
        path: checkpoint.path().to_owned(),
        reason: format!(
            "{reason}; no config.json or aim.json in {} says what model it is",
            if checkpoint.dir().as_os_str().is_empty() {
                ".".into()
            } else {
                checkpoint.dir().display().to_string()
            }
        ),
    };
    let shape = |name: &str| {
        let found = checkpoint.shape(name);
        found.ok_or_else(|| fail(format!("expected a tensor `{name}`, found none")))
    };
    if let Some(&[_, width]) = checkpoint.shape("head.k.weight")
        && !checkpoint
            .names()
            .any(|name| name.starts_with("trunk.") || name.starts_with("preprocessor."))
    {
        return probe_head(width).ok_or_else(|| fail(format!("a probe's head of width {width}")));
    }
    let proj = "preprocessor.patchifier.proj.weight";
    let &[embed_dim, 3, patch_size, other] = shape(proj)? else {
        return Err(fail(format!(
            "`{proj}`: expected [dim, 3, patch, patch], found {:?}",
            shape(proj)?
        )));
    };
    let fc1 = "trunk.blocks.0.mlp.fc1.weight";
    let &[hidden, width] = shape(fc1)? else {
        return Err(fail(format!("`{fc1}`: expected [hidden, dim], found {:?}", shape(fc1)?)));
    };
    if other != patch_size
        || patch_size == 0
        || width != embed_dim
        || width == 0
        || !hidden.is_multiple_of(width)
    {
        return Err(fail(format!(
            "`{proj}` {:?} and `{fc1}` {:?} do not fit together",
            shape(proj)?,
            shape(fc1)?
        )));
    }
    if !embed_dim.is_multiple_of(HEAD_DIM) {
        return Err(fail(format!(
            "width {embed_dim} is no multiple of {HEAD_DIM}, the width of a head in all released models"
        )));
    }
    let side = checkpoint.grid_side().unwrap_or((IMAGE_SIDE / patch_size).max(2));
    let mut config = AimConfig {
        patch_size,
        embed_dim,
        num_blocks: count(checkpoint, "trunk.blocks."),
        num_heads: embed_dim / HEAD_DIM,
        mlp_ratio: hidden / width,
        img_size: ImageSize::square(side.saturating_mul(patch_size)),
        ..AimConfig::default()
    };
    head(checkpoint, &mut config);
    if checkpoint.is_l3m() {
        config.norm_eps = l3m::NORM_EPS;
        config.head_residual = HeadResidual::L3m;
    }
    config.validate()?;
    let name = released::known_size(&config).unwrap_or("a size without a name");
    let origin = if checkpoint.is_l3m() { " of ml-l3m, LayerNorm eps 1e-5" } else { "" };
    let note = format!(
        "no configuration beside the weights: their shapes are {name}{origin} ({} blocks of width {embed_dim}, patches of {patch_size}); taken as \
         {} heads of {HEAD_DIM} and images of {}",
        config.num_blocks, config.num_heads, config.img_size
    );
    Ok((config, note))
}

/// A probe's head alone: the paper's size of that width, since nothing else is to be seen.
fn probe_head(width: usize) -> Option<(AimConfig, String)> {
    let known = ["aim-600M", "aim-1B", "aim-3B", "aim-7B"];
    let known = known.iter().find_map(|name| {
        AimConfig::preset(name).ok().filter(|config| config.embed_dim == width).map(|c| (*name, c))
    });
    let (name, config) = known.or_else(|| {
        let config = AimConfig {
            embed_dim: width,
            num_heads: (width / HEAD_DIM).max(1),
            ..AimConfig::default()
        };
        config.validate().ok().map(|()| ("a model without a name", config))
    })?;
    Some((config, format!("a probe's head without a trunk, of the width of {name}")))
}

/// The pre-training head, if its weights are there.
fn head(checkpoint: &Checkpoint, config: &mut AimConfig) {
    if let Some(&[width, _]) = checkpoint.shape("pixel_head.proj.weight") {
        config.head_width = width;
        config.head_depth = count(checkpoint, "pixel_head.blocks.");
        if checkpoint.contains("pixel_head.blocks.0.norm_1.weight") {
            config.head_residual = HeadResidual::L3m;
        }
    } else if checkpoint.contains("pixel_head.pred.weight") {
        config.head_kind = HeadKind::Linear;
    }
}

/// One more than the largest number behind a prefix.
fn count(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let numbers = checkpoint.names().filter_map(|name| {
        let number = name.strip_prefix(prefix)?.split('.').next()?;
        number.parse::<usize>().ok().filter(|&number| number < 1 << 20)
    });
    numbers.max().map_or(0, |most| most + 1)
}
