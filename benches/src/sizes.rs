//! The two model sizes that every benchmark uses.

/// A preset of [`aim_model::AimConfig`] and the batch it is timed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Short name, the first part of a case's name.
    pub name: &'static str,
    /// Name of the preset.
    pub preset: &'static str,
    /// Images in a step.
    pub batch: usize,
}

/// Width 192, 12 blocks, 3 heads, patches of 4 x 4 in 32 x 32 images, a head of 12 blocks: 64 tokens.
pub const NANO: Size = Size { name: "nano", preset: "aim-nano", batch: 32 };
/// Width 384, 12 blocks, 6 heads, patches of 14 x 14 in 224 x 224 images, a head of 12 blocks: 256 tokens.
pub const MICRO: Size = Size { name: "micro", preset: "aim-micro", batch: 8 };
