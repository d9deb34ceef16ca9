//! The forward step of every op on a device.

use aim_kernels as k;
use aim_kernels::cuda::CudaError;
use aim_kernels::linear::cuda::Out;
use aim_kernels::{patch_loss::PatchLoss, positions::Positions};

use super::run::{Run, split_at};
use crate::kernel_shape::{
    attention_pool_shape, attention_shape, batch_norm_shape, cross_entropy_shape, gather_shape,
    layer_norm_shape, linear_shape, low_rank_shape, mean_pool_shape, patchify_shape,
};
use crate::parameters::ParamId;
use crate::plan::{GeluForm, Step};
use crate::shape::DType;
use crate::tape::{Op, Var};

/// Puts a node's kernels on the stream.
pub(crate) fn run(run: &Run<'_>, step: &Step) -> Result<(), CudaError> {
    let (tape, gpu) = (run.tape, run.gpu);
    let node = &tape.nodes[step.node as usize];
    let len = |var| run.shape(var).len();
    let output = step.output;
    let (stats, scratch) = run.extras(step);
    match node.op {
        Op::Patchify { images, patch_size, normalize: (mean, std) } => {
            let kernel = patchify_shape(tape, images, patch_size);
            let y = run.input(output, len(node.output));
            let pixels = kernel.image_len();
            match run.dtype(images) {
                DType::U8 => k::patch_embed::cuda::patchify_u8(
                    gpu,
                    kernel,
                    run.input(step.inputs[0], pixels),
                    mean,
                    std,
                    y,
                ),
                _ => k::patch_embed::cuda::patchify(
                    gpu,
                    kernel,
                    run.input(step.inputs[0], pixels),
                    y,
                ),
            }
        }
        Op::Linear { x, weight, .. } if step.pre.is_some() => linear_gelu(run, step, x, weight),
        Op::Linear { x, weight, bias, residual, ref low_rank } => {
            let kernel = linear_shape(run.shape(x), run.shape(node.output));
            let (x, _) = run.matrix(x, step.inputs[0], scratch)?;
            let residual = residual.map(|var| run.input(step.inputs[1], len(var)));
            let (w, y) = (run.params.matrix(weight), run.out(node.output, output));
            let product = Run::over_padding(kernel, &x, w.stride);
            let at = 1 + usize::from(residual.is_some());
            k::linear::cuda::forward(gpu, product, x, w, residual, y)?;
            if let Some(term) = low_rank {
                let kernel = low_rank_shape(tape, term, run.shape(node.output));
                let u = run.bf16_matrix(term.u, step.inputs[at])?;
                let Out::Bf16(y) = y else { return Err(super::low_rank_of_f32()) };
                k::low_rank::cuda::add(gpu, kernel, u, run.params.matrix(term.weight), y)?;
            }
            let Some(bias) = bias.map(|bias| run.params.vector(bias)) else { return Ok(()) };
            match run.out(node.output, output) {
                Out::Bf16(y) => {
                    k::linear::bias::add_bf16(gpu, kernel.rows, kernel.outputs, bias, y)
                }
                Out::F32(y) => k::linear::bias::add_f32(gpu, kernel.rows, kernel.outputs, bias, y),
            }
        }
        Op::LayerNorm { x, weight, bias, eps } => {
            let kernel = layer_norm_shape(run.shape(x), eps);
            let (mean, rstd) = split_at(stats, kernel.rows);
            let (w, b) = (run.params.vector(weight), run.params.vector(bias));
            let (x, y) = (run.input(step.inputs[0], len(x)), run.input(output, len(x)));
            k::layer_norm::cuda::forward(gpu, kernel, x, w, b, y, mean, rstd)
        }
        Op::Gelu { x } => {
            let (x, y) = (run.input(step.inputs[0], len(x)), run.input(output, len(x)));
            match run.plan.gelu {
                GeluForm::Erf => k::gelu::cuda::forward(gpu, x, y),
                GeluForm::Tanh => k::gelu::cuda::forward_tanh(gpu, x, y),
            }
        }
        Op::Positions { x, table, index } => {
            let kernel = Positions { rows: run.shape(x).rows(), dim: run.shape(x).last() };
            let table = run.input(step.inputs[1], len(table));
            let index = run.input(step.inputs[2], len(index));
            let (x, y) = (run.input(step.inputs[0], len(x)), run.input(output, len(x)));
            k::positions::cuda::forward(gpu, kernel, x, table, index, y)
        }
        Op::PrefixAttention { qkv, prefix, heads } => {
            let kernel = attention_shape(tape, qkv, heads);
            let prefix = run.input(step.inputs[1], len(prefix));
            let qkv = run.input(step.inputs[0], len(qkv));
            let out = run.input(output, len(node.output));
            k::prefix_attention::cuda::forward(gpu, kernel, qkv, prefix, out, stats)
        }
        Op::GatherRows { x, index } => {
            let kernel = gather_shape(run.shape(x), run.shape(index));
            let index = run.input(step.inputs[1], len(index));
            let x = run.input(step.inputs[0], len(x));
            k::gather_rows::cuda::forward(
                gpu,
                kernel,
                x,
                index,
                run.input(output, len(node.output)),
            )
        }
        Op::Scale { x, factor } => {
            let (x, y) = (run.input(step.inputs[0], len(x)), run.input(output, len(x)));
            k::elementwise::cuda::scale(gpu, x, factor, y, false)
        }
        Op::Add { a, b } => {
            let (a, b) = (run.input(step.inputs[0], len(a)), run.input(step.inputs[1], len(b)));
            k::elementwise::cuda::add(gpu, a, b, run.input(output, len(node.output)))
        }
        Op::Average { ref inputs } => {
            let share = 1.0 / inputs.len() as f32;
            let y = run.out(node.output, output);
            for (i, &x) in inputs.iter().enumerate() {
                let x = run.input(step.inputs[i], len(x));
                match y {
                    Out::Bf16(y) => k::elementwise::cuda::scale(gpu, x, share, y, i > 0),
                    Out::F32(y) => k::elementwise::cuda::scale_to_f32(gpu, x, share, y, i > 0),
                }?;
            }
            Ok(())
        }
        Op::MeanPool { x } => {
            let kernel = mean_pool_shape(run.shape(x));
            let x = run.input(step.inputs[0], len(x));
            k::mean_pool::cuda::forward(gpu, kernel, x, run.input(output, len(node.output)))
        }
        Op::BatchNorm { x, running, eps } => {
            let kernel = batch_norm_shape(run.shape(x), eps);
            let (x, y) = (run.input(step.inputs[0], len(x)), run.input(output, len(x)));
            let (mean, rstd) = split_at(stats, kernel.dim);
            match running {
                None => {
                    k::batch_norm::cuda::forward_training(gpu, kernel, x, y, mean, rstd, scratch)
                }
                // They are no matrix operands: the exact masters are joined into the statistics' place.
                Some((running_mean, running_variance)) => {
                    k::cast::cuda::join(gpu, run.params.vector(running_mean), mean)?;
                    k::cast::cuda::join(gpu, run.params.vector(running_variance), rstd)?;
                    k::batch_norm::cuda::forward_evaluation(gpu, kernel, x, mean, rstd, y)
                }
            }
        }
        Op::AttentionPool { x, query, key, value, heads } => {
            let kernel = attention_pool_shape(tape, x, query, heads);
            let weights = run.pool_weights([query, key, value]);
            let x = run.input(step.inputs[0], len(x));
            let out = run.input(output, len(node.output));
            k::attention_pool::cuda::forward(gpu, kernel, x, weights, out, stats)
        }
        Op::SoftCrossEntropy { logits, targets } => {
            let kernel = cross_entropy_shape(run.shape(logits));
            let targets = run.input(step.inputs[1], len(targets));
            let logits = run.input(step.inputs[0], len(logits));
            let loss = run.input(output, len(node.output));
            k::softmax_cross_entropy::cuda::forward_soft(gpu, kernel, logits, targets, loss)
        }
        Op::PatchLoss { pred, patches, targets, patch_size, normalize } => {
            let kernel = PatchLoss { rows: run.shape(pred).rows(), patch: patch_size, normalize };
            let pred = run.input(step.inputs[0], len(pred));
            let patches = run.input(step.inputs[1], len(patches));
            let targets = run.input(step.inputs[2], len(targets));
            let loss = run.input(output, len(node.output));
            k::patch_loss::cuda::forward(gpu, kernel, pred, patches, targets, loss)
        }
        Op::CrossEntropy { logits, labels } => {
            let kernel = cross_entropy_shape(run.shape(logits));
            let labels = run.input(step.inputs[1], len(labels));
            let logits = run.input(step.inputs[0], len(logits));
            let loss = run.input(output, len(node.output));
            k::softmax_cross_entropy::cuda::forward(gpu, kernel, logits, labels, loss)
        }
    }
}

/// A product and the tanh form of the GELU of it, in one kernel where the library has one.
fn linear_gelu(run: &Run<'_>, step: &Step, x: Var, weight: ParamId) -> Result<(), CudaError> {
    let gpu = run.gpu;
    let output = run.tape.nodes[step.node as usize].output;
    let kernel = linear_shape(run.shape(x), run.shape(output));
    let (x, w) = (run.matrix(x, step.inputs[0], run.extra(None))?.0, run.params.matrix(weight));
    let pre = run.grad(step.pre, output);
    let y = run.input(step.output, run.shape(output).len());
    if k::linear::cuda::fuses_gelu(gpu, kernel, x.stride, w.stride)? {
        return k::linear::cuda::forward_gelu(gpu, kernel, x, w, pre, y);
    }
    k::linear::cuda::forward(gpu, kernel, x, w, None, Out::Bf16(pre))?;
    k::gelu::cuda::forward_tanh(gpu, pre, y)
}
