//! FLOPs of a tape, counted from its shapes.
//!
//! A multiply-add is two FLOPs. Matrix products and attention are counted; element-wise work, below one in a hundred
//! of them, is not. Attention counts its two products in full, masked part included, as is usual for an MFU.

use crate::kernel_shape::{attention_pool_shape, attention_shape};
use crate::tape::{Op, Tape};

/// FLOPs of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flops {
    /// Forward pass.
    pub forward: u64,
    /// Backward pass, recomputation left out.
    pub backward: u64,
}

/// Counts a tape.
pub fn flops(tape: &Tape) -> Flops {
    tape.nodes().iter().fold(Flops::default(), |sum, node| {
        let Flops { forward, backward } = op_flops(tape, &node.op);
        let trains = tape.values[node.output.index()].requires_grad;
        Flops {
            forward: sum.forward + forward,
            backward: sum.backward + if trains { backward } else { 0 },
        }
    })
}

fn op_flops(tape: &Tape, op: &Op) -> Flops {
    match *op {
        Op::Linear { x, weight, ref low_rank, .. } => {
            let param = tape.layout.get(weight);
            let product = 2 * tape.shape(x).rows() as u64 * param.range.len() as u64;
            let to_input = u64::from(tape.values[x.index()].requires_grad);
            let to_weight = u64::from(param.spec.trainable);
            // B is read and trained: twice the forward pass.
            let low = low_rank.as_ref().map_or(0, |term| {
                2 * tape.shape(x).rows() as u64 * tape.layout.get(term.weight).range.len() as u64
            });
            Flops { forward: product + low, backward: product * (to_input + to_weight) + 2 * low }
        }
        Op::PrefixAttention { qkv, heads, .. } => {
            let product = 2 * attention_shape(tape, qkv, heads).macs();
            Flops { forward: 2 * product, backward: 4 * product }
        }
        Op::AttentionPool { x, query, heads, .. } => {
            let forward = attention_pool_shape(tape, x, query, heads).flops();
            // Two products for each of the forward pass, the last pair of which is for x alone.
            let trained = tape.values[x.index()].requires_grad;
            Flops { forward, backward: if trained { 3 * forward } else { 2 * forward } }
        }
        _ => Flops::default(),
    }
}
