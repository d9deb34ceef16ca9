//! Single kernels at the shapes of a training step of two sizes, fp32.
//!
//! Throughput: for products and attention one element is one FLOP, so "Gelem/s" reads GFLOP/s, of which the peak is
//! printed first; for element-wise kernels, bytes read and written once.
#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "criterion's macros; a benchmark's output is its purpose"
)]

use std::time::Duration;

use aim_kernels::adamw::{self, AdamW};
use aim_kernels::cpu::pool;
use aim_kernels::gelu;
use aim_kernels::layer_norm::{self, LayerNorm};
use aim_kernels::linear::{self, Linear};
use aim_kernels::patch_loss::{self, PatchLoss};
use aim_kernels::prefix_attention::{self, PrefixAttention};
use aim_model::AimConfig;
use aim_model::objective::{PrefixRule, PrefixSampler};
use benches::fma_peak::fma_peak_gflops;
use benches::sizes::{MICRO, NANO, Size};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn kernels(c: &mut Criterion) {
    let threads = pool::num_threads();
    println!("FMA peak: {:.0} GFLOP/s on {threads} threads", fma_peak_gflops(threads));
    for size in [NANO, MICRO] {
        let config = AimConfig::preset(size.preset).expect("a preset");
        let mut group = c.benchmark_group(size.name);
        group.sample_size(10).nresamples(1000);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
        linear_cases(&mut group, &size, &config);
        attention_cases(&mut group, &size, &config);
        norm_cases(&mut group, &size, &config);
        gelu_cases(&mut group, &size, &config);
        loss_cases(&mut group, &size, &config);
        optimizer_case(&mut group, &config);
        group.finish();
    }
}

/// Values in -0.5..0.5 that no kernel treats specially.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5).collect()
}

fn bytes(values: usize) -> Throughput {
    Throughput::Bytes(4 * values as u64)
}

fn linear_cases(group: &mut Group<'_>, size: &Size, config: &AimConfig) {
    let (rows, dim, hidden) =
        (size.batch * config.num_patches(), config.embed_dim, config.embed_dim * config.mlp_ratio);
    for (layer, inputs, outputs) in
        [("qkv", dim, 3 * dim), ("fc1", dim, hidden), ("fc2", hidden, dim)]
    {
        let shape = Linear { rows, inputs, outputs };
        let (mut x, mut y, mut weight) =
            (values(rows * inputs), values(rows * outputs), values(inputs * outputs));
        group.throughput(Throughput::Elements(2 * (rows * inputs * outputs) as u64));
        group.bench_function(format!("linear/{layer}/forward"), |b| {
            b.iter(|| linear::cpu::forward(shape, &x, &weight, None, None, &mut y));
        });
        group.bench_function(format!("linear/{layer}/backward_input"), |b| {
            b.iter(|| linear::cpu::backward_input(shape, &y, &weight, &mut x, false));
        });
        group.bench_function(format!("linear/{layer}/backward_weight"), |b| {
            // Accumulates for ever: the values grow, which changes no time before they overflow.
            weight.fill(0.0);
            b.iter(|| linear::cpu::backward_weight(shape, &y, &x, &mut weight));
        });
    }
}

fn attention_cases(group: &mut Group<'_>, size: &Size, config: &AimConfig) {
    let (tokens, heads) = (config.num_patches(), config.num_heads);
    let shape = PrefixAttention { batch: size.batch, tokens, heads, head_dim: config.head_dim() };
    let len = size.batch * tokens * config.embed_dim;
    let (qkv, dout) = (values(3 * len), values(len));
    let (mut out, mut dqkv) = (vec![0.0; len], vec![0.0; 3 * len]);
    let mut lse = vec![0.0; size.batch * heads * tokens];
    let mut scratch = vec![0.0; prefix_attention::cpu::backward_scratch(shape)];
    let mut uniform = Vec::new();
    PrefixSampler::new(PrefixRule::Uniform, tokens, 0).draw(0, 0..size.batch, &mut uniform);
    // FLOPs count the masked part too: a prefix that hides more shows a higher rate.
    for (mask, prefix) in [("full", vec![tokens as i32; size.batch]), ("prefix", uniform)] {
        group.throughput(Throughput::Elements(4 * shape.macs()));
        group.bench_function(format!("attention/{mask}/forward"), |b| {
            b.iter(|| {
                prefix_attention::cpu::forward(
                    shape,
                    &qkv,
                    &prefix,
                    &mut out,
                    &mut lse,
                    &mut scratch,
                )
            });
        });
        group.throughput(Throughput::Elements(8 * shape.macs()));
        group.bench_function(format!("attention/{mask}/backward"), |b| {
            prefix_attention::cpu::forward(shape, &qkv, &prefix, &mut out, &mut lse, &mut scratch);
            b.iter(|| {
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
            });
        });
    }
}

fn norm_cases(group: &mut Group<'_>, size: &Size, config: &AimConfig) {
    let (rows, dim) = (size.batch * config.num_patches(), config.embed_dim);
    let shape = LayerNorm { rows, dim, eps: config.norm_eps };
    let (x, weight, bias) = (values(rows * dim), values(dim), values(dim));
    let (mut y, mut mean, mut rstd) = (vec![0.0; rows * dim], vec![0.0; rows], vec![0.0; rows]);
    group.throughput(bytes(2 * rows * dim));
    group.bench_function("layer_norm/forward", |b| {
        b.iter(|| {
            layer_norm::cpu::forward(shape, &x, &weight, &bias, &mut y, &mut mean, &mut rstd)
        });
    });
    layer_norm::cpu::forward(shape, &x, &weight, &bias, &mut y, &mut mean, &mut rstd);
    let (mut dx, mut dweight, mut dbias) = (vec![0.0; rows * dim], vec![0.0; dim], vec![0.0; dim]);
    let mut scratch = vec![0.0; layer_norm::cpu::backward_scratch(rows, dim)];
    group.throughput(bytes(3 * rows * dim));
    group.bench_function("layer_norm/backward", |b| {
        b.iter(|| {
            let gradients = layer_norm::cpu::Gradients {
                dx: Some((&mut dx, false)),
                parameters: Some((&mut dweight, &mut dbias)),
            };
            layer_norm::cpu::backward(
                shape,
                &x,
                &weight,
                &mean,
                &rstd,
                &y,
                gradients,
                &mut scratch,
            );
        });
    });
}

fn gelu_cases(group: &mut Group<'_>, size: &Size, config: &AimConfig) {
    let len = size.batch * config.num_patches() * config.embed_dim * config.mlp_ratio;
    let (x, dy, mut y) = (values(len), values(len), vec![0.0; len]);
    group.throughput(bytes(2 * len));
    group.bench_function("gelu/forward", |b| b.iter(|| gelu::cpu::forward(&x, &mut y)));
    group.throughput(bytes(3 * len));
    group.bench_function("gelu/backward", |b| {
        b.iter(|| gelu::cpu::backward(&x, &dy, &mut y, false))
    });
}

fn loss_cases(group: &mut Group<'_>, size: &Size, config: &AimConfig) {
    let rows = size.batch * config.num_patches();
    let shape = PatchLoss { rows, patch: config.patch_size, normalize: true };
    let (patches, pred) = (values(rows * shape.dim()), values(rows * shape.dim()));
    let targets: Vec<i32> = (0..rows as i32).collect();
    let (mut loss, mut dpred) = (vec![0.0; rows], vec![0.0; rows * shape.dim()]);
    group.throughput(bytes(2 * rows * shape.dim()));
    group.bench_function("patch_loss/forward", |b| {
        b.iter(|| patch_loss::cpu::forward(shape, &pred, &patches, &targets, &mut loss));
    });
    group.throughput(bytes(3 * rows * shape.dim()));
    group.bench_function("patch_loss/backward", |b| {
        b.iter(|| {
            patch_loss::cpu::backward(shape, &pred, &patches, &targets, 1.0, &mut dpred, false)
        });
    });
}

fn optimizer_case(group: &mut Group<'_>, config: &AimConfig) {
    // A block has 12 dim^2 weights and a block of the head 8; norms and embeddings are small beside them.
    let len =
        (12 * config.num_blocks + 8 * config.head_depth) * config.embed_dim * config.embed_dim;
    let (mut params, grads) = (values(len), values(len));
    let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
    let settings = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
        step: 10,
        grad_scale: 1.0,
    };
    group.throughput(bytes(7 * len));
    group.bench_function("adamw", |b| {
        b.iter(|| adamw::cpu::step(settings, &mut params, &grads, &mut m, &mut v));
    });
}

criterion_group!(all, kernels);
criterion_main!(all);
