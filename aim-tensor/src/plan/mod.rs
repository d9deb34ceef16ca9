//! [`Plan`]: the order of work for a tape and a place in memory for every value of it.
//!
//! The plan walks the tape forward and, for training, back, writing down steps. A value lives from the step that
//! writes it to the last that reads it; values whose lives do not meet may share memory. At a recomputation level,
//! results of some kinds of ops are forgotten after the forward walk; when the walk back needs one, the plan inserts
//! the steps that make it again from the nearest values that were kept.
//!
//! Gradients are written once by their first contribution and accumulated by later ones. Where an op hands its
//! output's gradient on unchanged (a residual), input and output share one gradient.

mod place;
mod planner;

use std::fmt;

use aim_kernels::memory::Span;

use crate::device::Storage;
use crate::error::TensorError;
use crate::shape::DType;
use crate::tape::{Op, Tape};
use planner::Planner;

/// What the backward pass makes again instead of keeping, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Recompute {
    /// Everything is kept.
    #[default]
    None,
    /// Outputs of layer norms.
    Norms,
    /// Outputs of layer norms and GELUs.
    NormsGelu,
    /// Everything but the ends of blocks ([`Tape::checkpoint`]).
    Block,
}

impl Recompute {
    /// Whether results of this op are made again.
    fn forgets(self, op: &Op) -> bool {
        match self {
            Self::None => false,
            Self::Norms => matches!(op, Op::LayerNorm { .. }),
            Self::NormsGelu => matches!(op, Op::LayerNorm { .. } | Op::Gelu { .. }),
            Self::Block => true,
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Norms => "norms",
            Self::NormsGelu => "norms_gelu",
            Self::Block => "block",
        })
    }
}

/// Which GELU a run computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GeluForm {
    /// `x Phi(x)`, as the paper's code has it.
    #[default]
    Erf,
    /// The tanh approximation, within 5e-4 of it, which a GPU's library computes inside the products before and after.
    /// Only with [`Storage::Bf16`].
    Tanh,
}

/// What to plan for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanOptions {
    /// Plan a backward pass. The tape needs a loss.
    pub backward: bool,
    /// What the backward pass makes again.
    pub recompute: Recompute,
    /// How values are stored. A session sets it to its device's.
    pub storage: Storage,
    /// Which GELU is computed.
    pub gelu: GeluForm,
}

/// What a buffer holds, for the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Images, indices, prefixes.
    Inputs,
    /// Values made by the forward pass.
    Activations,
    /// Values made again by the backward pass.
    Recomputed,
    /// Gradients of values.
    Gradients,
    /// Statistics kept for the backward pass, and scratch of single ops.
    Workspace,
}

impl Category {
    /// All categories, as [`Memory::by_category`] lists them.
    pub const ALL: [Self; 5] =
        [Self::Inputs, Self::Activations, Self::Recomputed, Self::Gradients, Self::Workspace];
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inputs => "inputs",
            Self::Activations => "activations",
            Self::Recomputed => "recomputed activations",
            Self::Gradients => "gradients of activations",
            Self::Workspace => "workspace",
        })
    }
}

/// Memory of one step, parameters left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes in use at the fullest moment, in the order of [`Category::ALL`].
    pub by_category: [usize; 5],
}

/// Index of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buf(u32);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    Buffer(Buf),
    Constant(u32),
    /// Not read by this step.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    Forward,
    Backward,
}

/// Where a contribution to a gradient goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradTarget {
    pub(crate) buffer: Buf,
    /// Add to what is there.
    pub(crate) accumulate: bool,
}

/// One op run once, in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: StepKind,
    pub(crate) node: u32,
    pub(crate) inputs: Vec<Operand>,
    pub(crate) output: Operand,
    pub(crate) stats: Option<Buf>,
    pub(crate) scratch: Option<Buf>,
    /// Gradient of the output; none for the loss itself.
    pub(crate) d_output: Option<Buf>,
    /// Gradients that the op computes, by input.
    pub(crate) d_inputs: Vec<Option<GradTarget>>,
    /// Gradients to which the output's is handed on by copy or addition.
    pub(crate) passes: Vec<GradTarget>,
    /// Of a step that a GELU is fused into: the value before the GELU, which the forward step writes beside its output
    /// and the backward step reads.
    pub(crate) pre: Option<Buf>,
}

/// Steps and places. See the module's page.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Steps before this one are the forward pass.
    pub(crate) forward_steps: usize,
    spans: Vec<Span>,
    pub(crate) values: Vec<Option<Buf>>,
    pub(crate) stats: Vec<Option<Buf>>,
    pub(crate) grads: Vec<Option<Buf>>,
    /// Type of each value as it is stored.
    pub(crate) dtypes: Vec<DType>,
    pub(crate) gelu: GeluForm,
    memory: Memory,
}

impl Plan {
    /// Plans a tape.
    ///
    /// # Errors
    /// [`TensorError::BadArgument`] when a backward pass is asked of a tape without a loss that depends on anything
    /// trainable.
    pub fn new(tape: &Tape, options: PlanOptions) -> Result<Self, TensorError> {
        let mut planner = Planner::new(tape, options);
        planner.forward();
        let forward_steps = planner.steps.len();
        if options.backward {
            planner.backward(options.recompute)?;
        }
        Ok(planner.finish(forward_steps, options.gelu))
    }

    /// Memory of one step.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Ops that run in the backward pass only to make values again.
    pub fn recomputed_ops(&self) -> usize {
        self.steps[self.forward_steps..].iter().filter(|s| s.kind == StepKind::Forward).count()
    }

    pub(crate) fn span(&self, buffer: Buf) -> Span {
        self.spans[buffer.0 as usize]
    }
}
