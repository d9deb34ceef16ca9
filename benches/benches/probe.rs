//! What a grid of probes costs beside a single one: the paper's 14 points in one pass.
//!
//! `cached` is a training step on features that lie in memory, `trunk` one where the frozen trunk runs on the images
//! first. `unfolded` is a lower bound for a single probe that projects keys and values of every token: nothing but
//! those products and their weights' gradients. Throughput counts images, so a grid is worth its points when it shows
//! more than one probe's share.
#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "criterion's macros; a benchmark's output is its purpose"
)]

use std::time::Duration;

use aim_kernels::attention_pool::Tokens;
use aim_kernels::cpu::pool;
use aim_kernels::linear::{self, Linear};
use aim_model::AimConfig;
use aim_model::classifier::{Probe, ProbeConfig, ProbeKind};
use aim_model::features::FeatureExtractor;
use aim_model::init;
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_train::probe::{GridTrainer, ProbeTraining};
use benches::fma_peak::fma_peak_gflops;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CLASSES: usize = 100;

/// Images in a step on cached features: the paper's batch, over which the optimizer's work is spread.
const BATCH: usize = 512;
/// Images that keys and values are projected of.
const UNFOLDED: usize = 32;
/// Name, preset, images in a step with the trunk (0: not timed).
const SIZES: [(&str, &str, usize); 3] =
    [("nano", "aim-nano", 64), ("micro", "aim-micro", 16), ("600M", "aim-600M", 0)];

/// Values in -0.5..0.5, away from zero as features are.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.3).collect()
}

/// Classifiers of one point or of the paper's grid.
fn trainer(config: &AimConfig, tokens: usize, grid: bool) -> GridTrainer {
    let (dim, heads) = (config.embed_dim, config.num_heads);
    let probe = ProbeConfig { kind: ProbeKind::Attentive, dim, heads, classes: CLASSES };
    let probe = Probe::new(probe).expect("a probe");
    let settings = if grid { ProbeTraining::paper(0) } else { ProbeTraining::default() };
    GridTrainer::new(&probe, tokens, &settings, 1 << 40).expect("memory")
}

fn labels(images: usize) -> Vec<i32> {
    (0..images).map(|i| (i * 7 % CLASSES) as i32).collect()
}

fn probes(c: &mut Criterion) {
    let threads = pool::num_threads();
    println!("FMA peak: {:.0} GFLOP/s on {threads} threads", fma_peak_gflops(threads));
    for (name, preset, with_trunk) in SIZES {
        let config = AimConfig::preset(preset).expect("a preset");
        let (tokens, dim) = (config.num_patches(), config.embed_dim);
        let mut group = c.benchmark_group(name);
        group.sample_size(10).nresamples(1000);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));

        let x = values(BATCH * tokens * dim);
        let slices: Vec<&[f32]> = x.chunks_exact(tokens * dim).collect();
        let labels_of = labels(BATCH);
        group.throughput(Throughput::Elements(BATCH as u64));
        for (case, grid) in [("cached/1 probe", false), ("cached/14 probes", true)] {
            let mut trainer = trainer(&config, tokens, grid);
            group.bench_function(case, |b| {
                b.iter(|| trainer.step(Tokens::F32(&slices), &labels_of).expect("a step"));
            });
        }
        let shape = Linear { rows: UNFOLDED * tokens, inputs: dim, outputs: dim };
        let x = &x[..UNFOLDED * tokens * dim];
        group.throughput(Throughput::Elements(UNFOLDED as u64));
        let (weight, mut key) = (values(dim * dim), vec![0.0; x.len()]);
        let mut gradient = vec![0.0; dim * dim];
        group.bench_function("unfolded/1 probe", |b| {
            b.iter(|| {
                for _ in ["keys", "values"] {
                    linear::cpu::forward(shape, x, &weight, None, None, &mut key);
                    linear::cpu::backward_weight(shape, x, x, &mut gradient);
                }
            });
        });

        if with_trunk > 0 {
            let mut params = FeatureExtractor::parameters(&config).expect("memory");
            init::initialize(&mut params, 0);
            let blocks: Vec<usize> = (config.num_blocks - 6..config.num_blocks).collect();
            let mut trunk = FeatureExtractor::new(&config, params, &blocks).expect("layers");
            let (height, width) = (config.img_size.height, config.img_size.width);
            let format = PixelFormat::U8 { mean: [0.5; 3], std: [0.25; 3] };
            let batch = ImageBatch { batch: with_trunk, height, width, format };
            let pixels: Vec<u8> =
                (0..with_trunk * height * width * 3).map(|i| (i * 31) as u8).collect();
            let labels_of = labels(with_trunk);
            group.throughput(Throughput::Elements(with_trunk as u64));
            for (case, grid) in [("trunk/1 probe", false), ("trunk/14 probes", true)] {
                let mut trainer = trainer(&config, tokens, grid);
                let mut average = Vec::new();
                group.bench_function(case, |b| {
                    b.iter(|| {
                        trunk.run(batch, Pixels::U8(&pixels)).expect("a run");
                        trunk.average(&mut average).expect("features");
                        let slices: Vec<&[f32]> = average.chunks_exact(tokens * dim).collect();
                        trainer.step(Tokens::F32(&slices), &labels_of).expect("a step")
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, probes);
criterion_main!(benches);
