//! Running a tape on a GPU: the same plan, kernels of `aim_kernels::<op>::cuda`.
//!
//! | module | what |
//! |---|---|
//! | `layout` | [`DeviceLayout`]: where parameters lie, rows padded |
//! | `parameters` | [`DeviceParameters`]: masters and gradients in device memory |
//! | `run` | what one step works with |
//! | `forward`, `backward` | each op's kernel calls |

pub(crate) mod backward;
pub(crate) mod forward;
mod layout;
mod parameters;
pub(crate) mod run;

use aim_kernels::cuda::CudaError;

pub use layout::{DeviceLayout, Place};
pub use parameters::DeviceParameters;

use crate::kernel_shape::attention_shape;
use crate::precision::ROW;
use crate::shape::DType;
use crate::tape::{Op, Source, Tape, Var};

/// Says what of a tape no kernel does, before anything runs.
pub(crate) fn check(tape: &Tape, dtypes: &[DType]) -> Result<(), CudaError> {
    for node in &tape.nodes {
        let wants_bf16: &[Var] = match &node.op {
            Op::PrefixAttention { qkv, heads, .. } => {
                let head_dim = attention_shape(tape, *qkv, *heads).head_dim;
                if ![64, 128].contains(&head_dim) {
                    return Err(CudaError::Unsupported {
                        op: "prefix_attention",
                        expected: "a head dimension (embed_dim / num_heads) of 64 or 128",
                        found: head_dim.to_string(),
                    });
                }
                std::slice::from_ref(qkv)
            }
            Op::Patchify { images, .. } if tape.values[images.index()].requires_grad => {
                return Err(no_image_gradient());
            }
            Op::LayerNorm { x, .. }
            | Op::Gelu { x }
            | Op::Positions { x, .. }
            | Op::Scale { x, .. }
            | Op::GatherRows { x, .. } => std::slice::from_ref(x),
            Op::Average { inputs } => inputs,
            _ => &[],
        };
        for var in wants_bf16 {
            if dtypes[var.index()] != DType::Bf16 {
                return Err(CudaError::Unsupported {
                    op: node.op.name(),
                    expected: "bf16 values",
                    found: dtypes[var.index()].to_string(),
                });
            }
        }
        let width = tape.shape(node.output).last();
        if dtypes[node.output.index()] == DType::Bf16 && !width.is_multiple_of(ROW) {
            return Err(CudaError::Unsupported {
                op: node.op.name(),
                expected: "widths that are multiples of 8",
                found: width.to_string(),
            });
        }
    }
    Ok(())
}

/// Whether the backward kernel of `op` walks its index input in order.
pub(crate) fn wants_ascending(tape: &Tape, var: Var) -> bool {
    tape.values[var.index()].source == Source::Input
        && tape.nodes.iter().any(|n| matches!(n.op, Op::GatherRows { index, .. } if index == var))
}

fn no_image_gradient() -> CudaError {
    CudaError::Unsupported {
        op: "patchify",
        expected: "images without a gradient",
        found: "an input with a gradient; use the CPU".into(),
    }
}

fn low_rank_of_f32() -> CudaError {
    CudaError::Unsupported {
        op: "linear",
        expected: "bf16 values with a low-rank addend",
        found: "f32".into(),
    }
}

fn tanh_of_shared() -> CudaError {
    CudaError::Unsupported {
        op: "gelu",
        expected: "the erf form where the GELU is not the only reader of its input",
        found: "the tanh form".into(),
    }
}
