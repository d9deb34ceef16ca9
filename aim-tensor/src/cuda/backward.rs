//! The backward step of every op on a device.

use aim_kernels as k;
use aim_kernels::cuda::CudaError;
use aim_kernels::linear::cuda::Out;
use aim_kernels::patch_loss::PatchLoss;
use half::bf16;

use super::run::{Run, split_at};
use crate::kernel_shape::{
    attention_pool_shape, attention_shape, batch_norm_shape, cross_entropy_shape, gather_shape,
    layer_norm_shape, linear_shape, low_rank_shape, mean_pool_shape,
};
use crate::plan::{self, GeluForm, Step};
use crate::shape::DType;
use crate::tape::{Op, Var};

/// Puts the kernels on the stream that add a node's contribution to the gradients of its inputs and parameters.
pub(crate) fn run(run: &Run<'_>, step: &Step, scale: f32) -> Result<(), CudaError> {
    let (tape, gpu) = (run.tape, run.gpu);
    let node = &tape.nodes[step.node as usize];
    let output = node.output;
    let len = |var: Var| run.shape(var).len();
    let (stats, scratch) = run.extras(step);
    let target = |i: usize| step.d_inputs.get(i).copied().flatten();
    let accumulate = target(0).is_some_and(|t| t.accumulate);
    let dx_buffer = target(0).map(|t| t.buffer);
    match node.op {
        Op::Patchify { .. } => return Err(super::no_image_gradient()),
        Op::Linear { x, .. } => linear(run, step, x)?,
        Op::LayerNorm { x, weight, bias, eps } => {
            let kernel = layer_norm_shape(run.shape(x), eps);
            let (mean, rstd) = split_at(stats, kernel.rows);
            let layout = &tape.layout;
            let gradients = run.params.grad(layout, weight).zip(run.params.grad(layout, bias));
            let gradients = gradients.map(|((dweight, _), (dbias, _))| (dweight, dbias));
            let dx = dx_buffer.map(|buffer| (run.grad(Some(buffer), x), accumulate));
            let dy = run.grad(step.d_output, output);
            let w = run.params.vector(weight);
            let x = run.input(step.inputs[0], len(x));
            k::layer_norm::cuda::backward(
                gpu, kernel, x, w, mean, rstd, dy, dx, gradients, scratch,
            )?;
        }
        Op::Gelu { x } => {
            let (dy, dx) = (run.grad(step.d_output, output), run.grad(dx_buffer, x));
            let x = run.input(step.inputs[0], len(x));
            match run.plan.gelu {
                GeluForm::Erf => k::gelu::cuda::backward(gpu, x, dy, dx, accumulate)?,
                GeluForm::Tanh if !accumulate => k::gelu::cuda::backward_tanh(gpu, x, dy, dx)?,
                GeluForm::Tanh => return Err(super::tanh_of_shared()),
            }
        }
        Op::Scale { x, factor } => {
            let (dy, dx) = (run.grad(step.d_output, output), run.grad(dx_buffer, x));
            k::elementwise::cuda::scale(gpu, dy, factor, dx, accumulate)?;
        }
        // Only a residual: see the passes below.
        Op::Positions { .. } | Op::Add { .. } => {}
        Op::PrefixAttention { qkv, prefix, heads } => {
            let kernel = attention_shape(tape, qkv, heads);
            let prefix = run.input(step.inputs[1], len(prefix));
            let (dy, dqkv) = (run.grad(step.d_output, output), run.grad(dx_buffer, qkv));
            let qkv = run.input(step.inputs[0], len(qkv));
            let out = run.input(step.output, len(output));
            k::prefix_attention::cuda::backward(
                gpu, kernel, qkv, prefix, out, stats, dy, dqkv, accumulate, scratch,
            )?;
        }
        Op::GatherRows { x, index } => {
            let kernel = gather_shape(run.shape(x), run.shape(index));
            let index = run.input(step.inputs[1], len(index));
            let (dy, dx) = (run.grad(step.d_output, output), run.grad(dx_buffer, x));
            k::gather_rows::cuda::backward(gpu, kernel, dy, index, dx, accumulate)?;
        }
        Op::Average { ref inputs } => {
            let share = 1.0 / inputs.len() as f32;
            for (&x, target) in inputs.iter().zip(&step.d_inputs) {
                let Some(target) = target else { continue };
                let (dx, accumulate) = (run.grad(Some(target.buffer), x), target.accumulate);
                if run.dtype(output) == DType::F32 {
                    let dy = run.grad(step.d_output, output);
                    k::elementwise::cuda::scale_to_bf16(gpu, dy, share, dx, accumulate)?;
                } else {
                    let dy = run.grad(step.d_output, output);
                    k::elementwise::cuda::scale(gpu, dy, share, dx, accumulate)?;
                }
            }
        }
        Op::MeanPool { x } => {
            let (dy, dx) = (run.grad(step.d_output, output), run.grad(dx_buffer, x));
            let kernel = mean_pool_shape(run.shape(x));
            k::mean_pool::cuda::backward(gpu, kernel, dy, dx, accumulate)?;
        }
        Op::BatchNorm { x, eps, .. } => {
            let kernel = batch_norm_shape(run.shape(x), eps);
            let (mean, rstd) = split_at(stats, kernel.dim);
            let (dy, dx) = (run.grad(step.d_output, output), run.grad(dx_buffer, x));
            let x = run.input(step.inputs[0], len(x));
            k::batch_norm::cuda::backward(gpu, kernel, x, mean, rstd, dy, dx, accumulate, scratch)?;
        }
        Op::AttentionPool { x, query, key, value, heads } => {
            let kernel = attention_pool_shape(tape, x, query, heads);
            let weights = run.pool_weights([query, key, value]);
            let dx = dx_buffer.map(|buffer| (run.grad(Some(buffer), x), accumulate));
            let grad = |id| run.params.grad(&tape.layout, id);
            let gradients = grad(query).zip(grad(key)).zip(grad(value));
            let gradients = gradients.map(|((query, key), value)| {
                k::attention_pool::cuda::WeightGradients { query, key, value }
            });
            let dy = run.grad(step.d_output, output);
            let x = run.input(step.inputs[0], len(x));
            k::attention_pool::cuda::backward(
                gpu, kernel, x, weights, stats, dy, gradients, dx, scratch,
            )?;
        }
        Op::SoftCrossEntropy { logits, targets } => {
            let kernel = cross_entropy_shape(run.shape(logits));
            let targets = run.input(step.inputs[1], len(targets));
            let dx = run.grad(dx_buffer, logits);
            let logits = run.input(step.inputs[0], len(logits));
            k::softmax_cross_entropy::cuda::backward_soft(
                gpu, kernel, logits, targets, scale, dx, accumulate,
            )?;
        }
        Op::PatchLoss { pred, patches, targets, patch_size, normalize } => {
            let kernel = PatchLoss { rows: run.shape(pred).rows(), patch: patch_size, normalize };
            let dpred = run.grad(dx_buffer, pred);
            let patches = run.input(step.inputs[1], len(patches));
            let targets = run.input(step.inputs[2], len(targets));
            let pred = run.input(step.inputs[0], len(pred));
            k::patch_loss::cuda::backward(gpu, kernel, pred, patches, targets, scale, dpred)?;
        }
        Op::CrossEntropy { logits, labels } => {
            let kernel = cross_entropy_shape(run.shape(logits));
            let labels = run.input(step.inputs[1], len(labels));
            let dx = run.grad(dx_buffer, logits);
            let logits = run.input(step.inputs[0], len(logits));
            k::softmax_cross_entropy::cuda::backward(
                gpu, kernel, logits, labels, scale, dx, accumulate,
            )?;
        }
    }
    // What is handed on unchanged has its output's type, and every such output is bf16.
    let dy = run.grad::<bf16>(step.d_output, output);
    for pass in &step.passes {
        let dx = run.grad(Some(pass.buffer), output);
        if pass.accumulate {
            k::elementwise::cuda::accumulate(gpu, dy, dx)?;
        } else {
            dx.copy_from(gpu, dy)?;
        }
    }
    Ok(())
}

fn linear(run: &Run<'_>, step: &Step, x: Var) -> Result<(), CudaError> {
    let (gpu, layout) = (run.gpu, &run.tape.layout);
    let node = &run.tape.nodes[step.node as usize];
    let Op::Linear { weight, bias, residual, ref low_rank, .. } = node.op else { return Ok(()) };
    let kernel = linear_shape(run.shape(x), run.shape(node.output));
    let dy_buffer = step.d_output.map_or(plan::Operand::Absent, plan::Operand::Buffer);
    let (dy, rest) = run.matrix(node.output, dy_buffer, run.extra(step.scratch))?;
    if let Some(target) = step.d_inputs[0] {
        let w = run.params.matrix(weight);
        match step.pre.map(|pre| run.grad(Some(pre), x)) {
            None => {
                let dx = run.grad_out(target.buffer, x);
                k::linear::cuda::backward_input(gpu, kernel, dy, w, dx, target.accumulate)?;
            }
            // Past the GELU, whose input and output have one shape.
            Some(pre) => {
                let dx = run.grad(Some(target.buffer), x);
                if k::linear::cuda::fuses_gelu_backward(gpu, kernel, dy.stride, w.stride)? {
                    k::linear::cuda::backward_input_gelu(gpu, kernel, dy, w, pre, dx)?;
                } else {
                    k::linear::cuda::backward_input(gpu, kernel, dy, w, Out::Bf16(dx), false)?;
                    k::gelu::cuda::backward_tanh(gpu, pre, dx, dx)?;
                }
            }
        }
    }
    if let Some(term) = low_rank {
        let kernel = low_rank_shape(run.tape, term, run.shape(node.output));
        let at = 1 + usize::from(residual.is_some());
        if let Some(target) = step.d_inputs[at] {
            let (b, du) = (run.params.matrix(term.weight), run.grad(Some(target.buffer), term.u));
            k::low_rank::cuda::backward_input(gpu, kernel, dy, b, du, target.accumulate)?;
        }
        if let Some((db, stride)) = run.params.grad(layout, term.weight) {
            let u = run.bf16_matrix(term.u, step.inputs[at])?;
            k::low_rank::cuda::backward_weight(gpu, kernel, dy, u, db, stride)?;
        }
    }
    let mut rest = rest;
    if let Some((dweight, stride)) = run.params.grad(layout, weight) {
        let (x, left) = run.matrix(x, step.inputs[0], rest)?;
        let product = Run::over_padding(kernel, &x, stride);
        k::linear::cuda::backward_weight(gpu, product, dy, x, dweight, stride)?;
        rest = left;
    }
    let Some((dbias, _)) = bias.and_then(|bias| run.params.grad(layout, bias)) else {
        return Ok(());
    };
    let (rows, outputs) = (kernel.rows, kernel.outputs);
    match run.dtype(node.output) {
        // The exact gradient rather than the operand made of it.
        DType::F32 => {
            let dy = run.input::<f32>(dy_buffer, rows * outputs);
            k::linear::bias::backward_f32(gpu, rows, outputs, dy, outputs, dbias, rest)
        }
        _ => k::linear::bias::backward_bf16(gpu, rows, outputs, dy.data, dy.stride, dbias, rest),
    }
}
