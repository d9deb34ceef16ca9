//! Bugs planted in the real kernels, one at a time, by editing their source: each must be noticed. This is what says
//! that the checks, their shapes and the emulator's schedules are worth something. An edit whose place is gone fails
//! loudly.

use std::sync::Mutex;

use aim_kernels::cuda::sources;

use crate::child::{self, Outcome};
use crate::harness::Build;

/// The checks that run the kernels of a file, and the `.cu` files that they need.
fn checks_of(file: &str) -> (&'static str, Vec<&'static str>) {
    let files =
        || sources::FILES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".cu"));
    let stem = |name: &'static str| name.strip_suffix(".cu").unwrap_or(name);
    let checks = match file {
        "prim.cuh" => "seam",
        "columns.cuh" => "batch_norm",
        "prefix_attention.cuh" => "prefix_attention",
        // Attention's files are checked together, under the name of the first.
        _ => files()
            .map(stem)
            .filter(|stem| file.starts_with(stem))
            .min_by_key(|stem| stem.len())
            .unwrap_or_else(|| panic!("say here which checks run {file}")),
    };
    (checks, files().filter(|name| name.starts_with(checks)).collect())
}

/// A build of the kernels that the checks of `file` need, with a change in it.
fn planted(file: &str, change: impl FnOnce(&str) -> String) -> Build {
    let (_, files) = checks_of(file);
    Build::only(&files).quickly().edit(file, change)
}

/// Replaces a text that is there once.
fn replace(file: &str, from: &str, to: &str) -> Build {
    planted(file, |text| {
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        text.replace(from, to)
    })
}

/// Removes the `n`-th occurrence.
fn without(text: &str, what: &str, n: usize) -> String {
    let (at, _) = text.match_indices(what).nth(n).expect("counted before");
    format!("{}{}", &text[..at], &text[at + what.len()..])
}

/// Runs the checks of `file`; `None` without a compiler.
fn run(build: &Build, file: &str, schedule: u32) -> Option<Outcome> {
    Some(child::checks(&build.make()?, schedule, checks_of(file).0))
}

const ATTENTION: &str = "prefix_attention.cu";
const BARRIERS: [&str; 2] = ["__syncthreads();", "__syncwarp();"];

/// A barrier that stands first in its kernel, where nothing has to be waited for yet: what follows it on its line.
const SPARE: [(&str, &str); 1] =
    [("softmax_cross_entropy.cu", "  // values of an earlier fold have been read")];

/// Every barrier of every kernel is needed: without it the watching build sees a race.
#[test]
fn no_barrier_is_missed() {
    let places = sources::FILES.iter().flat_map(|&(file, text)| {
        let count = move |what: &'static str| {
            let spare = move |at: usize| {
                let rest = text[at + what.len()..].lines().next().unwrap_or_default();
                SPARE.contains(&(file, rest))
            };
            let needed =
                text.match_indices(what).enumerate().filter(move |(_, (at, _))| !spare(*at));
            needed.map(move |(n, _)| (file, what, n))
        };
        BARRIERS.into_iter().flat_map(count)
    });
    let missed = in_parallel(places, |(file, what, n)| {
        let build = planted(file, |text| without(text, what, n)).watching();
        let outcome = run(&build, file, 0)?;
        let seen = outcome.text.contains("race:");
        (!seen).then(|| format!("{what} {n} of {file}: {}", outcome.failures()))
    });
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}

/// What a closure gives for some items, as many at once as there are cores.
fn in_parallel<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    each: impl Fn(T) -> Option<R> + Sync,
) -> Vec<R> {
    let next = Mutex::new(items.collect::<Vec<_>>().into_iter());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(item) = next.lock().unwrap().next() else { return };
                    let result = each(item);
                    results.lock().unwrap().extend(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}

/// The barriers of layer norm and attention are also missed by results, in some order of threads.
#[test]
fn missing_barriers_change_results() {
    let files = ["layer_norm.cu", ATTENTION, "prefix_attention_backward.cu"];
    let places = files.into_iter().flat_map(|file| {
        let (_, text) = sources::FILES.iter().find(|(name, _)| *name == file).expect("a kernel");
        (0..text.matches(BARRIERS[0]).count()).map(move |n| (file, n))
    });
    let unseen = in_parallel(places, |(file, n)| {
        let build = planted(file, |text| without(text, BARRIERS[0], n));
        let seen = (0..6).any(|i| run(&build, file, i).is_none_or(|outcome| !outcome.passed()));
        (!seen).then_some((file, n))
    });
    assert!(unseen.is_empty(), "{unseen:?}");
}

/// The next step's copies start before the barrier behind which nobody reads the last step's tiles. When copies land as
/// late as they may, the barriers that are left hide it.
#[test]
fn a_copy_that_starts_too_early() {
    let wait =
        "    if (k0 == 0) cp_async_wait<1>(); else cp_async_wait<0>();\n    __syncthreads();\n";
    let later =
        "    if (k0 == 0) cp_async_wait<2>(); else cp_async_wait<1>();\n    __syncthreads();\n";
    let behind = "    cp_async_commit();\n    // A warp without rows";
    let build = planted(ATTENTION, |text| {
        assert_eq!((text.matches(wait).count(), text.matches(behind).count()), (1, 1));
        let moved = format!("    cp_async_commit();\n{later}    // A warp without rows");
        text.replace(wait, "").replace(behind, &moved)
    });
    let mut noticed = Vec::new();
    for schedule in 0..6 {
        let Some(outcome) = run(&build, ATTENTION, schedule) else { return };
        noticed.extend((!outcome.passed()).then_some(schedule));
    }
    assert!(noticed.iter().all(|schedule| *schedule >= 3) && !noticed.is_empty(), "{noticed:?}");
    // Who looks at each access sees it in any.
    let Some(watched) = run(&build.watching(), ATTENTION, 0) else { return };
    assert!(watched.text.contains("race: a write over what was read"), "{}", watched.failures());
}

/// Warps without rows skip a step that has a barrier in it.
#[test]
fn a_barrier_that_some_warps_pass_by() {
    let whole = "if (k0 > 0 && step.empty(16 * M)) continue;";
    let build = replace(ATTENTION, whole, "if (step.empty(16 * M)) continue;");
    for schedule in [0, 5] {
        let Some(outcome) = run(&build, ATTENTION, schedule) else { return };
        let said = outcome.text.contains("divergent barrier");
        let named = outcome.text.contains("kernel prefix_attention_forward_64, block (");
        assert!(said && named, "{}", outcome.failures());
    }
}

/// Results stay right: only the count of conflicts shows it.
#[test]
fn a_swizzle_that_is_dropped() {
    let build = replace("prefix_attention.cuh", "(chunk ^ (row & 7)) * 16", "chunk * 16");
    let Some(outcome) = run(&build, ATTENTION, 0) else { return };
    assert!(outcome.passed(), "{}", outcome.failures());
    for (kernel, counts) in &outcome.counts {
        assert!(counts.matrix_conflicts > 1000, "{kernel}: {counts:?}");
    }
}

/// How a bug shows.
#[derive(Clone, Copy)]
enum Shows {
    /// Checks do not pass.
    Wrong,
    /// The process dies of an access outside memory.
    Killed,
    /// The launch fails: something was written where no page guards it.
    Refused,
}

#[test]
fn masks_and_tails_that_are_off() {
    let key = "if (n * 8 + i >= end)";
    let tail = "bool valid = row + i < rows;";
    let store = "if (row + i < rows) *(uint4*)to";
    let index = "(u64)index[row] * width";
    let common = "prefix_attention.cuh";
    let bugs = [
        (ATTENTION, "if (!step.full(KEYS)) hide(s, step, lane);", "", Shows::Wrong),
        (common, key, "if (n * 8 + i > end)", Shows::Wrong),
        (common, tail, "bool valid = row + i <= rows;", Shows::Killed),
        (common, store, "if (row + i <= rows) *(uint4*)to", Shows::Killed),
        ("gather_rows.cu", index, "(u64)(index[row] ? index[row] - 1 : 0) * width", Shows::Wrong),
        ("gather_rows.cu", "if (row < (u64)rows)", "if (row <= (u64)rows)", Shows::Killed),
        (
            "adamw.cu",
            "if (single < len - 4 * groups)",
            "if (single <= len - 4 * groups)",
            Shows::Refused,
        ),
    ];
    let wrong = in_parallel(bugs.into_iter(), |(file, from, to, shows)| {
        let build = replace(file, from, to);
        let outcome = run(&build, file, 0)?;
        let seen = match shows {
            Shows::Wrong => outcome.status.success() && !outcome.passed(),
            Shows::Killed => outcome.status.code().is_none() && outcome.text.contains("access to"),
            Shows::Refused => outcome.text.contains("behind an allocation"),
        };
        if !seen {
            return Some(format!("{to}: {}", outcome.failures()));
        }
        if matches!(shows, Shows::Wrong) {
            return None;
        }
        // The watching build names the byte, or the other block whose values were written over.
        let watched = run(&build.watching(), file, 0)?;
        let seen =
            ["of an allocation of", "race:"].iter().any(|words| watched.text.contains(words));
        (!seen).then(|| format!("{to}, watched: {}", watched.failures()))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
