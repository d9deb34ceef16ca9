//! [`Tape`]: a linear record of coarse ops on shapes alone.
//!
//! Recording a tape computes nothing and holds no data: it says what depends on what. Node i reads only values that
//! exist before it, so forward is a walk from the first node to the last and backward the same walk in reverse.
//! [`crate::plan`] decides what is kept and where it lies, [`crate::session`] runs it.

use std::ops::Range;
use std::sync::Arc;

use crate::error::TensorError;
use crate::parameters::{ParamId, ParamLayout};
use crate::shape::{DType, Shape};

/// Handle of a value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub(crate) u32);

impl Var {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What [`Op::Linear`] adds to its product in some of its columns: `u B^T`, see `aim_kernels::low_rank`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowRank {
    /// `[rows, segments * rank]`
    pub u: Var,
    /// B: `[sum of the segments' lengths, rank]`
    pub weight: ParamId,
    /// Columns of the result that are added to.
    pub segments: Vec<Range<usize>>,
}

/// One op with its operands. Formulas, layouts and gradients are with the kernels (`aim_kernels::<op>`).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Patches `[batch * tokens, 3 p^2]` of images: u8 `[batch, height, width, 3]` normalised by mean and standard
    /// deviation, or f32 `[batch, 3, height, width]` as it is.
    Patchify {
        /// The images.
        images: Var,
        /// Side of a patch in pixels.
        patch_size: usize,
        /// Mean and standard deviation of each channel, in units of the full range of a u8 pixel.
        normalize: ([f32; 3], [f32; 3]),
    },
    /// `x W^T + bias + residual + low_rank`.
    Linear {
        /// `[rows, inputs]`
        x: Var,
        /// `[outputs, inputs]`
        weight: ParamId,
        /// `[outputs]`
        bias: Option<ParamId>,
        /// `[rows, outputs]`
        residual: Option<Var>,
        /// A low-rank addend.
        low_rank: Option<LowRank>,
    },
    /// `factor x`.
    Scale {
        /// Any shape.
        x: Var,
        /// A constant.
        factor: f32,
    },
    /// Normalisation over the last dimension.
    LayerNorm {
        /// `[rows, dim]`
        x: Var,
        /// `[dim]`
        weight: ParamId,
        /// `[dim]`
        bias: ParamId,
        /// Added to the variance.
        eps: f32,
    },
    /// Exact GELU.
    Gelu {
        /// Any shape.
        x: Var,
    },
    /// `x[r] + table[index[r]]` with a fixed table.
    Positions {
        /// `[rows, dim]`
        x: Var,
        /// `[positions, dim]`
        table: Var,
        /// i32 `[rows]`
        index: Var,
    },
    /// Attention under a prefix-causal mask.
    PrefixAttention {
        /// `[batch, tokens, 3 * dim]`
        qkv: Var,
        /// i32 `[batch]`
        prefix: Var,
        /// Heads.
        heads: usize,
    },
    /// `x[index[r]]`.
    GatherRows {
        /// `[rows, dim]`
        x: Var,
        /// i32 `[picked]`
        index: Var,
    },
    /// `a + b`.
    Add {
        /// Any shape.
        a: Var,
        /// The same shape.
        b: Var,
    },
    /// Mean of values of one shape.
    Average {
        /// The values.
        inputs: Vec<Var>,
    },
    /// Mean over tokens: `[batch, tokens, dim]` to `[batch, dim]`.
    MeanPool {
        /// `[batch, tokens, dim]`
        x: Var,
    },
    /// Normalisation over rows without weight and bias.
    BatchNorm {
        /// `[rows, dim]`
        x: Var,
        /// Running mean and variance to use instead of the batch's own.
        running: Option<(ParamId, ParamId)>,
        /// Added to the variance.
        eps: f32,
    },
    /// Attention of learned queries over tokens, mean over queries: `[batch, tokens, dim]` to `[batch, dim]`.
    AttentionPool {
        /// `[batch, tokens, dim]`
        x: Var,
        /// The queries `[1, queries, dim]`.
        query: ParamId,
        /// Makes keys of tokens: `[dim, dim]`.
        key: ParamId,
        /// Makes values of tokens: `[dim, dim]`.
        value: ParamId,
        /// Heads.
        heads: usize,
    },
    /// Squared error of predicted patches, one loss per row.
    PatchLoss {
        /// `[rows, 3 p^2]`
        pred: Var,
        /// Output of [`Op::Patchify`].
        patches: Var,
        /// i32 `[rows]`: the patch that each row predicts.
        targets: Var,
        /// Side of a patch in pixels.
        patch_size: usize,
        /// Whether targets are normalised patch by patch.
        normalize: bool,
    },
    /// Cross-entropy with integer labels, one loss per row.
    CrossEntropy {
        /// `[rows, classes]`
        logits: Var,
        /// i32 `[rows]`
        labels: Var,
    },
    /// Cross-entropy with a share for each class, one loss per row.
    SoftCrossEntropy {
        /// `[rows, classes]`
        logits: Var,
        /// f32 `[rows, classes]`; each row sums to one.
        targets: Var,
    },
}

impl Op {
    /// Name as in PyTorch, for messages and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Patchify { .. } => "patchify",
            Self::Linear { .. } => "linear",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Gelu { .. } => "gelu",
            Self::Positions { .. } => "positions",
            Self::PrefixAttention { .. } => "prefix_attention",
            Self::GatherRows { .. } => "gather_rows",
            Self::Add { .. } => "add",
            Self::Average { .. } => "average",
            Self::MeanPool { .. } => "mean_pool",
            Self::BatchNorm { .. } => "batch_norm",
            Self::AttentionPool { .. } => "attention_pool",
            Self::PatchLoss { .. } => "patch_loss",
            Self::Scale { .. } => "scale",
            Self::CrossEntropy { .. } => "cross_entropy",
            Self::SoftCrossEntropy { .. } => "soft_cross_entropy",
        }
    }

    /// Values that the op reads, in the order in which the executor expects them.
    pub(crate) fn inputs(&self) -> Vec<Var> {
        match *self {
            Self::Patchify { images, .. } => vec![images],
            Self::Linear { x, residual, ref low_rank, .. } => {
                let u = low_rank.as_ref().map(|term| term.u);
                std::iter::once(x).chain(residual).chain(u).collect()
            }
            Self::LayerNorm { x, .. }
            | Self::Gelu { x }
            | Self::Scale { x, .. }
            | Self::MeanPool { x }
            | Self::BatchNorm { x, .. }
            | Self::AttentionPool { x, .. } => vec![x],
            Self::Positions { x, table, index } => vec![x, table, index],
            Self::PrefixAttention { qkv, prefix, .. } => vec![qkv, prefix],
            Self::GatherRows { x, index } => vec![x, index],
            Self::Add { a, b } => vec![a, b],
            Self::Average { ref inputs } => inputs.clone(),
            Self::PatchLoss { pred, patches, targets, .. } => vec![pred, patches, targets],
            Self::CrossEntropy { logits, labels } => vec![logits, labels],
            Self::SoftCrossEntropy { logits, targets } => vec![logits, targets],
        }
    }

    /// Parameters that the op reads.
    pub(crate) fn params(&self) -> Vec<ParamId> {
        match *self {
            Self::Linear { weight, bias, ref low_rank, .. } => {
                let b = low_rank.as_ref().map(|term| term.weight);
                std::iter::once(weight).chain(bias).chain(b).collect()
            }
            Self::LayerNorm { weight, bias, .. } => vec![weight, bias],
            Self::AttentionPool { query, key, value, .. } => vec![query, key, value],
            _ => Vec::new(),
        }
    }

    /// For each input: does the gradient reach it?
    pub(crate) fn differentiable(&self) -> Vec<bool> {
        match self {
            Self::Positions { .. } | Self::PatchLoss { .. } => vec![true, false, false],
            Self::PrefixAttention { .. }
            | Self::GatherRows { .. }
            | Self::CrossEntropy { .. }
            | Self::SoftCrossEntropy { .. } => vec![true, false],
            // Running statistics are for inference.
            Self::BatchNorm { running: Some(_), .. } => vec![false],
            other => vec![true; other.inputs().len()],
        }
    }

    /// For each input: is its gradient the output's gradient, unchanged?
    pub(crate) fn passes_gradient(&self) -> Vec<bool> {
        match self {
            Self::Linear { residual: Some(_), low_rank, .. } => {
                [false, true, false][..2 + usize::from(low_rank.is_some())].to_vec()
            }
            Self::Positions { .. } => vec![true, false, false],
            Self::Add { .. } => vec![true, true],
            other => vec![false; other.inputs().len()],
        }
    }

    /// For each input: does the backward pass read its value?
    pub(crate) fn saves_input(&self) -> Vec<bool> {
        match self {
            Self::Linear { residual, low_rank, .. } => std::iter::once(true)
                .chain(residual.map(|_| false))
                .chain(low_rank.as_ref().map(|_| true))
                .collect(),
            Self::LayerNorm { .. }
            | Self::Gelu { .. }
            | Self::BatchNorm { .. }
            | Self::AttentionPool { .. } => vec![true],
            Self::PrefixAttention { .. }
            | Self::CrossEntropy { .. }
            | Self::SoftCrossEntropy { .. } => vec![true, true],
            Self::GatherRows { .. } => vec![false, true],
            Self::PatchLoss { .. } => vec![true; 3],
            other => vec![false; other.inputs().len()],
        }
    }

    /// Does the backward pass read the output's value?
    pub(crate) fn saves_output(&self) -> bool {
        matches!(self, Self::PrefixAttention { .. })
    }
}

/// An op with its result.
#[derive(Clone, Debug)]
pub struct Node {
    /// The op.
    pub op: Op,
    /// Its result.
    pub output: Var,
    /// f32 values kept beside the result for the backward pass: statistics.
    pub(crate) stats: usize,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Input,
    Constant(u32),
    Node(u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) source: Source,
    pub(crate) requires_grad: bool,
    /// Readable after the run; never recomputed.
    pub(crate) output: bool,
    /// Never recomputed.
    pub(crate) checkpoint: bool,
}

/// The record. See the module's page.
#[derive(Clone, Debug)]
pub struct Tape {
    pub(crate) layout: Arc<ParamLayout>,
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: Vec<Vec<f32>>,
    pub(crate) loss: Option<Var>,
}

impl Tape {
    /// An empty tape over parameters of that layout.
    pub fn new(layout: Arc<ParamLayout>) -> Self {
        Self { layout, values: Vec::new(), nodes: Vec::new(), constants: Vec::new(), loss: None }
    }

    /// The parameters that ops can name.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// A value that is written before each run.
    pub fn input(&mut self, shape: impl Into<Shape>, dtype: DType) -> Var {
        self.push_value(shape.into(), dtype, Source::Input, false)
    }

    /// An f32 input whose gradient can be read after the backward pass.
    pub fn input_with_grad(&mut self, shape: impl Into<Shape>) -> Var {
        self.push_value(shape.into(), DType::F32, Source::Input, true)
    }

    /// A fixed f32 table.
    ///
    /// # Errors
    /// [`TensorError::InputLength`] when data and shape differ in size.
    pub fn constant(
        &mut self,
        shape: impl Into<Shape>,
        data: Vec<f32>,
    ) -> Result<Var, TensorError> {
        let shape = shape.into();
        if data.len() != shape.len() {
            return Err(TensorError::InputLength { shape, found: data.len() });
        }
        self.constants.push(data);
        Ok(self.push_value(
            shape,
            DType::F32,
            Source::Constant(self.constants.len() as u32 - 1),
            false,
        ))
    }

    /// Shape of a value.
    pub fn shape(&self, var: Var) -> Shape {
        self.values[var.index()].shape
    }

    /// Makes a value readable after the run.
    pub fn output(&mut self, var: Var) {
        self.values[var.index()].output = true;
    }

    /// Keeps a value for the backward pass at every recomputation level: the end of a block.
    pub fn checkpoint(&mut self, var: Var) {
        self.values[var.index()].checkpoint = true;
    }

    /// Declares the loss: a vector of losses, one a row. The backward pass differentiates their sum times a scale
    /// given at run time. The values are readable after a run.
    pub fn set_loss(&mut self, var: Var) {
        self.output(var);
        self.loss = Some(var);
    }

    /// The ops in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn push_value(
        &mut self,
        shape: Shape,
        dtype: DType,
        source: Source,
        requires_grad: bool,
    ) -> Var {
        let value = Value { shape, dtype, source, requires_grad, output: false, checkpoint: false };
        self.values.push(value);
        Var(self.values.len() as u32 - 1)
    }
}
