//! The forward step of every op: from places in the arena to a kernel call.

use aim_kernels as k;
use aim_kernels::attention_pool::cpu::Weights as PoolWeights;
use aim_kernels::memory::Span;
use aim_kernels::{patch_loss::PatchLoss, positions::Positions};

use crate::kernel_shape::{
    attention_pool_shape, attention_shape, batch_norm_shape, cross_entropy_shape, gather_shape,
    layer_norm_shape, linear_shape, low_rank_shape, mean_pool_shape, patchify_shape,
};
use crate::plan::{Operand, Step};
use crate::session::Run;
use crate::shape::DType;
use crate::tape::{Op, Var};

/// Computes a node's output, and its statistics.
pub(crate) fn run(run: &mut Run<'_>, step: &Step) {
    let tape = run.tape;
    let node = &tape.nodes[step.node as usize];
    let shape = |var: Var| tape.shape(var);
    let input =
        |i: usize| step.inputs.get(i).map_or_else(Span::default, |&operand| run.span(operand));
    let (x, y) = (input(0), run.span(step.output));
    let (stats, scratch) = run.extras(step);
    match node.op {
        Op::Patchify { images, patch_size, normalize: (mean, std) } => {
            let kernel = patchify_shape(tape, images, patch_size);
            let ([x], [y]) = run.arena.carve([x], [y]);
            match tape.values[images.index()].dtype {
                DType::U8 => {
                    let pixels: &[u8] = bytemuck::cast_slice(x);
                    k::patch_embed::cpu::patchify_u8(
                        kernel,
                        &pixels[..kernel.image_len()],
                        mean,
                        std,
                        y,
                    );
                }
                _ => k::patch_embed::cpu::patchify(kernel, x, y),
            }
        }
        Op::Linear { x: x_var, weight, bias, residual, ref low_rank } => {
            let kernel = linear_shape(shape(x_var), shape(node.output));
            let (w, b) = (run.param(weight), bias.map(|bias| run.param(bias)));
            let u = input(1 + usize::from(residual.is_some()));
            let term = low_rank.as_ref().map(|term| (term, run.param(term.weight)));
            let ([x, r, u], [y]) = run.arena.carve([x, input(1), u], [y]);
            k::linear::cpu::forward(kernel, x, w, b, residual.map(|_| r), y);
            if let Some((term, b)) = term {
                k::low_rank::cpu::add(low_rank_shape(tape, term, shape(node.output)), u, b, y);
            }
        }
        Op::LayerNorm { x: x_var, weight, bias, eps } => {
            let kernel = layer_norm_shape(shape(x_var), eps);
            let (w, b) = (run.param(weight), run.param(bias));
            let ([x], [y, stats]) = run.arena.carve([x], [y, stats]);
            let (mean, rstd) = stats.split_at_mut(kernel.rows);
            k::layer_norm::cpu::forward(kernel, x, w, b, y, mean, rstd);
        }
        Op::Gelu { .. } => {
            let ([x], [y]) = run.arena.carve([x], [y]);
            k::gelu::cpu::forward(x, y);
        }
        Op::Positions { x: x_var, .. } => {
            let kernel = Positions { rows: shape(x_var).rows(), dim: shape(x_var).last() };
            let ([x, table, index], [y]) = run.arena.carve([x, input(1), input(2)], [y]);
            let table = match step.inputs[1] {
                Operand::Constant(constant) => &tape.constants[constant as usize],
                _ => table,
            };
            k::positions::cpu::forward(kernel, x, table, bytemuck::cast_slice(index), y);
        }
        Op::PrefixAttention { qkv, heads, .. } => {
            let kernel = attention_shape(tape, qkv, heads);
            let ([x, prefix], [y, lse, scratch]) =
                run.arena.carve([x, input(1)], [y, stats, scratch]);
            k::prefix_attention::cpu::forward(
                kernel,
                x,
                bytemuck::cast_slice(prefix),
                y,
                lse,
                scratch,
            );
        }
        Op::GatherRows { x: x_var, index } => {
            let kernel = gather_shape(shape(x_var), shape(index));
            let ([x, index], [y]) = run.arena.carve([x, input(1)], [y]);
            k::gather_rows::cpu::forward(kernel, x, bytemuck::cast_slice(index), y);
        }
        Op::Scale { factor, .. } => {
            let ([x], [y]) = run.arena.carve([x], [y]);
            k::elementwise::cpu::scale(x, factor, y, false);
        }
        Op::Add { .. } => {
            let ([a, b], [y]) = run.arena.carve([x, input(1)], [y]);
            k::elementwise::cpu::add(a, b, y);
        }
        Op::Average { ref inputs } => {
            let share = 1.0 / inputs.len() as f32;
            for i in 0..inputs.len() {
                let span = run.span(step.inputs[i]);
                let ([x], [y]) = run.arena.carve([span], [y]);
                k::elementwise::cpu::scale(x, share, y, i > 0);
            }
        }
        Op::MeanPool { x: x_var } => {
            let ([x], [y]) = run.arena.carve([x], [y]);
            k::mean_pool::cpu::forward(mean_pool_shape(shape(x_var)), x, y);
        }
        Op::BatchNorm { x: x_var, running, eps } => {
            let kernel = batch_norm_shape(shape(x_var), eps);
            let running = running.map(|(mean, variance)| (run.param(mean), run.param(variance)));
            let ([x], [y, stats]) = run.arena.carve([x], [y, stats]);
            let (mean, rstd) = stats.split_at_mut(kernel.dim);
            match running {
                Some((mean, variance)) => {
                    k::batch_norm::cpu::forward_evaluation(kernel, x, mean, variance, y)
                }
                None => k::batch_norm::cpu::forward_training(kernel, x, y, mean, rstd, None),
            }
        }
        Op::AttentionPool { x: x_var, query, key, value, heads } => {
            let kernel = attention_pool_shape(tape, x_var, query, heads);
            let weights = PoolWeights {
                query: run.param(query),
                key: run.param(key),
                value: run.param(value),
            };
            let ([x], [y, kept, scratch]) = run.arena.carve([x], [y, stats, scratch]);
            k::attention_pool::cpu::forward(kernel, x, weights, y, kept, scratch);
        }
        Op::PatchLoss { pred, patch_size, normalize, .. } => {
            let kernel = PatchLoss { rows: shape(pred).rows(), patch: patch_size, normalize };
            let ([pred, patches, targets], [loss]) = run.arena.carve([x, input(1), input(2)], [y]);
            k::patch_loss::cpu::forward(kernel, pred, patches, bytemuck::cast_slice(targets), loss);
        }
        Op::CrossEntropy { logits, .. } => {
            let ([x, labels], [loss]) = run.arena.carve([x, input(1)], [y]);
            let kernel = cross_entropy_shape(shape(logits));
            k::softmax_cross_entropy::cpu::forward(kernel, x, bytemuck::cast_slice(labels), loss);
        }
        Op::SoftCrossEntropy { logits, .. } => {
            let ([x, targets], [loss]) = run.arena.carve([x, input(1)], [y]);
            let kernel = cross_entropy_shape(shape(logits));
            k::softmax_cross_entropy::cpu::forward_soft(kernel, x, targets, loss);
        }
    }
}
