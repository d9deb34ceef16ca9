//! Every kernel at the shapes of a training step.
//!
//! The number behind each part is the one by which the work asks for it. Vectors of parameters are two parts, the halves
//! of their masters.

use super::sets::Part;
use super::{Case, Sizes};
use crate::adamw::{self, AdamW};
use crate::batch_norm::{self, BatchNorm};
use crate::cast;
use crate::elementwise;
use crate::gather_rows::{self, GatherRows};
use crate::gelu;
use crate::global_norm;
use crate::layer_norm::{self, LayerNorm};
use crate::linear::bias;
use crate::mean_pool::{self, MeanPool};
use crate::patch_embed::{self, PatchEmbed};
use crate::patch_loss::{self, PatchLoss};
use crate::positions::{self, Positions};
use crate::prefix_attention::{self, PrefixAttention};
use crate::softmax_cross_entropy::{self, SoftmaxCrossEntropy};

const EPS: f32 = 1e-6;
/// Bytes of a bf16 and of an f32.
const BF16: usize = 2;
const F32: usize = 4;

fn shape(rows: usize, columns: usize) -> String {
    format!("{rows} x {columns}")
}

/// The kernels that run on all tokens at the trunk's width.
pub fn trunk_kernels(sizes: &Sizes) -> Vec<Case> {
    let (tokens, dim) = (sizes.all_tokens(), sizes.dim);
    let mut cases = vec![
        patchify(sizes),
        pad("patches", tokens, sizes),
        bias_add_bf16(tokens, dim),
        bias_backward_bf16(tokens, dim),
        positions(sizes, tokens, dim),
    ];
    cases.extend(layer_norm(tokens, dim));
    cases.extend(attention(sizes));
    cases.extend(gelu(tokens, sizes.mlp_ratio * dim));
    cases.extend(gather(sizes));
    cases.extend(elementwise(tokens, dim));
    cases
}

/// The kernels that run on the predicting rows, at the pixel head's width.
pub fn head_kernels(sizes: &Sizes) -> Vec<Case> {
    let (rows, width) = (sizes.rows.len(), sizes.head_width);
    let mut cases = vec![
        pad("predictions", rows, sizes),
        bias_add_bf16(rows, width),
        bias_backward_bf16(rows, width),
        bias_add_f32(rows, sizes.patch_dim()),
        bias_backward_f32(rows, sizes.patch_dim()),
        positions(sizes, rows, width),
    ];
    cases.extend(layer_norm(rows, width));
    cases.extend(gelu(rows, sizes.mlp_ratio * width));
    cases.extend(patch_loss(sizes));
    cases
}

/// The kernels of probes on features of that width, for 1000 classes.
pub fn probe_kernels(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(mean_pool(sizes));
    cases.extend(batch_norm(16 * sizes.images, sizes.dim));
    cases.extend(cross_entropy(16 * sizes.images, 1000));
    cases
}

/// A copy of `bytes` bytes within the device's memory, the yardstick for all kernels.
pub fn copy(bytes: usize) -> Case {
    let parts = vec![Part::bits(bytes), Part::output(bytes)];
    Case::new("copy", format!("{} MiB", bytes >> 20), parts, |gpu, sets, n| {
        sets.get::<u8>(n, 1).copy_from(gpu, sets.get(n, 0))
    })
}

/// The kernels that run over all of `len` parameters.
pub fn optimizer_kernels(len: usize) -> Vec<Case> {
    let masters = || [Part::bf16(len).scaled(0.02), Part::bits(BF16 * len)];
    let of = || format!("{len} parameters");
    let [hi, lo] = masters().map(Part::updated);
    // 0, 1 masters; 2 gradients; 3, 4 moments
    let moment = || Part::output(F32 * len).updated();
    let parts = vec![hi, lo, Part::f32(len).scaled(1e-3), moment(), moment()];
    let step = Case::new("adamw", of(), parts, |gpu, sets, n| {
        let settings = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.05,
            step: 10 + n as u64,
            grad_scale: 1.0,
        };
        let (grads, m, v) = (sets.get(n, 2), sets.get(n, 3), sets.get(n, 4));
        adamw::cuda::step(gpu, settings, sets.split(n, 0), grads, m, v)
    });
    let sums = global_norm::cuda::scratch_len(len);
    let parts = vec![Part::f32(len), Part::scratch(8 * sums)];
    let norm = Case::new("global_norm", of(), parts, |gpu, sets, n| {
        global_norm::cuda::sum_of_squares(gpu, sets.get(n, 0), sets.get(n, 1)).map(|_| ())
    });
    let zero = Case::new("zero gradients", of(), vec![Part::output(F32 * len)], |gpu, sets, n| {
        sets.get::<f32>(n, 0).fill_bytes(gpu, 0)
    });
    let output = || Part::output(BF16 * len);
    let parts = vec![Part::f32(len), output(), output()];
    let split = Case::new("cast/split", of(), parts, |gpu, sets, n| {
        cast::cuda::split(gpu, sets.get(n, 0), sets.split(n, 1))
    });
    let [hi, lo] = masters();
    let parts = vec![hi, lo, Part::output(F32 * len)];
    let join = Case::new("cast/join", of(), parts, |gpu, sets, n| {
        cast::cuda::join(gpu, sets.split(n, 0), sets.get(n, 2))
    });
    let parts = vec![Part::bf16(len), Part::output(F32 * len)];
    let to_f32 = Case::new("cast/to_f32", of(), parts, |gpu, sets, n| {
        cast::cuda::to_f32(gpu, sets.get(n, 0), sets.get(n, 1))
    });
    vec![step, norm, zero, split, join, to_f32]
}

/// The halves of a vector of parameters.
fn vector(len: usize) -> [Part; 2] {
    [Part::bf16(len), Part::bits(BF16 * len)]
}

fn patchify(sizes: &Sizes) -> Case {
    let Sizes { images, side, patch, .. } = *sizes;
    let kernel = PatchEmbed { batch: images, height: side, width: side, patch };
    let pixels = kernel.image_len();
    let parts = vec![Part::bits(pixels), Part::output(F32 * pixels)];
    let shape = format!("{images} x {side} x {side} x 3");
    Case::new("patch_embed/patchify_u8", shape, parts, move |gpu, sets, n| {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let (pixels, patches) = (sets.get(n, 0), sets.get(n, 1));
        patch_embed::cuda::patchify_u8(gpu, kernel, pixels, mean, std, patches)
    })
}

/// f32 rows as bf16 rows whose length 16 bytes divide.
fn pad(what: &str, rows: usize, sizes: &Sizes) -> Case {
    let (columns, stride) = (sizes.patch_dim(), sizes.patch_stride());
    let parts = vec![Part::f32(rows * columns), Part::output(BF16 * rows * stride)];
    Case::new(format!("cast/{what}"), shape(rows, columns), parts, move |gpu, sets, n| {
        cast::cuda::to_bf16(gpu, rows, columns, sets.get(n, 0), sets.get(n, 1), stride)
    })
}

fn bias_add_bf16(rows: usize, outputs: usize) -> Case {
    let [hi, lo] = vector(outputs);
    let parts = vec![Part::bf16(rows * outputs).updated(), hi, lo];
    Case::new("bias/add_bf16", shape(rows, outputs), parts, move |gpu, sets, n| {
        bias::add_bf16(gpu, rows, outputs, sets.split(n, 1), sets.get(n, 0))
    })
}

fn bias_add_f32(rows: usize, outputs: usize) -> Case {
    let [hi, lo] = vector(outputs);
    let parts = vec![Part::f32(rows * outputs).updated(), hi, lo];
    Case::new("bias/add_f32", shape(rows, outputs), parts, move |gpu, sets, n| {
        bias::add_f32(gpu, rows, outputs, sets.split(n, 1), sets.get(n, 0))
    })
}

fn bias_backward_bf16(rows: usize, outputs: usize) -> Case {
    let sums = Part::scratch(F32 * bias::backward_scratch(rows, outputs));
    let parts = vec![Part::bf16(rows * outputs), Part::output(F32 * outputs).updated(), sums];
    Case::new("bias/backward_bf16", shape(rows, outputs), parts, move |gpu, sets, n| {
        let (dy, dbias, scratch) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
        bias::backward_bf16(gpu, rows, outputs, dy, outputs, dbias, scratch)
    })
}

fn bias_backward_f32(rows: usize, outputs: usize) -> Case {
    let sums = Part::scratch(F32 * bias::backward_scratch(rows, outputs));
    let parts = vec![Part::f32(rows * outputs), Part::output(F32 * outputs).updated(), sums];
    Case::new("bias/backward_f32", shape(rows, outputs), parts, move |gpu, sets, n| {
        let (dy, dbias, scratch) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
        bias::backward_f32(gpu, rows, outputs, dy, outputs, dbias, scratch)
    })
}

fn positions(sizes: &Sizes, rows: usize, dim: usize) -> Case {
    let tokens = sizes.tokens();
    let index: Vec<i32> = (0..rows).map(|row| (row % tokens) as i32).collect();
    let table = Part::f32(tokens * dim);
    let parts =
        vec![Part::bf16(rows * dim), table, Part::index(&index), Part::output(BF16 * rows * dim)];
    let kernel = Positions { rows, dim };
    Case::new("positions/forward", shape(rows, dim), parts, move |gpu, sets, n| {
        let (table, index) = (sets.get(n, 1), sets.get(n, 2));
        positions::cuda::forward(gpu, kernel, sets.get(n, 0), table, index, sets.get(n, 3))
    })
}

fn layer_norm(rows: usize, dim: usize) -> [Case; 2] {
    let kernel = LayerNorm { rows, dim, eps: EPS };
    let x = || Part::bf16(rows * dim);
    let statistics = || Part::f32(rows);
    let [w_hi, w_lo] = vector(dim);
    let [b_hi, b_lo] = vector(dim);
    // 0 x; 1, 2 weight; 3, 4 bias; 5 y; 6, 7 mean and rstd
    let y = Part::output(BF16 * rows * dim);
    let (mean, rstd) = (Part::output(F32 * rows), Part::output(F32 * rows));
    let parts = vec![x(), w_hi, w_lo, b_hi, b_lo, y, mean, rstd];
    let forward = Case::new("layer_norm/forward", shape(rows, dim), parts, move |gpu, sets, n| {
        let (weight, bias) = (sets.split(n, 1), sets.split(n, 3));
        let (y, mean, rstd) = (sets.get(n, 5), sets.get(n, 6), sets.get(n, 7));
        layer_norm::cuda::forward(gpu, kernel, sets.get(n, 0), weight, bias, y, mean, rstd)
    });
    // 0 x; 1, 2 weight; 3, 4 mean and rstd; 5 dy; 6 dx, which a residual's gradient is in; 7, 8 dweight and dbias
    let [w_hi, w_lo] = vector(dim);
    let gradient = || Part::output(F32 * dim).updated();
    let scratch = Part::scratch(F32 * layer_norm::cuda::backward_scratch(kernel));
    let parts = vec![x(), w_hi, w_lo, statistics(), statistics(), x(), x().updated()];
    let parts = parts.into_iter().chain([gradient(), gradient(), scratch]).collect();
    let backward =
        Case::new("layer_norm/backward", shape(rows, dim), parts, move |gpu, sets, n| {
            let (x, weight, mean, rstd) =
                (sets.get(n, 0), sets.split(n, 1), sets.get(n, 3), sets.get(n, 4));
            let (dy, dx) = (sets.get(n, 5), Some((sets.get(n, 6), true)));
            let parameters = Some((sets.get(n, 7), sets.get(n, 8)));
            let scratch = sets.get(n, 9);
            layer_norm::cuda::backward(
                gpu, kernel, x, weight, mean, rstd, dy, dx, parameters, scratch,
            )
        });
    [forward, backward]
}

/// Operations: two products forward, five backward, since the scores are not kept.
fn attention(sizes: &Sizes) -> [Case; 2] {
    let (batch, tokens, heads) = (sizes.images, sizes.tokens(), sizes.heads);
    let kernel = PrefixAttention { batch, tokens, heads, head_dim: sizes.dim / heads };
    let len = batch * tokens * sizes.dim;
    let rows = batch * heads * tokens;
    let product = 2.0 * sizes.visible() * sizes.dim as f64;
    let dense = 2.0 * kernel.macs() as f64;
    let shape = format!("{batch} x {tokens} x {heads} x {}", kernel.head_dim);
    let prefix = || Part::index(&sizes.prefix);
    // 0 qkv, 1 prefix, 2 out, 3 lse
    let (out, lse) = (Part::output(BF16 * len), Part::output(F32 * rows));
    let parts = vec![Part::bf16(3 * len), prefix(), out, lse];
    let forward = Case::new("prefix_attention/forward", &shape, parts, move |gpu, sets, n| {
        let (qkv, prefix) = (sets.get(n, 0), sets.get(n, 1));
        prefix_attention::cuda::forward(gpu, kernel, qkv, prefix, sets.get(n, 2), sets.get(n, 3))
    });
    // 4 dout, 5 dqkv. The forward pass fills 2 and 3 first: any other lse would make infinities.
    let scratch = Part::scratch(F32 * prefix_attention::cuda::backward_scratch(kernel));
    let parts = vec![Part::bf16(3 * len), prefix(), Part::bf16(len), Part::f32(rows)];
    let more = [Part::bf16(len), Part::output(BF16 * 3 * len), scratch];
    let parts = parts.into_iter().chain(more).collect();
    let backward = Case::new("prefix_attention/backward", &shape, parts, move |gpu, sets, n| {
        let (qkv, prefix, out, lse) =
            (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2), sets.get(n, 3));
        let (dout, dqkv, scratch) = (sets.get(n, 4), sets.get(n, 5), sets.get(n, 6));
        prefix_attention::cuda::backward(
            gpu, kernel, qkv, prefix, out, lse, dout, dqkv, false, scratch,
        )
    });
    let backward = backward.first(move |gpu, sets, n| {
        let (qkv, prefix) = (sets.get(n, 0), sets.get(n, 1));
        prefix_attention::cuda::forward(gpu, kernel, qkv, prefix, sets.get(n, 2), sets.get(n, 3))
    });
    [forward.flops(2.0 * product, 2.0 * dense), backward.flops(5.0 * product, 5.0 * dense)]
}

fn gelu(rows: usize, width: usize) -> [Case; 2] {
    let len = rows * width;
    let output = || Part::output(BF16 * len);
    let parts = vec![Part::bf16(len), output()];
    let forward = Case::new("gelu/forward", shape(rows, width), parts, |gpu, sets, n| {
        gelu::cuda::forward(gpu, sets.get(n, 0), sets.get(n, 1))
    });
    let parts = vec![Part::bf16(len), Part::bf16(len), output()];
    let backward = Case::new("gelu/backward", shape(rows, width), parts, |gpu, sets, n| {
        gelu::cuda::backward(gpu, sets.get(n, 0), sets.get(n, 1), sets.get(n, 2), false)
    });
    [forward, backward]
}

fn gather(sizes: &Sizes) -> [Case; 2] {
    let (sources, rows, dim) = (sizes.all_tokens(), sizes.rows.len(), sizes.dim);
    let kernel = GatherRows { sources, rows, dim };
    let (all, picked) = (BF16 * sources * dim, BF16 * rows * dim);
    let index = || Part::index(&sizes.rows);
    let shape = format!("{rows} of {sources} x {dim}");
    let parts = vec![Part::bf16(sources * dim).moving(picked), index(), Part::output(picked)];
    let forward = Case::new("gather_rows/forward", &shape, parts, move |gpu, sets, n| {
        gather_rows::cuda::forward(gpu, kernel, sets.get(n, 0), sets.get(n, 1), sets.get(n, 2))
    });
    let parts = vec![Part::bf16(rows * dim), index(), Part::output(all)];
    let backward = Case::new("gather_rows/backward", &shape, parts, move |gpu, sets, n| {
        let (dy, index, dx) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
        gather_rows::cuda::backward(gpu, kernel, dy, index, dx, false)
    });
    [forward, backward]
}

fn elementwise(rows: usize, dim: usize) -> [Case; 2] {
    let len = rows * dim;
    let (x, y) = (|| Part::bf16(len), || Part::output(BF16 * len));
    let add =
        Case::new("elementwise/add", shape(rows, dim), vec![x(), x(), y()], |gpu, sets, n| {
            elementwise::cuda::add(gpu, sets.get(n, 0), sets.get(n, 1), sets.get(n, 2))
        });
    let scale = Case::new("elementwise/scale", shape(rows, dim), vec![x(), y()], |gpu, sets, n| {
        elementwise::cuda::scale(gpu, sets.get(n, 0), 0.5, sets.get(n, 1), false)
    });
    [add, scale]
}

fn patch_loss(sizes: &Sizes) -> [Case; 2] {
    let (rows, dim) = (sizes.rows.len(), sizes.patch_dim());
    let kernel = PatchLoss { rows, patch: sizes.patch, normalize: true };
    let (pred, patches) =
        (|| Part::f32(rows * dim), || Part::f32(sizes.all_tokens() * dim).moving(F32 * rows * dim));
    let targets = || Part::index(&sizes.targets);
    let parts = vec![pred(), patches(), targets(), Part::output(F32 * rows)];
    let forward = Case::new("patch_loss/forward", shape(rows, dim), parts, move |gpu, sets, n| {
        let (patches, targets) = (sets.get(n, 1), sets.get(n, 2));
        patch_loss::cuda::forward(gpu, kernel, sets.get(n, 0), patches, targets, sets.get(n, 3))
    });
    let parts = vec![pred(), patches(), targets(), Part::output(F32 * rows * dim)];
    let backward =
        Case::new("patch_loss/backward", shape(rows, dim), parts, move |gpu, sets, n| {
            let (pred, patches, targets) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
            patch_loss::cuda::backward(gpu, kernel, pred, patches, targets, 1e-4, sets.get(n, 3))
        });
    [forward, backward]
}

fn mean_pool(sizes: &Sizes) -> [Case; 2] {
    let kernel = MeanPool { batch: sizes.images, tokens: sizes.tokens(), dim: sizes.dim };
    let (all, pooled) = (sizes.all_tokens() * sizes.dim, sizes.images * sizes.dim);
    let text = shape(sizes.all_tokens(), sizes.dim);
    let parts = vec![Part::f32(all), Part::output(F32 * pooled)];
    let forward = Case::new("mean_pool/forward", &text, parts, move |gpu, sets, n| {
        mean_pool::cuda::forward(gpu, kernel, sets.get(n, 0), sets.get(n, 1))
    });
    let parts = vec![Part::f32(pooled), Part::output(F32 * all)];
    let backward = Case::new("mean_pool/backward", &text, parts, move |gpu, sets, n| {
        mean_pool::cuda::backward(gpu, kernel, sets.get(n, 0), sets.get(n, 1), false)
    });
    [forward, backward]
}

fn batch_norm(rows: usize, dim: usize) -> [Case; 3] {
    let kernel = BatchNorm { rows, dim, eps: EPS };
    let len = rows * dim;
    let x = || Part::f32(len);
    let y = || Part::output(F32 * len);
    let statistics = || Part::output(F32 * dim);
    let scratch = || Part::scratch(F32 * batch_norm::cuda::scratch_len(kernel));
    let text = || shape(rows, dim);
    let parts = vec![x(), y(), statistics(), statistics(), scratch()];
    let training = Case::new("batch_norm/training", text(), parts, move |gpu, sets, n| {
        let (y, mean, rstd) = (sets.get(n, 1), sets.get(n, 2), sets.get(n, 3));
        let x = sets.get(n, 0);
        batch_norm::cuda::forward_training(gpu, kernel, x, y, mean, rstd, sets.get(n, 4))
    });
    let parts = vec![x(), statistics(), statistics(), y()];
    let evaluation = Case::new("batch_norm/evaluation", text(), parts, move |gpu, sets, n| {
        let (mean, variance) = (sets.get(n, 1), sets.get(n, 2));
        let (x, y) = (sets.get(n, 0), sets.get(n, 3));
        batch_norm::cuda::forward_evaluation(gpu, kernel, x, mean, variance, y)
    });
    let parts = vec![x(), Part::f32(dim), Part::f32(dim), x(), y(), scratch()];
    let backward = Case::new("batch_norm/backward", text(), parts, move |gpu, sets, n| {
        let (x, mean, rstd) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
        let (dy, dx, scratch) = (sets.get(n, 3), sets.get(n, 4), sets.get(n, 5));
        batch_norm::cuda::backward(gpu, kernel, x, mean, rstd, dy, dx, false, scratch)
    });
    [training, evaluation, backward]
}

fn cross_entropy(rows: usize, classes: usize) -> [Case; 2] {
    let kernel = SoftmaxCrossEntropy { rows, classes, label_smoothing: 0.0 };
    let labels: Vec<i32> = (0..rows).map(|row| (row * 7919 % classes) as i32).collect();
    let logits = || Part::f32(rows * classes);
    let parts = vec![logits(), Part::index(&labels), Part::output(F32 * rows)];
    let name = "softmax_cross_entropy/forward";
    let forward = Case::new(name, shape(rows, classes), parts, move |gpu, sets, n| {
        let (logits, labels) = (sets.get(n, 0), sets.get(n, 1));
        softmax_cross_entropy::cuda::forward(gpu, kernel, logits, labels, sets.get(n, 2))
    });
    let parts = vec![logits(), Part::index(&labels), Part::output(F32 * rows * classes)];
    let name = "softmax_cross_entropy/backward";
    let backward = Case::new(name, shape(rows, classes), parts, move |gpu, sets, n| {
        let (logits, labels, dx) = (sets.get(n, 0), sets.get(n, 1), sets.get(n, 2));
        softmax_cross_entropy::cuda::backward(gpu, kernel, logits, labels, 1e-3, dx, false)
    });
    [forward, backward]
}
