//! [`AimConfig`]: everything that decides a model's shape, in ml-aim's key names plus ours for pre-training.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// Image height and width in pixels; written as one integer when square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SizeRepr", into = "SizeRepr")]
pub struct ImageSize {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of pixels or [height, width]")]
enum SizeRepr {
    Square(usize),
    Rectangle([usize; 2]),
}

impl From<SizeRepr> for ImageSize {
    fn from(repr: SizeRepr) -> Self {
        match repr {
            SizeRepr::Square(side) => Self::square(side),
            SizeRepr::Rectangle([height, width]) => Self { height, width },
        }
    }
}

impl From<ImageSize> for SizeRepr {
    fn from(size: ImageSize) -> Self {
        if size.height == size.width {
            Self::Square(size.height)
        } else {
            Self::Rectangle([size.height, size.width])
        }
    }
}

impl ImageSize {
    /// A `side` x `side` image.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// The pre-training head that turns trunk outputs into patches (paper 4.2 and table 3e).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Residual MLP blocks, each token on its own (the paper's head).
    Mlp,
    /// One linear layer from the trunk to pixels ("None" in table 3e).
    Linear,
}

/// What a head block adds to its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadResidual {
    /// `x + mlp(norm(x))`, as the paper describes a residual MLP.
    Clean,
    /// `x = x + norm_1(x); x + mlp(norm_2(x))`: what ml-l3m's released trainer computes.
    L3m,
}

/// Shape of an AIM model. `Default` is AIM-600M with the paper's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AimConfig {
    /// Image size in pixels the model is trained at; other multiples of `patch_size` work too.
    pub img_size: ImageSize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Transformer blocks in the trunk.
    pub num_blocks: usize,
    /// Attention heads; `embed_dim / num_heads` is the head dimension.
    pub num_heads: usize,
    /// Hidden width of an MLP over its input width.
    pub mlp_ratio: usize,
    /// Added to the variance in every LayerNorm. ml-aim uses 1e-6, ml-l3m's trainer 1e-5.
    pub norm_eps: f32,
    /// Which pre-training head.
    pub head_kind: HeadKind,
    /// Width of the head's blocks (2048 in the paper).
    pub head_width: usize,
    /// Number of the head's blocks (12 in the paper).
    pub head_depth: usize,
    /// What a head block adds to its input.
    pub head_residual: HeadResidual,
}

impl Default for AimConfig {
    fn default() -> Self {
        Self {
            img_size: ImageSize::square(224),
            patch_size: 14,
            embed_dim: 1536,
            num_blocks: 24,
            num_heads: 12,
            mlp_ratio: 4,
            norm_eps: 1e-6,
            head_kind: HeadKind::Mlp,
            head_width: 2048,
            head_depth: 12,
            head_residual: HeadResidual::Clean,
        }
    }
}

/// Names accepted by [`AimConfig::preset`], smallest first.
pub const PRESETS: [&str; 6] = ["aim-nano", "aim-micro", "aim-600M", "aim-1B", "aim-3B", "aim-7B"];

impl AimConfig {
    /// A named size: the paper's four (table 1) and two that train on a CPU.
    ///
    /// # Errors
    /// [`ModelError::UnknownPreset`] lists the names that exist.
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        let paper = |embed_dim, num_blocks, num_heads| Self {
            embed_dim,
            num_blocks,
            num_heads,
            ..Self::default()
        };
        let small = |side, patch_size, width, num_heads| Self {
            img_size: ImageSize::square(side),
            patch_size,
            embed_dim: width,
            num_blocks: 12,
            num_heads,
            head_width: width,
            ..Self::default()
        };
        Ok(match name {
            "aim-nano" => small(32, 4, 192, 3),
            "aim-micro" => small(224, 14, 384, 6),
            "aim-600M" => paper(1536, 24, 12),
            "aim-1B" => paper(2048, 24, 16),
            "aim-3B" => paper(3072, 24, 24),
            "aim-7B" => paper(4096, 32, 32),
            _ => return Err(ModelError::UnknownPreset { name: name.to_owned() }),
        })
    }

    /// Patches from top to bottom and from left to right at `img_size`.
    pub fn grid(&self) -> (usize, usize) {
        (self.img_size.height / self.patch_size, self.img_size.width / self.patch_size)
    }

    /// Tokens per image at `img_size` (K in the paper).
    pub fn num_patches(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Values in one patch: `patch_size^2 * 3`.
    pub fn patch_dim(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Checks that the sizes fit together and that every kernel accepts them.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] names the key, its value and what would work.
    pub fn validate(&self) -> Result<(), ModelError> {
        let bad = |key: &'static str, value: usize, expected: String| {
            Err(ModelError::BadConfig { key, value: value.to_string(), expected })
        };
        for (key, value, most) in [
            ("patch_size", self.patch_size, 256),
            ("embed_dim", self.embed_dim, 1 << 16),
            ("num_blocks", self.num_blocks, 1024),
            ("num_heads", self.num_heads, 1 << 12),
            ("mlp_ratio", self.mlp_ratio, 64),
            ("head_width", self.head_width, 1 << 16),
        ] {
            if value == 0 || value > most {
                return bad(key, value, format!("between 1 and {most}"));
            }
        }
        if self.head_depth > 1024 {
            return bad("head_depth", self.head_depth, "between 0 and 1024".into());
        }
        for side in [self.img_size.height, self.img_size.width] {
            if side == 0 || side > 1 << 14 || !side.is_multiple_of(self.patch_size) {
                let near = (side / self.patch_size).clamp(1, 64) * self.patch_size;
                let expected =
                    format!("a multiple of patch_size {}, such as {near}", self.patch_size);
                return bad("img_size", side, expected);
            }
        }
        if self.num_patches() < 2 {
            return bad("img_size", self.img_size.height, "at least two patches".into());
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            return bad(
                "num_heads",
                self.num_heads,
                format!("a divisor of embed_dim {}", self.embed_dim),
            );
        }
        if !(8..=256).contains(&self.head_dim()) || !self.head_dim().is_multiple_of(8) {
            let expected = format!(
                "a head dimension embed_dim / num_heads that is a multiple of 8 from 8 to 256, found {}",
                self.head_dim()
            );
            return bad("num_heads", self.num_heads, expected);
        }
        for (key, width) in [("embed_dim", self.embed_dim), ("head_width", self.head_width)] {
            if !width.is_multiple_of(4) {
                return bad(key, width, "a multiple of 4, which the sin-cos positions need".into());
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(ModelError::BadConfig {
                key: "norm_eps",
                value: self.norm_eps.to_string(),
                expected: "between 0 and 1, such as 1e-6".into(),
            });
        }
        Ok(())
    }
}
