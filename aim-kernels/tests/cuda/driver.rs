//! The fake driver: what it refuses, and that what is asynchronous on a card is late in the late schedules.

use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUresult};
use cudarc::driver::{CudaStream, result};

use crate::child;
use crate::device::{Arg, Device, code};
use crate::emulator::probes;

fn passes(task: &str, schedule: u32, environment: &[(&str, &str)]) {
    let Some(folder) = probes().make() else { return };
    let outcome = child::run(&folder, schedule, &format!("driver {task}"), environment);
    assert!(outcome.status.success(), "schedule {schedule}: {}", outcome.text);
}

#[test]
fn refuses_what_the_driver_refuses() {
    passes("refusals", 0, &[("AIM_EMULATOR_MEMORY", "1000000")]);
}

#[test]
fn freed_memory_faults() {
    let Some(folder) = probes().make() else { return };
    let outcome = child::run(&folder, 0, "driver use_after_free", &[]);
    assert!(outcome.status.code().is_none(), "died by a signal: {}", outcome.text);
    assert!(outcome.text.contains("kernel probe_fill"), "{}", outcome.text);
}

#[test]
fn errors_of_kernels_stay() {
    passes("errors", 0, &[]);
    passes("errors", 3, &[]);
}

#[test]
fn streams_wait_for_what_they_are_told() {
    for schedule in 0..6 {
        passes("streams", schedule, &[]);
    }
}

/// The child's half.
pub(crate) fn run(task: &str) {
    let device = Device::open();
    match task {
        "refusals" => refusals(&device),
        "use_after_free" => {
            let x = device.upload(&[0.0; 4]);
            device.free(x).expect("an allocation");
            let args = [Arg::Pointer(x), Arg::Float(1.0), Arg::Int(4)];
            let _ = device.run("probe_fill", 1, 32, 0, &args);
        }
        "errors" => errors(&device),
        "streams" => streams(&device),
        _ => panic!("unknown task {task}"),
    }
}

fn refusals(device: &Device) {
    use CUresult::*;
    assert_eq!(code(cudarc::driver::CudaContext::new(1)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(code(device.function("probe_nothing")), CUDA_ERROR_NOT_FOUND);

    let before = result::mem_get_info().expect("a context is current");
    assert_eq!(before, (1_000_000, 1_000_000));
    let x = device.upload(&[0.0; 64]);
    assert_eq!(result::mem_get_info().expect("a context is current").0, 1_000_000 - 256);
    assert_eq!(code(device.alloc(1_000_000)), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(code(device.alloc(0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(device.free(x + 4)), CUDA_ERROR_INVALID_VALUE);
    let past = [0.0f32; 65];
    // SAFETY: refused, which is what is tested.
    assert_eq!(code(unsafe { result::memcpy_htod_sync(x, &past) }), CUDA_ERROR_INVALID_VALUE);

    let args = [Arg::Pointer(x), Arg::Float(1.0), Arg::Int(64)];
    let null = std::ptr::null_mut();
    let fill = |blocks, threads, shared| {
        code(device.launch_on(null, "probe_fill", blocks, threads, shared, &args))
    };
    assert_eq!(fill((0, 1, 1), 64, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(fill((1, 65536, 1), 64, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(fill((1, 1, 1), 2048, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(fill((1, 1, 1), 512, 0), CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "launch bounds: 256");
    assert_eq!(fill((1, 1, 1), 64, 49153), CUDA_ERROR_INVALID_VALUE, "more than 48 KiB unasked");
    assert_eq!(code(device.allow_shared("probe_fill", 232_449)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(device.allow_shared("probe_fill", 232_448)), CUDA_SUCCESS);
    assert_eq!(fill((1, 1, 1), 64, 232_448), CUDA_SUCCESS);
    assert_eq!(device.download(x, 64), [1.0; 64]);

    device.free(x).expect("an allocation");
    assert_eq!(code(device.free(x)), CUDA_ERROR_INVALID_VALUE, "freed twice");
    assert_eq!(result::mem_get_info().expect("a context is current"), before);
}

fn errors(device: &Device) {
    let x = device.upload(&[0.0; 4]);
    let stuck = device.run("probe_divergent", 1, 64, 0, &[Arg::Int(3)]);
    assert_eq!(code(stuck), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // As on a card nothing works any more.
    let args = [Arg::Pointer(x), Arg::Float(1.0), Arg::Int(4)];
    let after = device.run("probe_fill", 1, 32, 0, &args);
    assert_eq!(code(after), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(device.alloc(4)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
}

/// A copy stream brings values from pinned memory, the compute stream uses them.
fn streams(device: &Device) {
    const LEN: usize = 256;
    let late = std::env::var("AIM_EMULATOR_SCHEDULE").is_ok_and(|number| number.as_str() < "3");
    let stream = || device.context.new_stream().expect("a stream");
    let (copies, compute): (Arc<CudaStream>, Arc<CudaStream>) = (stream(), stream());
    let event = || {
        let flags = CUevent_flags::CU_EVENT_DEFAULT;
        device.context.new_event(Some(flags)).expect("an event")
    };
    let (x, y) = (device.upload(&[0.0; LEN]), device.upload(&[0.0; LEN]));
    // SAFETY: pinned memory of that size, freed at the end of the process.
    let pinned = unsafe { result::malloc_host(LEN * 4, 0) }.expect("memory").cast::<f32>();
    let fill = |value: f32| {
        for i in 0..LEN {
            // SAFETY: inside the pinned memory; no reference to it is alive.
            unsafe { pinned.add(i).write(value) };
        }
    };
    let bring = || {
        // SAFETY: pinned memory of that size; whoever writes to it too early is what is tested.
        let values = unsafe { std::slice::from_raw_parts(pinned, LEN) };
        // SAFETY: both have this size.
        unsafe { result::memcpy_htod_async(x, values, copies.cu_stream()) }.expect("a copy");
    };
    let use_it = || {
        let args = [Arg::Pointer(x), Arg::Pointer(y), Arg::Int(LEN as i32)];
        let stream = compute.cu_stream();
        device.launch_on(stream, "probe_copy", (2, 1, 1), 128, 0, &args).expect("a launch");
        compute.synchronize().expect("the kernel ran");
        device.download(y, LEN)
    };

    // Nobody waits: the kernel uses what was there before.
    fill(1.0);
    bring();
    assert_eq!(use_it(), [if late { 0.0 } else { 1.0 }; LEN]);
    copies.synchronize().expect("the copy ran");

    // The compute stream waits for the event behind the copy.
    fill(2.0);
    bring();
    let (brought, used) = (event(), event());
    brought.record(&copies).expect("an event");
    compute.wait(&brought).expect("a wait");
    assert_eq!(use_it(), [2.0; LEN]);
    used.record(&compute).expect("an event");
    used.synchronize().expect("an event");
    assert!(brought.elapsed_ms(&used).expect("both happened") >= 0.0);

    // The host writes to pinned memory before the copy has read it.
    fill(3.0);
    bring();
    fill(4.0);
    copies.synchronize().expect("the copy ran");
    assert_eq!(use_it(), [if late { 4.0 } else { 3.0 }; LEN]);

    // Who asks until it is done gets to an end.
    bring();
    brought.record(&copies).expect("an event");
    while !brought.is_complete() {}
    assert_eq!(use_it(), [4.0; LEN]);
    // SAFETY: allocated above, and no copy is under way.
    unsafe { result::free_host(pinned.cast()) }.expect("pinned memory");
}
