//! The same bits from every op whatever the number of threads. One test in a program of its own: the pool is shared by
//! the process, and a second test that held it would leave this one on a single thread.

use aim_kernels::cpu::pool::set_num_threads;
use aim_kernels::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

struct Random(ChaCha8Rng);

impl Random {
    /// In -1..1.
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.0.next_u32() as i32) as f32 / 2_147_483_648.0).collect()
    }

    fn indices(&mut self, len: usize, end: usize) -> Vec<i32> {
        (0..len).map(|_| (self.0.next_u32() as usize % end) as i32).collect()
    }
}

fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// Results by name.
type Results = Vec<(&'static str, Vec<f32>)>;

fn dense(random: &mut Random, results: &mut Results) {
    let shape = linear::Linear { rows: 700, inputs: 130, outputs: 333 };
    let (x, w) = (random.values(700 * 130), random.values(333 * 130));
    let (b, dy) = (random.values(333), random.values(700 * 333));
    let (mut y, mut dx, mut dw, mut db) =
        (zeros(dy.len()), zeros(x.len()), zeros(w.len()), zeros(333));
    linear::cpu::forward(shape, &x, &w, Some(&b), Some(&dy), &mut y);
    linear::cpu::backward_input(shape, &dy, &w, &mut dx, false);
    linear::cpu::backward_weight(shape, &dy, &x, &mut dw);
    linear::cpu::backward_bias(shape, &dy, &mut db);
    results.extend([
        ("linear", y),
        ("linear dx", dx),
        ("linear dweight", dw),
        ("linear dbias", db),
    ]);

    let shape =
        low_rank::LowRank { rows: 700, rank: 8, outputs: 333, segments: &[0..111, 222..333] };
    let (u, w) = (random.values(700 * 16), random.values(222 * 8));
    let (mut y, mut du, mut dw) = (dy.clone(), zeros(u.len()), zeros(w.len()));
    low_rank::cpu::add(shape, &u, &w, &mut y);
    low_rank::cpu::backward_input(shape, &dy, &w, &mut du, false);
    low_rank::cpu::backward_weight(shape, &dy, &u, &mut dw);
    results.extend([("low_rank", y), ("low_rank du", du), ("low_rank dweight", dw)]);

    let (mut y, mut dx) = (zeros(x.len()), zeros(x.len()));
    gelu::cpu::forward(&x, &mut y);
    gelu::cpu::backward(&x, &y, &mut dx, false);
    results.extend([("gelu", y), ("gelu dx", dx)]);

    let mut sums = [zeros(x.len()), zeros(x.len()), zeros(x.len()), x.clone()];
    elementwise::cpu::add(&x, &x, &mut sums[0]);
    elementwise::cpu::average(&[&x, &x, &x], &mut sums[1]);
    elementwise::cpu::scale(&x, 0.3, &mut sums[2], true);
    elementwise::cpu::accumulate(&x, &mut sums[3]);
    results.extend(["add", "average", "scale", "accumulate"].into_iter().zip(sums));
}

fn norms(random: &mut Random, results: &mut Results) {
    let (rows, dim) = (700, 131);
    let (x, dy) = (random.values(rows * dim), random.values(rows * dim));
    let (w, b) = (random.values(dim), random.values(dim));
    let shape = layer_norm::LayerNorm { rows, dim, eps: 1e-6 };
    let (mut y, mut mean, mut rstd) = (zeros(x.len()), zeros(rows), zeros(rows));
    layer_norm::cpu::forward(shape, &x, &w, &b, &mut y, &mut mean, &mut rstd);
    let (mut dx, mut dw, mut db) = (zeros(x.len()), zeros(dim), zeros(dim));
    let gradients = layer_norm::cpu::Gradients {
        dx: Some((&mut dx, false)),
        parameters: Some((&mut dw, &mut db)),
    };
    let mut scratch = zeros(layer_norm::cpu::backward_scratch(rows, dim));
    layer_norm::cpu::backward(shape, &x, &w, &mean, &rstd, &dy, gradients, &mut scratch);
    results.extend([("layer_norm", y), ("layer_norm mean", mean), ("layer_norm rstd", rstd)]);
    results.extend([("layer_norm dx", dx), ("layer_norm dweight", dw), ("layer_norm dbias", db)]);

    let shape = batch_norm::BatchNorm { rows, dim, eps: 1e-6 };
    let (mut y, mut mean, mut rstd) = (zeros(x.len()), zeros(dim), zeros(dim));
    let (mut running_mean, mut running_var) = (b, w.iter().map(|w| w * w).collect::<Vec<_>>());
    let running =
        batch_norm::cpu::Running { mean: &mut running_mean, var: &mut running_var, momentum: 0.1 };
    batch_norm::cpu::forward_training(shape, &x, &mut y, &mut mean, &mut rstd, Some(running));
    let (mut dx, mut evaluated) = (zeros(x.len()), zeros(x.len()));
    batch_norm::cpu::backward(shape, &x, &mean, &rstd, &dy, &mut dx, false);
    batch_norm::cpu::forward_evaluation(shape, &x, &running_mean, &running_var, &mut evaluated);
    results.extend([("batch_norm", y), ("batch_norm mean", mean), ("batch_norm rstd", rstd)]);
    results.extend([
        ("batch_norm running mean", running_mean),
        ("batch_norm running var", running_var),
    ]);
    results.extend([("batch_norm dx", dx), ("batch_norm evaluation", evaluated)]);
}

fn attention(random: &mut Random, results: &mut Results) {
    let (batch, tokens, heads, head_dim) = (11, 70, 7, 12);
    let shape = prefix_attention::PrefixAttention { batch, tokens, heads, head_dim };
    let len = batch * tokens * shape.dim();
    let (qkv, dout) = (random.values(3 * len), random.values(len));
    let prefix = random.indices(batch, tokens + 1);
    let (mut out, mut lse, mut dqkv) = (zeros(len), zeros(batch * heads * tokens), zeros(3 * len));
    let mut scratch = zeros(prefix_attention::cpu::backward_scratch(shape));
    prefix_attention::cpu::forward(shape, &qkv, &prefix, &mut out, &mut lse, &mut scratch);
    prefix_attention::cpu::backward(
        shape,
        &qkv,
        &prefix,
        &out,
        &lse,
        &dout,
        &mut dqkv,
        false,
        &mut scratch,
    );
    results.extend([("attention", out), ("attention lse", lse), ("attention dqkv", dqkv)]);

    // More images than groups of the backward pass.
    let shape = attention_pool::AttentionPool { batch: 45, tokens: 9, queries: 2, heads, head_dim };
    let (dim, len) = (shape.dim(), 45 * 9 * shape.dim());
    let (query, key, value) =
        (random.values(2 * dim), random.values(dim * dim), random.values(dim * dim));
    let weights = attention_pool::cpu::Weights { query: &query, key: &key, value: &value };
    let (x, dout) = (&qkv[..len], random.values(45 * dim));
    let (mut out, mut kept) = (zeros(dout.len()), zeros(shape.kept()));
    let (mut dq, mut dk, mut dv) = (zeros(2 * dim), zeros(dim * dim), zeros(dim * dim));
    let mut dx = zeros(len);
    let mut scratch = zeros(attention_pool::cpu::forward_scratch(shape));
    attention_pool::cpu::forward(shape, x, weights, &mut out, &mut kept, &mut scratch);
    let mut scratch = zeros(attention_pool::cpu::backward_scratch(shape));
    let gradients =
        attention_pool::cpu::WeightGradients { query: &mut dq, key: &mut dk, value: &mut dv };
    let to_x = Some((&mut dx[..], false));
    attention_pool::cpu::backward(
        shape,
        x,
        weights,
        &kept,
        &dout,
        Some(gradients),
        to_x,
        &mut scratch,
    );
    results.extend([("attention_pool", out), ("attention_pool kept", kept)]);
    results.extend([("attention_pool dq", dq), ("attention_pool dx", dx)]);
    results.extend([("attention_pool dk", dk), ("attention_pool dv", dv)]);

    let shape = mean_pool::MeanPool { batch: 45, tokens: 9, dim: 84 };
    let (mut y, mut dx) = (zeros(45 * 84), zeros(45 * 9 * 84));
    mean_pool::cpu::forward(shape, &qkv[..dx.len()], &mut y);
    mean_pool::cpu::backward(shape, &y, &mut dx, false);
    results.extend([("mean_pool", y), ("mean_pool dx", dx)]);
}

fn images(random: &mut Random, results: &mut Results) {
    let shape = patch_embed::PatchEmbed { batch: 5, height: 56, width: 42, patch: 7 };
    let (pixels, images) =
        (random.indices(shape.image_len(), 256), random.values(shape.image_len()));
    let pixels: Vec<u8> = pixels.iter().map(|&v| v as u8).collect();
    let (mut bytes, mut patches, mut back) =
        (zeros(images.len()), zeros(images.len()), zeros(images.len()));
    patch_embed::cpu::patchify_u8(shape, &pixels, [0.5; 3], [0.2; 3], &mut bytes);
    patch_embed::cpu::patchify(shape, &images, &mut patches);
    patch_embed::cpu::unpatchify(shape, &bytes, &mut back, false);

    let (sources, rows, dim) = (patches.len() / shape.patch_dim(), 401, shape.patch_dim());
    let (index, pred) = (random.indices(rows, sources), random.values(rows * dim));
    let gather = gather_rows::GatherRows { sources, rows, dim };
    let (mut gathered, mut scattered, mut placed) =
        (zeros(rows * dim), zeros(patches.len()), zeros(rows * dim));
    gather_rows::cpu::forward(gather, &patches, &index, &mut gathered);
    gather_rows::cpu::backward(gather, &pred, &index, &mut scattered, false);
    let place = positions::Positions { rows, dim };
    positions::cpu::forward(place, &pred, &patches, &index, &mut placed);

    let shape = patch_loss::PatchLoss { rows, patch: 7, normalize: true };
    let (mut loss, mut mean, mut std) = (zeros(rows), zeros(rows), zeros(rows));
    let (mut dpred, mut targets) = (zeros(pred.len()), zeros(pred.len()));
    patch_loss::cpu::forward(shape, &pred, &patches, &index, &mut loss);
    patch_loss::cpu::backward(shape, &pred, &patches, &index, 0.1, &mut dpred, false);
    patch_loss::cpu::write_targets(shape, &patches, &index, &mut targets);
    patch_loss::cpu::statistics(shape, &patches, &index, &mut mean, &mut std);
    results.extend([("patchify u8", bytes), ("patchify", patches), ("unpatchify", back)]);
    results.extend([
        ("gather_rows", gathered),
        ("gather_rows dx", scattered),
        ("positions", placed),
    ]);
    results.extend([("patch_loss", loss), ("patch_loss dpred", dpred), ("targets", targets)]);
    results.extend([("targets mean", mean), ("targets std", std)]);

    let shape =
        softmax_cross_entropy::SoftmaxCrossEntropy { rows, classes: dim, label_smoothing: 0.1 };
    let labels = random.indices(rows, dim);
    let (mut loss, mut dlogits) = (zeros(rows), zeros(pred.len()));
    softmax_cross_entropy::cpu::forward(shape, &pred, &labels, &mut loss);
    softmax_cross_entropy::cpu::backward(shape, &pred, &labels, 0.1, &mut dlogits, false);
    results.extend([("cross_entropy", loss), ("cross_entropy dlogits", dlogits)]);
}

fn optimizer(random: &mut Random, results: &mut Results) {
    let len = 300_001;
    let (mut p, g) = (random.values(len), random.values(len));
    let (mut m, mut v) = (zeros(len), zeros(len));
    let norm = global_norm::cpu::global_norm(&g);
    let settings = adamw::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
        step: 1,
        grad_scale: (1.0 / norm) as f32,
    };
    adamw::cpu::step(settings, &mut p, &g, &mut m, &mut v);
    // Both halves of the f64, each of its own bits.
    let bits = [norm.to_bits() as u32, (norm.to_bits() >> 32) as u32].map(f32::from_bits);
    results.extend([("adamw params", p), ("adamw m", m), ("adamw v", v), ("norm", bits.to_vec())]);
}

fn all() -> Results {
    let random = &mut Random(ChaCha8Rng::seed_from_u64(1));
    let mut results = Results::new();
    dense(random, &mut results);
    norms(random, &mut results);
    attention(random, &mut results);
    images(random, &mut results);
    optimizer(random, &mut results);
    results
}

#[test]
fn every_op_gives_the_same_bits_for_any_number_of_threads() {
    set_num_threads(1);
    let expected = all();
    for threads in [2, 3, 5, 8] {
        set_num_threads(threads);
        // Who takes which piece differs from run to run.
        for _ in 0..3 {
            for ((name, found), (_, expected)) in all().iter().zip(&expected) {
                let same = found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name} with {threads} threads");
            }
        }
    }
}
