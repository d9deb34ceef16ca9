//! Checkpoints of ml-l3m, Apple's pre-training code: the same model under other names.
//!
//! | ml-l3m | here |
//! |---|---|
//! | `preprocessor.blocks.0.patchifier.*` | `preprocessor.patchifier.*` |
//! | `preprocessor.blocks.0.pos_embed`, `head.decoder_pos_embed` | compared with the formula, then dropped |
//! | `trunk.blocks.N.attn.{q,k,v}_proj.weight` | `trunk.blocks.N.attn.qkv.weight`, one below the other |
//! | `head.decoder_projection.*`, `decoder_blocks.N.*`, `decoder_norm.*`, `decoder_pred.*` | `pixel_head.{proj,blocks.N,norm,pred}.*` |
//!
//! Its `head.*` is the pixel head, where ml-aim's is the probe. Its LayerNorms add 1e-5, and its head's blocks add
//! their first norm to their input ([`crate::config::HeadResidual::L3m`]).

/// What LayerNorm adds to the variance (ml-l3m's AIMv1 configuration).
pub(super) const NORM_EPS: f32 = 1e-5;

/// Where a tensor of ml-l3m belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Under this name.
    Name(String),
    /// Rows of the tensor of this name, as the part of that number: 0 queries, 1 keys, 2 values.
    Rows(String, usize),
    /// Fixed positions.
    Positions,
}

/// Whether these are the names of ml-l3m.
pub(super) fn detects<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| {
        name.starts_with("preprocessor.blocks.0.patchifier.")
            || name.starts_with("head.decoder_")
            || (name.starts_with("trunk.blocks.") && name.ends_with(".attn.q_proj.weight"))
    })
}

/// Where the tensor called `name` belongs; what is not ml-l3m's keeps its name.
pub(super) fn place(name: &str) -> Place {
    if matches!(name, "preprocessor.blocks.0.pos_embed" | "head.decoder_pos_embed") {
        return Place::Positions;
    }
    if let Some(rest) = name.strip_prefix("preprocessor.blocks.0.patchifier.") {
        return Place::Name(format!("preprocessor.patchifier.{rest}"));
    }
    if name.starts_with("trunk.blocks.") {
        for (part, letter) in ["q", "k", "v"].into_iter().enumerate() {
            if let Some(stem) = name.strip_suffix(&format!(".{letter}_proj.weight")) {
                return Place::Rows(format!("{stem}.qkv.weight"), part);
            }
        }
    }
    for (theirs, ours) in [
        ("head.decoder_projection.", "proj"),
        ("head.decoder_blocks.", "blocks"),
        ("head.decoder_norm.", "norm"),
        ("head.decoder_pred.", "pred"),
    ] {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Place::Name(format!("pixel_head.{ours}.{rest}"));
        }
    }
    Place::Name(name.to_owned())
}
