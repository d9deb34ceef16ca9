//! The trunk: patch embedding, pre-norm transformer blocks, final norm (paper 4.2; ml-aim's `AIM`).
//!
//! ```text
//! x = layer_norm(patches W^T + b) + positions
//! x = x + proj(attention(qkv(norm_1(x))))      for each block; linear layers of blocks have no bias
//! x = x + fc2(gelu(fc1(norm_2(x))))
//! output = post_trunk_norm(x)
//! ```

use aim_tensor::{DType, ParamId, ParamLayout, ParamSpec, Shape, Tape, Var};

use crate::config::AimConfig;
use crate::error::ModelError;
use crate::lora::{Adapters, Layer};
use crate::position::sin_cos_2d;

/// Describes one parameter. Weight decay applies to matrices, not to biases and norms (ml-l3m's exclusion list).
pub(crate) fn spec(
    name: String,
    shape: impl Into<Shape>,
    decay: bool,
    trainable: bool,
) -> ParamSpec {
    ParamSpec { name, shape: shape.into(), decay, trainable }
}

/// Looks a parameter up and checks its shape.
pub(crate) fn bind(
    layout: &ParamLayout,
    name: &str,
    shape: impl Into<Shape>,
) -> Result<ParamId, ModelError> {
    let shape = shape.into();
    let id =
        layout.id(name).ok_or_else(|| ModelError::MissingParameter { name: name.to_owned() })?;
    let found = layout.get(id).spec.shape;
    if found.len() != shape.len() {
        return Err(ModelError::ParameterShape { name: name.to_owned(), expected: shape, found });
    }
    Ok(id)
}

/// Weight and bias of a norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    weight: ParamId,
    bias: ParamId,
}

impl Norm {
    pub(crate) fn specs(prefix: &str, dim: usize, trainable: bool, specs: &mut Vec<ParamSpec>) {
        for part in ["weight", "bias"] {
            specs.push(spec(format!("{prefix}.{part}"), [dim], false, trainable));
        }
    }

    pub(crate) fn bind(layout: &ParamLayout, prefix: &str, dim: usize) -> Result<Self, ModelError> {
        Ok(Self {
            weight: bind(layout, &format!("{prefix}.weight"), [dim])?,
            bias: bind(layout, &format!("{prefix}.bias"), [dim])?,
        })
    }

    pub(crate) fn record(self, tape: &mut Tape, x: Var, eps: f32) -> Result<Var, ModelError> {
        Ok(tape.layer_norm(x, self.weight, self.bias, eps)?)
    }
}

/// `fc2(gelu(fc1(x)))` without biases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mlp {
    fc1: ParamId,
    fc2: ParamId,
}

impl Mlp {
    pub(crate) fn specs(
        prefix: &str,
        dim: usize,
        hidden: usize,
        trainable: bool,
        specs: &mut Vec<ParamSpec>,
    ) {
        specs.push(spec(format!("{prefix}.fc1.weight"), [hidden, dim], true, trainable));
        specs.push(spec(format!("{prefix}.fc2.weight"), [dim, hidden], true, trainable));
    }

    pub(crate) fn bind(
        layout: &ParamLayout,
        prefix: &str,
        dim: usize,
        hidden: usize,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            fc1: bind(layout, &format!("{prefix}.fc1.weight"), [hidden, dim])?,
            fc2: bind(layout, &format!("{prefix}.fc2.weight"), [dim, hidden])?,
        })
    }

    /// `residual + mlp(x)`.
    pub(crate) fn record(self, tape: &mut Tape, x: Var, residual: Var) -> Result<Var, ModelError> {
        let hidden = tape.linear(x, self.fc1, None, None)?;
        let hidden = tape.gelu(hidden)?;
        Ok(tape.linear(hidden, self.fc2, None, Some(residual))?)
    }
}

/// Parameters of one block.
#[derive(Clone, Copy, Debug)]
struct Block {
    norm_1: Norm,
    qkv: ParamId,
    proj: ParamId,
    norm_2: Norm,
    mlp: Mlp,
}

/// The trunk's parameters in a layout. See the module's page.
#[derive(Clone, Debug)]
pub struct Trunk {
    config: AimConfig,
    proj: (ParamId, ParamId),
    norm: Norm,
    blocks: Vec<Block>,
    post_norm: Norm,
}

/// Pixels that enter the trunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PixelFormat {
    /// u8 `[batch, height, width, 3]`, normalised on the way in: `(v / 255 - mean) / std`.
    U8 {
        /// Mean of each channel.
        mean: [f32; 3],
        /// Standard deviation of each channel.
        std: [f32; 3],
    },
    /// f32 `[batch, 3, height, width]`, already normalised.
    F32,
}

/// Number, size and format of the images of a tape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageBatch {
    /// Images.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Layout and type of pixels.
    pub format: PixelFormat,
}

/// Values that the trunk put on a tape.
#[derive(Clone, Debug)]
pub struct TrunkVars {
    /// Input: the images.
    pub images: Var,
    /// Input: i32 `[batch]`, the prefix length of each image; the number of tokens for full attention.
    pub prefix: Var,
    /// Input: i32 `[batch * tokens]`, the position of each token.
    pub positions: Var,
    /// `[batch, tokens, 3 p^2]`.
    pub patches: Var,
    /// `[batch, tokens, dim]` before the first block.
    pub embed: Var,
    /// `[batch, tokens, dim]` after each block.
    pub blocks: Vec<Var>,
    /// Rows and columns of tokens.
    pub grid: (usize, usize),
}

impl Trunk {
    /// Describes the trunk's parameters under ml-aim's names.
    pub fn specs(config: &AimConfig, trainable: bool) -> Vec<ParamSpec> {
        let (dim, hidden) = (config.embed_dim, config.embed_dim * config.mlp_ratio);
        let patch = config.patch_size;
        let mut specs = vec![
            spec(
                "preprocessor.patchifier.proj.weight".into(),
                [dim, 3, patch, patch],
                true,
                trainable,
            ),
            spec("preprocessor.patchifier.proj.bias".into(), [dim], false, trainable),
        ];
        Norm::specs("preprocessor.patchifier.norm", dim, trainable, &mut specs);
        for i in 0..config.num_blocks {
            let block = format!("trunk.blocks.{i}");
            Norm::specs(&format!("{block}.norm_1"), dim, trainable, &mut specs);
            specs.push(spec(format!("{block}.attn.qkv.weight"), [3 * dim, dim], true, trainable));
            specs.push(spec(format!("{block}.attn.proj.weight"), [dim, dim], true, trainable));
            Norm::specs(&format!("{block}.norm_2"), dim, trainable, &mut specs);
            Mlp::specs(&format!("{block}.mlp"), dim, hidden, trainable, &mut specs);
        }
        Norm::specs("trunk.post_trunk_norm", dim, trainable, &mut specs);
        specs
    }

    /// Finds the trunk's parameters in a layout.
    ///
    /// # Errors
    /// When one is missing or has another shape.
    pub fn bind(config: &AimConfig, layout: &ParamLayout) -> Result<Self, ModelError> {
        config.validate()?;
        let (dim, hidden) = (config.embed_dim, config.embed_dim * config.mlp_ratio);
        let blocks = (0..config.num_blocks)
            .map(|i| {
                let block = format!("trunk.blocks.{i}");
                Ok(Block {
                    norm_1: Norm::bind(layout, &format!("{block}.norm_1"), dim)?,
                    qkv: bind(layout, &format!("{block}.attn.qkv.weight"), [3 * dim, dim])?,
                    proj: bind(layout, &format!("{block}.attn.proj.weight"), [dim, dim])?,
                    norm_2: Norm::bind(layout, &format!("{block}.norm_2"), dim)?,
                    mlp: Mlp::bind(layout, &format!("{block}.mlp"), dim, hidden)?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            config: config.clone(),
            proj: (
                bind(layout, "preprocessor.patchifier.proj.weight", [dim, config.patch_dim()])?,
                bind(layout, "preprocessor.patchifier.proj.bias", [dim])?,
            ),
            norm: Norm::bind(layout, "preprocessor.patchifier.norm", dim)?,
            blocks,
            post_norm: Norm::bind(layout, "trunk.post_trunk_norm", dim)?,
        })
    }

    /// Records inputs, embedding and the first `depth` blocks. `differentiable_images` gives f32 images a gradient.
    ///
    /// # Errors
    /// When the image is no whole number of patches.
    pub fn record(
        &self,
        tape: &mut Tape,
        images: ImageBatch,
        depth: usize,
        differentiable_images: bool,
    ) -> Result<TrunkVars, ModelError> {
        self.record_adapted(tape, images, depth, differentiable_images, None)
    }

    /// As [`Trunk::record`], with adapters on the attention.
    ///
    /// # Errors
    /// As [`Trunk::record`].
    pub fn record_adapted(
        &self,
        tape: &mut Tape,
        images: ImageBatch,
        depth: usize,
        differentiable_images: bool,
        adapters: Option<&Adapters>,
    ) -> Result<TrunkVars, ModelError> {
        let config = &self.config;
        let ImageBatch { batch, height, width, format } = images;
        let (images, normalize) = match format {
            PixelFormat::U8 { mean, std } => {
                (tape.input([batch, height, width, 3], DType::U8), (mean, std))
            }
            PixelFormat::F32 => {
                let shape = [batch, 3, height, width];
                let unused = ([0.0; 3], [1.0; 3]);
                if differentiable_images {
                    (tape.input_with_grad(shape), unused)
                } else {
                    (tape.input(shape, DType::F32), unused)
                }
            }
        };
        let patches = tape.patchify(images, config.patch_size, normalize)?;
        let (rows, columns) = (height / config.patch_size, width / config.patch_size);
        let tokens = rows * columns;
        let prefix = tape.input([batch], DType::I32);
        let positions = tape.input([batch * tokens], DType::I32);
        let table = sin_cos_2d(rows, columns, config.embed_dim);
        let table = tape.constant([tokens, config.embed_dim], table)?;

        let x = tape.linear(patches, self.proj.0, Some(self.proj.1), None)?;
        let x = self.norm.record(tape, x, config.norm_eps)?;
        let embed = tape.positions(x, table, positions)?;
        tape.checkpoint(embed);
        let mut x = embed;
        let mut blocks = Vec::with_capacity(depth);
        for (i, block) in self.blocks.iter().enumerate().take(depth) {
            x = block.record(tape, x, prefix, config, adapters.map(|adapters| (adapters, i)))?;
            tape.checkpoint(x);
            blocks.push(x);
        }
        Ok(TrunkVars { images, prefix, positions, patches, embed, blocks, grid: (rows, columns) })
    }

    /// Records the norm after the last block.
    ///
    /// # Errors
    /// When x has another width than the trunk.
    pub fn record_post_norm(&self, tape: &mut Tape, x: Var) -> Result<Var, ModelError> {
        self.post_norm.record(tape, x, self.config.norm_eps)
    }
}

impl Block {
    fn record(
        &self,
        tape: &mut Tape,
        x: Var,
        prefix: Var,
        config: &AimConfig,
        adapters: Option<(&Adapters, usize)>,
    ) -> Result<Var, ModelError> {
        let adapted = |tape: &mut Tape, x, layer| {
            let adapter = adapters.and_then(|(adapters, block)| adapters.get(block, layer));
            adapter.map(|adapter| adapter.record(tape, x)).transpose()
        };
        let h = self.norm_1.record(tape, x, config.norm_eps)?;
        let low_rank = adapted(tape, h, Layer::Qkv)?;
        let qkv = tape.linear_with(h, self.qkv, None, None, low_rank)?;
        let attended = tape.prefix_attention(qkv, prefix, config.num_heads)?;
        let low_rank = adapted(tape, attended, Layer::Proj)?;
        let x = tape.linear_with(attended, self.proj, None, Some(x), low_rank)?;
        let h = self.norm_2.record(tape, x, config.norm_eps)?;
        self.mlp.record(tape, h, x)
    }
}
