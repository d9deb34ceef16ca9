//! Whole training steps at two sizes, fp32.
//!
//! Each case prints, after criterion's times, medians of its samples: images per second, GFLOP/s, and the share of the
//! FMA peak, which is probed before each sample on as many threads: on a shared machine both fall together. Names of
//! cases are `size/rows`; see [`Rows`]. `AIM_BENCH_THREADS` sets the threads, all cores by default.
#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "criterion's macros; a benchmark's output is its purpose"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use aim_kernels::cpu::pool;
use benches::fma_peak::fma_peak_gflops;
use benches::peak_memory;
use benches::sizes::{MICRO, NANO, Size};
use benches::training::{Rows, TrainingStep};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

fn steps(c: &mut Criterion) {
    if let Some(threads) = std::env::var("AIM_BENCH_THREADS").ok().and_then(|v| v.parse().ok()) {
        pool::set_num_threads(threads);
    }
    for size in [NANO, MICRO] {
        for rows in [Rows::All, Rows::Scored] {
            case(c, &size, rows);
        }
    }
}

fn case(c: &mut Criterion, size: &Size, rows: Rows) {
    let mut group = c.benchmark_group(size.name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10).nresamples(1000);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    group.throughput(Throughput::Elements(size.batch as u64));
    peak_memory::reset();
    // Made when the case runs, and not when it is filtered out.
    let mut step: Option<TrainingStep> = None;
    let mut samples = Vec::new();
    group.bench_function(rows.name(), |bencher| {
        let step = step.get_or_insert_with(|| {
            let mut step = TrainingStep::new(size, size.batch, rows).expect("memory for one step");
            step.run().expect("a first step");
            step
        });
        bencher.iter_custom(|iterations| {
            let peak = fma_peak_gflops(pool::num_threads());
            let start = Instant::now();
            for _ in 0..iterations {
                black_box(step.run().expect("a step"));
            }
            let elapsed = start.elapsed();
            samples.push((elapsed.as_secs_f64() / iterations as f64, peak));
            elapsed
        });
    });
    group.finish();
    if let Some(step) = step {
        summary(size, rows, &step, &samples);
    }
}

fn summary(size: &Size, rows: Rows, step: &TrainingStep, samples: &[(f64, f64)]) {
    let gflop = step.flops() as f64 / 1e9;
    let step_s = median(samples.iter().map(|s| s.0));
    println!(
        "{}/{}: {:.2} img/s, {:.1} GFLOP/s, {:.0} % of an FMA peak of {:.0} GFLOP/s on {} threads, \
         {:.2} GFLOP/img, peak memory {:.0} MiB\n",
        size.name,
        rows.name(),
        size.batch as f64 / step_s,
        gflop / step_s,
        100.0 * median(samples.iter().map(|(step_s, peak)| gflop / step_s / peak)),
        median(samples.iter().map(|s| s.1)),
        pool::num_threads(),
        gflop / size.batch as f64,
        peak_memory::peak_rss_mib().unwrap_or(f64::NAN),
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

criterion_group!(step, steps);
criterion_main!(step);
