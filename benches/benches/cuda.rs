//! Kernels, matrix products and whole training steps of two sizes on a GPU. Without one a line says so.
//!
//! Times are the device's, and buffers take turns. Throughput: for products and attention one element is one FLOP of
//! visible work, so "Gelem/s" reads GFLOP/s; for other kernels the bytes that must move. `copy` and `cube` are the
//! yardsticks.
#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "criterion's macros; a benchmark's output is its purpose"
)]

use std::sync::Arc;
use std::time::Duration;

use aim_kernels::cuda::Gpu;
use aim_kernels::cuda::timing::{self, Case, Ready, Timer};
use aim_tensor::Device;
use benches::gpu::{AIM_600M, GpuStep, open, shapes};
use benches::sizes::{NANO, Size};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn cuda(c: &mut Criterion) {
    let (device, gpu) = match open() {
        Ok(opened) => opened,
        Err(error) => {
            println!("no GPU to measure: {error}");
            return;
        }
    };
    println!("{device}");
    let mut group = start(c, "yardsticks");
    for yardstick in [timing::copy(1 << 30), timing::cube(8192)] {
        case(&mut group, &gpu, yardstick);
    }
    group.finish();
    for size in [NANO, AIM_600M] {
        let shapes = shapes(&size).expect("a preset");
        let mut group = start(c, size.name);
        let head = |mut case: Case| {
            case.name.insert_str(0, "head/");
            case
        };
        let cases = timing::trunk_kernels(&shapes)
            .into_iter()
            .chain(timing::trunk_products(&shapes))
            .chain(timing::head_kernels(&shapes).into_iter().map(head))
            .chain(timing::head_products(&shapes));
        for one in cases {
            case(&mut group, &gpu, one);
        }
        step(&mut group, &device, &gpu, &size);
        group.finish();
    }
}

fn start<'a>(c: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = c.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(30).nresamples(1000);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    group
}

fn case(group: &mut Group<'_>, gpu: &Arc<Gpu>, case: Case) {
    group.throughput(match case.flops {
        0.0 => Throughput::Bytes(case.bytes as u64),
        flops => Throughput::Elements(flops as u64),
    });
    let name = case.name.clone();
    // Made when the case runs, and not when it is filtered out.
    let (mut case, mut ready) = (Some(case), None::<Ready>);
    group.bench_function(name, |bencher| {
        if let Some(case) = case.take() {
            ready = Some(case.ready(gpu).expect("memory for its buffers"));
        }
        let ready = ready.as_ref().expect("made above");
        bencher.iter_custom(|iterations| {
            seconds(gpu, || (0..iterations).for_each(|n| ready.run(n as usize).expect("a run")))
        });
    });
}

fn step(group: &mut Group<'_>, device: &Device, gpu: &Gpu, size: &Size) {
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(size.batch as u64));
    let mut step: Option<GpuStep> = None;
    group.bench_function("step", |bencher| {
        let step = step.get_or_insert_with(|| {
            let mut step = GpuStep::new(device, size).expect("memory for one step");
            step.run().expect("a first step");
            step
        });
        bencher.iter_custom(|iterations| {
            seconds(gpu, || {
                for _ in 0..iterations {
                    assert!(step.run().expect("a step").is_finite());
                }
            })
        });
    });
}

/// Time of what `work` puts on the stream.
fn seconds(gpu: &Gpu, work: impl FnOnce()) -> Duration {
    let timer = Timer::new(gpu).expect("two events");
    timer.start().expect("a working device");
    work();
    Duration::from_secs_f64(timer.stop().expect("a working device"))
}

criterion_group!(all, cuda);
criterion_main!(all);
