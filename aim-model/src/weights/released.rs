//! The files that Apple released (`huggingface.co/apple/AIM`): their names say what they are, and ml-aim's
//! `aim-v1/README.md` publishes the first eight hexadecimal digits of the SHA-256 of each.

use std::path::Path;

use crate::config::AimConfig;

/// What a released file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Patch embedding and trunk.
    Backbone,
    /// The attentive probe on the last six blocks.
    HeadLast,
    /// The attentive probe on the six blocks that classify best.
    HeadBest,
}

/// A released file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Its name.
    pub file: &'static str,
    /// Its size's name, as in [`crate::config::PRESETS`].
    pub preset: &'static str,
    /// What it holds.
    pub part: Part,
    /// How its SHA-256 starts, in hexadecimal.
    pub sha256: &'static str,
}

const fn released(
    preset: &'static str,
    part: Part,
    file: &'static str,
    sha256: &'static str,
) -> Released {
    Released { file, preset, part, sha256 }
}

/// All of them.
pub const RELEASED: [Released; 12] = [
    released("aim-600M", Part::Backbone, "aim_600m_2bimgs_attnprobe_backbone.pth", "0d6f6b8f"),
    released("aim-1B", Part::Backbone, "aim_1b_5bimgs_attnprobe_backbone.pth", "d254ecd3"),
    released("aim-3B", Part::Backbone, "aim_3b_5bimgs_attnprobe_backbone.pth", "8475ce4e"),
    released("aim-7B", Part::Backbone, "aim_7b_5bimgs_attnprobe_backbone.pth", "184ed94c"),
    released(
        "aim-600M",
        Part::HeadLast,
        "aim_600m_2bimgs_attnprobe_head_last_layers.pth",
        "5ce5a341",
    ),
    released(
        "aim-600M",
        Part::HeadBest,
        "aim_600m_2bimgs_attnprobe_head_best_layers.pth",
        "ebd45c05",
    ),
    released("aim-1B", Part::HeadLast, "aim_1b_5bimgs_attnprobe_head_last_layers.pth", "db3be2ad"),
    released("aim-1B", Part::HeadBest, "aim_1b_5bimgs_attnprobe_head_best_layers.pth", "f1ed7852"),
    released("aim-3B", Part::HeadLast, "aim_3b_5bimgs_attnprobe_head_last_layers.pth", "5c057b30"),
    released("aim-3B", Part::HeadBest, "aim_3b_5bimgs_attnprobe_head_best_layers.pth", "ad380e16"),
    released("aim-7B", Part::HeadLast, "aim_7b_5bimgs_attnprobe_head_last_layers.pth", "1e5c99ba"),
    released("aim-7B", Part::HeadBest, "aim_7b_5bimgs_attnprobe_head_best_layers.pth", "73ecd732"),
];

/// The released file of this name, whatever the directory.
pub fn find(path: &Path) -> Option<&'static Released> {
    let name = path.file_name()?.to_str()?;
    RELEASED.iter().find(|released| released.file == name)
}

/// The paper's size with these dimensions.
pub fn known_size(config: &AimConfig) -> Option<&'static str> {
    ["aim-600M", "aim-1B", "aim-3B", "aim-7B"].into_iter().find(|name| {
        AimConfig::preset(name).is_ok_and(|known| {
            (known.embed_dim, known.num_blocks, known.num_heads, known.patch_size, known.mlp_ratio)
                == (
                    config.embed_dim,
                    config.num_blocks,
                    config.num_heads,
                    config.patch_size,
                    config.mlp_ratio,
                )
        })
    })
}

/// The blocks whose mean a released head was trained on, by the head's file name: `..._last_layers` are the last six,
/// `..._best_layers` those of ml-aim's constants, which exist for the paper's sizes.
pub fn probe_layers(file: &Path, config: &AimConfig) -> Option<Vec<usize>> {
    let name = file.file_stem()?.to_str()?;
    if name.contains("last_layers") {
        return Some((config.num_blocks.saturating_sub(6)..config.num_blocks).collect());
    }
    if !name.contains("best_layers") {
        return None;
    }
    match known_size(config)? {
        "aim-600M" | "aim-7B" => Some((14..=19).collect()),
        _ => Some((12..=17).collect()),
    }
}
