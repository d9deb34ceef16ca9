//! The pre-training head: from trunk outputs to patches (paper 4.2, table 4; ml-l3m's `SimpleDecoder`).
//!
//! ```text
//! x = proj(h) + positions                     at the head's own width
//! x = x + fc2(gelu(fc1(norm(x))))             for each block
//! prediction = pred(norm(x))
//! ```
//!
//! Every token is treated by itself, so the head runs only on the rows whose predictions are scored. With
//! [`HeadResidual::L3m`] a block first adds its norm to its input, as ml-l3m's trainer does; with
//! [`HeadKind::Linear`] only `pred` remains, at the trunk's width.

use aim_tensor::{ParamId, ParamLayout, ParamSpec, Tape, Var};

use crate::config::{AimConfig, HeadKind, HeadResidual};
use crate::error::ModelError;
use crate::position::sin_cos_2d;
use crate::trunk::{Mlp, Norm, bind, spec};

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Only in l3m's variant.
    norm_1: Option<Norm>,
    norm: Norm,
    mlp: Mlp,
}

#[derive(Clone, Debug)]
struct Layers {
    proj: (ParamId, ParamId),
    blocks: Vec<Block>,
    norm: Norm,
}

/// The head's parameters in a layout. See the module's page.
#[derive(Clone, Debug)]
pub struct PixelHead {
    config: AimConfig,
    layers: Option<Layers>,
    pred: (ParamId, ParamId),
}

/// Names of a block's norms: the one before the MLP, and l3m's extra one.
fn norm_names(residual: HeadResidual) -> (&'static str, Option<&'static str>) {
    match residual {
        HeadResidual::Clean => ("norm", None),
        HeadResidual::L3m => ("norm_2", Some("norm_1")),
    }
}

impl PixelHead {
    /// Describes the head's parameters.
    pub fn specs(config: &AimConfig) -> Vec<ParamSpec> {
        let width = Self::width(config);
        let mut specs = vec![
            spec("pixel_head.pred.weight".into(), [config.patch_dim(), width], true, true),
            spec("pixel_head.pred.bias".into(), [config.patch_dim()], false, true),
        ];
        if config.head_kind == HeadKind::Linear {
            return specs;
        }
        specs.push(spec("pixel_head.proj.weight".into(), [width, config.embed_dim], true, true));
        specs.push(spec("pixel_head.proj.bias".into(), [width], false, true));
        let (norm, extra) = norm_names(config.head_residual);
        for i in 0..config.head_depth {
            let block = format!("pixel_head.blocks.{i}");
            for name in std::iter::once(norm).chain(extra) {
                Norm::specs(&format!("{block}.{name}"), width, true, &mut specs);
            }
            Mlp::specs(&format!("{block}.mlp"), width, width * config.mlp_ratio, true, &mut specs);
        }
        Norm::specs("pixel_head.norm", width, true, &mut specs);
        specs
    }

    /// Width at which predictions are made.
    fn width(config: &AimConfig) -> usize {
        match config.head_kind {
            HeadKind::Mlp => config.head_width,
            HeadKind::Linear => config.embed_dim,
        }
    }

    /// Finds the head's parameters in a layout.
    ///
    /// # Errors
    /// When one is missing or has another shape.
    pub fn bind(config: &AimConfig, layout: &ParamLayout) -> Result<Self, ModelError> {
        let width = Self::width(config);
        let pred = (
            bind(layout, "pixel_head.pred.weight", [config.patch_dim(), width])?,
            bind(layout, "pixel_head.pred.bias", [config.patch_dim()])?,
        );
        let layers = match config.head_kind {
            HeadKind::Linear => None,
            HeadKind::Mlp => Some(Layers::bind(config, layout, width)?),
        };
        Ok(Self { config: config.clone(), layers, pred })
    }

    /// Records predictions `[rows, 3 p^2]` for trunk outputs `h: [rows, dim]`. `positions: i32 [rows]` says which
    /// token of the grid each row is.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn record(
        &self,
        tape: &mut Tape,
        h: Var,
        positions: Var,
        grid: (usize, usize),
    ) -> Result<Var, ModelError> {
        let mut x = h;
        if let Some(layers) = &self.layers {
            let width = Self::width(&self.config);
            let eps = self.config.norm_eps;
            let table =
                tape.constant([grid.0 * grid.1, width], sin_cos_2d(grid.0, grid.1, width))?;
            x = tape.linear(x, layers.proj.0, Some(layers.proj.1), None)?;
            x = tape.positions(x, table, positions)?;
            tape.checkpoint(x);
            for block in &layers.blocks {
                if let Some(norm_1) = block.norm_1 {
                    let added = norm_1.record(tape, x, eps)?;
                    x = tape.add(x, added)?;
                }
                let normed = block.norm.record(tape, x, eps)?;
                x = block.mlp.record(tape, normed, x)?;
                tape.checkpoint(x);
            }
            x = layers.norm.record(tape, x, eps)?;
        }
        Ok(tape.linear(x, self.pred.0, Some(self.pred.1), None)?)
    }
}

impl Layers {
    fn bind(config: &AimConfig, layout: &ParamLayout, width: usize) -> Result<Self, ModelError> {
        let (norm, extra) = norm_names(config.head_residual);
        let blocks = (0..config.head_depth)
            .map(|i| {
                let block = format!("pixel_head.blocks.{i}");
                Ok(Block {
                    norm_1: extra
                        .map(|name| Norm::bind(layout, &format!("{block}.{name}"), width))
                        .transpose()?,
                    norm: Norm::bind(layout, &format!("{block}.{norm}"), width)?,
                    mlp: Mlp::bind(
                        layout,
                        &format!("{block}.mlp"),
                        width,
                        width * config.mlp_ratio,
                    )?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            proj: (
                bind(layout, "pixel_head.proj.weight", [width, config.embed_dim])?,
                bind(layout, "pixel_head.proj.bias", [width])?,
            ),
            blocks,
            norm: Norm::bind(layout, "pixel_head.norm", width)?,
        })
    }
}
