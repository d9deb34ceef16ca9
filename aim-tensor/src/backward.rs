//! The backward step of every op: gradients of its inputs and parameters from its output's.

use aim_kernels as k;
use aim_kernels::attention_pool::cpu::{WeightGradients as PoolGradients, Weights as PoolWeights};
use aim_kernels::layer_norm::cpu::Gradients;
use aim_kernels::memory::Span;
use aim_kernels::patch_loss::PatchLoss;

use crate::kernel_shape::{
    attention_pool_shape, attention_shape, batch_norm_shape, cross_entropy_shape, gather_shape,
    layer_norm_shape, linear_shape, low_rank_shape, mean_pool_shape, patchify_shape,
};
use crate::parameters::{ParamId, ParamLayout};
use crate::plan::Step;
use crate::session::Run;
use crate::tape::{Op, Var};

/// Adds a node's contribution to the gradients of its inputs and parameters. `scale` multiplies the loss.
pub(crate) fn run(run: &mut Run<'_>, step: &Step, grads: &mut [f32], scale: f32) {
    let (tape, layout) = (run.tape, run.layout);
    let node = &tape.nodes[step.node as usize];
    let shape = |var: Var| tape.shape(var);
    let input =
        |i: usize| step.inputs.get(i).map_or_else(Span::default, |&operand| run.span(operand));
    let place =
        |buffer: Option<_>| buffer.map_or_else(Span::default, |buffer| run.plan.span(buffer));
    let (x, y, dy) = (input(0), run.span(step.output), place(step.d_output));
    let (stats, scratch) = run.extras(step);
    let target = |i: usize| step.d_inputs.get(i).copied().flatten();
    // Place of the first input's gradient, if it is wanted, and whether to add to it.
    let wanted = target(0).is_some();
    let (dx, accumulate) =
        (place(target(0).map(|t| t.buffer)), target(0).is_some_and(|t| t.accumulate));
    match node.op {
        Op::Patchify { images, patch_size, .. } => {
            let ([dy], [dx]) = run.arena.carve([dy], [dx]);
            if wanted {
                k::patch_embed::cpu::unpatchify(
                    patchify_shape(tape, images, patch_size),
                    dy,
                    dx,
                    accumulate,
                );
            }
        }
        Op::Linear { x: x_var, weight, bias, residual, ref low_rank } => {
            let kernel = linear_shape(shape(x_var), shape(node.output));
            let w = run.param(weight);
            let index = 1 + usize::from(residual.is_some());
            let (u, du) = (input(index), target(index));
            let term = low_rank.as_ref().map(|term| (term, run.param(term.weight)));
            let d_u = place(du.map(|t| t.buffer));
            let ([x, dy, u], [dx, d_u]) = run.arena.carve([x, dy, u], [dx, d_u]);
            if wanted {
                k::linear::cpu::backward_input(kernel, dy, w, dx, accumulate);
            }
            if let Some(range) = trained(layout, weight) {
                k::linear::cpu::backward_weight(kernel, dy, x, &mut grads[range]);
            }
            if let Some(range) = bias.and_then(|bias| trained(layout, bias)) {
                k::linear::cpu::backward_bias(kernel, dy, &mut grads[range]);
            }
            if let Some((term, b)) = term {
                let kernel = low_rank_shape(tape, term, shape(node.output));
                if let Some(du) = du {
                    k::low_rank::cpu::backward_input(kernel, dy, b, d_u, du.accumulate);
                }
                if let Some(range) = trained(layout, term.weight) {
                    k::low_rank::cpu::backward_weight(kernel, dy, u, &mut grads[range]);
                }
            }
        }
        Op::LayerNorm { x: x_var, weight, bias, eps } => {
            let kernel = layer_norm_shape(shape(x_var), eps);
            let w = run.param(weight);
            let ([x, dy, stats], [dx, scratch]) = run.arena.carve([x, dy, stats], [dx, scratch]);
            let (mean, rstd) = stats.split_at(kernel.rows);
            let parameters = match (trained(layout, weight), trained(layout, bias)) {
                (Some(weight), Some(bias)) => two_ranges(grads, weight, bias),
                _ => None,
            };
            let gradients = Gradients { dx: wanted.then_some((dx, accumulate)), parameters };
            k::layer_norm::cpu::backward(kernel, x, w, mean, rstd, dy, gradients, scratch);
        }
        Op::Gelu { .. } => {
            let ([x, dy], [dx]) = run.arena.carve([x, dy], [dx]);
            k::gelu::cpu::backward(x, dy, dx, accumulate);
        }
        Op::Scale { factor, .. } => {
            let ([dy], [dx]) = run.arena.carve([dy], [dx]);
            k::elementwise::cpu::scale(dy, factor, dx, accumulate);
        }
        // Only a residual: see the passes below.
        Op::Positions { .. } | Op::Add { .. } => {}
        Op::PrefixAttention { qkv, heads, .. } => {
            let kernel = attention_shape(tape, qkv, heads);
            let reads = [x, input(1), y, stats, dy];
            let ([x, prefix, y, lse, dy], [dx, scratch]) = run.arena.carve(reads, [dx, scratch]);
            let prefix = bytemuck::cast_slice(prefix);
            k::prefix_attention::cpu::backward(
                kernel, x, prefix, y, lse, dy, dx, accumulate, scratch,
            );
        }
        Op::GatherRows { x: x_var, index: index_var } => {
            let kernel = gather_shape(shape(x_var), shape(index_var));
            let ([dy, index], [dx]) = run.arena.carve([dy, input(1)], [dx]);
            k::gather_rows::cpu::backward(kernel, dy, bytemuck::cast_slice(index), dx, accumulate);
        }
        Op::Average { ref inputs } => {
            let share = 1.0 / inputs.len() as f32;
            for target in step.d_inputs.iter().flatten() {
                let ([dy], [dx]) = run.arena.carve([dy], [run.plan.span(target.buffer)]);
                k::elementwise::cpu::scale(dy, share, dx, target.accumulate);
            }
        }
        Op::MeanPool { x: x_var } => {
            let ([dy], [dx]) = run.arena.carve([dy], [dx]);
            k::mean_pool::cpu::backward(mean_pool_shape(shape(x_var)), dy, dx, accumulate);
        }
        Op::BatchNorm { x: x_var, eps, .. } => {
            let kernel = batch_norm_shape(shape(x_var), eps);
            let ([x, dy, stats], [dx]) = run.arena.carve([x, dy, stats], [dx]);
            let (mean, rstd) = stats.split_at(kernel.dim);
            k::batch_norm::cpu::backward(kernel, x, mean, rstd, dy, dx, accumulate);
        }
        Op::AttentionPool { x: x_var, query, key, value, heads } => {
            let kernel = attention_pool_shape(tape, x_var, query, heads);
            let weights = PoolWeights {
                query: run.param(query),
                key: run.param(key),
                value: run.param(value),
            };
            let ([x, kept, dy], [dx, scratch]) = run.arena.carve([x, stats, dy], [dx, scratch]);
            // They train together or not at all.
            let gradients = trained(layout, query).and_then(|query| {
                let ranges = [query, trained(layout, key)?, trained(layout, value)?];
                let [query, key, value] = grads.get_disjoint_mut(ranges).ok()?;
                Some(PoolGradients { query, key, value })
            });
            let dx = wanted.then_some((dx, accumulate));
            k::attention_pool::cpu::backward(kernel, x, weights, kept, dy, gradients, dx, scratch);
        }
        Op::PatchLoss { pred, patch_size, normalize, .. } => {
            let kernel = PatchLoss { rows: shape(pred).rows(), patch: patch_size, normalize };
            let ([pred, patches, targets], [dx]) = run.arena.carve([x, input(1), input(2)], [dx]);
            let targets = bytemuck::cast_slice(targets);
            k::patch_loss::cpu::backward(kernel, pred, patches, targets, scale, dx, accumulate);
        }
        Op::CrossEntropy { logits, .. } => {
            let kernel = cross_entropy_shape(shape(logits));
            let ([logits, labels], [dx]) = run.arena.carve([x, input(1)], [dx]);
            let labels = bytemuck::cast_slice(labels);
            k::softmax_cross_entropy::cpu::backward(kernel, logits, labels, scale, dx, accumulate);
        }
        Op::SoftCrossEntropy { logits, .. } => {
            let kernel = cross_entropy_shape(shape(logits));
            let ([x, targets], [dx]) = run.arena.carve([x, input(1)], [dx]);
            k::softmax_cross_entropy::cpu::backward_soft(kernel, x, targets, scale, dx, accumulate);
        }
    }
    for pass in &step.passes {
        let ([dy], [dx]) = run.arena.carve([dy], [run.plan.span(pass.buffer)]);
        if pass.accumulate {
            k::elementwise::cpu::accumulate(dy, dx);
        } else {
            dx.copy_from_slice(dy);
        }
    }
}

/// Place of a parameter's gradient, if it trains.
fn trained(layout: &ParamLayout, id: ParamId) -> Option<std::ops::Range<usize>> {
    let param = layout.get(id);
    param.spec.trainable.then(|| param.range.clone())
}

/// Two different ranges of one slice, to write.
fn two_ranges(
    slice: &mut [f32],
    a: std::ops::Range<usize>,
    b: std::ops::Range<usize>,
) -> Option<(&mut [f32], &mut [f32])> {
    slice.get_disjoint_mut([a, b]).ok().map(|[a, b]| (a, b))
}
