//! What the emulator must notice, each in a kernel that has nothing else wrong (`probe.cu`), and that it does not
//! accuse the right kernel beside it.

use cudarc::driver::sys::CUresult;

use crate::child::{self, Outcome};
use crate::device::{Arg, Device, code};
use crate::harness::Build;

/// The probes' library.
pub(crate) fn probes() -> Build {
    Build::with("probe.cu", include_str!("probe.cu"))
}

/// Runs a probe with 0 or 1 as its last argument; the child prints what came out.
fn probe(build: &Build, schedule: u32, name: &str, last: i32) -> Option<Outcome> {
    Some(child::run(&build.make()?, schedule, &format!("probe {name} {last}"), &[]))
}

/// The child's half of [`probe`].
pub(crate) fn run(task: &str) {
    let (name, last) = task.split_once(' ').expect("a kernel and its argument");
    let last = Arg::Int(last.parse().expect("a number"));
    let device = Device::open();
    let x = Arg::Pointer(device.upload(&[0.0; 64]));
    let from = Arg::Pointer(device.upload(&[2.0; 256]));
    let (blocks, threads, args) = match name {
        "overwrite" | "impatient" => (1, 64, vec![x, from, last]),
        "warp_neighbour" | "banks" => (1, 32, vec![x, last]),
        "blocks" => (3, 32, vec![x, last]),
        "unwritten" => (2, 1, vec![x]),
        "divergent" | "two_barriers" => (2, 64, vec![last]),
        "write" | "misaligned" | "stack" => (1, 1, vec![x, last]),
        "read" => (1, 1, vec![x, last, from]),
        "read_shared" => (1, 1, vec![last, from]),
        _ => (1, 64, vec![x, last]),
    };
    let shared = if name == "banks" { 4096 } else { 1024 };
    let result = device.run(&format!("probe_{name}"), blocks, threads, shared, &args);
    println!("\nended {:?}", code(result));
    if result.is_ok() {
        let Arg::Pointer(x) = x else { unreachable!("made above") };
        println!("gave {:?}", device.download(x, 64));
    }
}

fn gave(outcome: &Outcome) -> &str {
    let line = outcome.text.lines().find(|line| line.starts_with("gave"));
    line.unwrap_or_else(|| panic!("the kernel failed: {}", outcome.text))
}

/// The same result in all schedules: the late ones, 0 to 2, and the early ones.
fn schedules(build: &Build, name: &str, last: i32) -> Option<Vec<String>> {
    (0..6).map(|i| Some(gave(&probe(build, i, name, last)?).to_owned())).collect()
}

#[test]
fn missing_barriers() {
    for name in ["neighbour", "warp_neighbour", "impatient"] {
        let Some(right) = schedules(&probes(), name, 1) else { return };
        assert!(right.iter().all(|gave| *gave == right[0]), "{name}: {right:?}");
        let Some(wrong) = schedules(&probes(), name, 0) else { return };
        assert!(wrong.iter().any(|gave| *gave != right[0]), "{name} without a barrier: {wrong:?}");
    }
}

#[test]
fn memory_that_a_block_did_not_write_is_nan() {
    let Some(all) = schedules(&probes(), "unwritten", 0) else { return };
    // The highest schedules take blocks from the last on; the block that writes changes nothing for the other.
    assert!(all.iter().all(|gave| gave.starts_with("gave [NaN, NaN, 0.0,")), "{all:?}");
}

#[test]
fn overwriting_shows_only_when_copies_land_at_once() {
    let Some(right) = schedules(&probes(), "overwrite", 1) else { return };
    assert!(right.iter().all(|gave| *gave == right[0]), "{right:?}");
    let Some(wrong) = schedules(&probes(), "overwrite", 0) else { return };
    assert!(wrong[..3].iter().all(|gave| *gave == right[0]), "copies late: {wrong:?}");
    assert!(wrong[3..].iter().all(|gave| *gave != right[0]), "copies at once: {wrong:?}");
}

#[test]
fn races_are_seen_in_any_schedule() {
    let watching = probes().watching();
    for (name, words) in [
        ("neighbour", "with no barrier between"),
        ("warp_neighbour", "with no barrier between"),
        ("overwrite", "a read of what a copy is still bringing"),
        ("impatient", "a read of what a copy is still bringing"),
        ("blocks", "by a thread of another block, byte 0 of an allocation of 256"),
    ] {
        let Some(right) = probe(&watching, 0, name, 1) else { return };
        gave(&right);
        let Some(wrong) = probe(&watching, 0, name, 0) else { return };
        assert!(wrong.text.contains(&format!("kernel probe_{name}, block")), "{}", wrong.text);
        assert!(wrong.text.contains(words), "{}", wrong.text);
        assert!(wrong.text.contains("ended CUDA_ERROR_LAUNCH_FAILED"), "{}", wrong.text);
    }
}

#[test]
fn divergent_barriers() {
    let Some(fine) = probe(&probes(), 0, "divergent", 64) else { return };
    assert!(fine.text.contains("ended CUDA_SUCCESS"), "{}", fine.text);
    for (name, words) in [
        (
            "divergent",
            "deadlock (divergent barrier): of 64 threads 40 ended, 24 wait at __syncthreads",
        ),
        ("two_barriers", "divergent barrier: this thread is at the __syncthreads of line"),
    ] {
        let Some(stuck) = probe(&probes(), 0, name, 24) else { return };
        assert!(
            stuck.text.contains(&format!("kernel probe_{name}, block (0, 0, 0)")),
            "{}",
            stuck.text
        );
        assert!(stuck.text.contains(words), "{}", stuck.text);
        assert!(stuck.text.contains("ended CUDA_ERROR_LAUNCH_FAILED"), "{}", stuck.text);
    }
}

#[test]
fn wild_accesses_kill() {
    // x has 64 values, shared memory 1024 bytes; 16 bytes and pages decide what is seen without watching.
    for (name, last, words) in [
        ("write", 64, "byte 256 of the nearest allocation's 256"),
        ("write", -1024, "of the nearest allocation's"),
        ("read", 64, "byte 256 of the nearest allocation's 256"),
        ("read_shared", 256, "byte 1024 of 1024 of dynamic shared memory"),
        ("read_shared", -2000, "of dynamic shared memory"),
        ("misaligned", 1, "an access that is not aligned as its type asks"),
        ("stack", 16384, ""),
    ] {
        let Some(outcome) = probe(&probes(), 0, name, last) else { return };
        if name == "stack" {
            gave(&outcome); // 64 KiB of local memory fit
            continue;
        }
        assert!(!outcome.status.success() && outcome.status.code().is_none(), "{}", outcome.text);
        assert!(outcome.text.contains(&format!("kernel probe_{name}")), "{}", outcome.text);
        assert!(outcome.text.contains(words), "{name} {last}: {}", outcome.text);
    }
    let watching = probes().watching();
    for (name, last, words) in [
        ("write", 64, "write of 4 bytes at byte 256 of an allocation of 256"),
        ("read_shared", 256, "read of 4 bytes at byte 1024 of 1024 of dynamic shared memory"),
    ] {
        let Some(outcome) = probe(&watching, 0, name, last) else { return };
        assert!(outcome.text.contains(words), "{}", outcome.text);
        let error = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert!(outcome.text.contains(&format!("ended {error:?}")), "{}", outcome.text);
    }
}

#[test]
fn bank_conflicts() {
    let Some(row) = probe(&probes().watching(), 0, "banks", 0) else { return };
    let Some(column) = probe(&probes().watching(), 0, "banks", 1) else { return };
    let counts = |outcome: &Outcome| outcome.counts["probe_banks"];
    assert_eq!((counts(&row).access_conflicts, counts(&row).matrix_conflicts), (0, 0));
    // Each of the four matrices takes 8 passes instead of one, the column 32 instead of one.
    assert_eq!((counts(&column).access_conflicts, counts(&column).matrix_conflicts), (31, 28));
}
