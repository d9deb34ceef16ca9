//! Every kernel against double precision, in every schedule.

use std::sync::Mutex;

use crate::child::{self, Outcome};
use crate::harness::{self, Build};

/// Orders of threads and landings of copies that the emulator knows.
const SCHEDULES: u32 = 6;

/// Runs all checks in all schedules, as many at once as there are cores.
fn all_schedules(folder: &std::path::Path) -> Vec<Outcome> {
    let next = Mutex::new(0..SCHEDULES);
    let outcomes = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let Some(schedule) = next.lock().unwrap().next() else { return };
                    let outcome = child::checks(folder, schedule, "");
                    outcomes.lock().unwrap().push((schedule, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(schedule, _)| *schedule);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn every_kernel_in_every_schedule() {
    let Some(folder) = harness::libraries() else { return };
    let outcomes = all_schedules(&folder);
    for (schedule, outcome) in outcomes.iter().enumerate() {
        assert!(outcome.passed(), "schedule {schedule}: {}", outcome.failures());
    }
    // Bits that depend on the order of threads are a race, or a sum whose order is not fixed.
    for (schedule, outcome) in outcomes.iter().enumerate() {
        for (first, here) in outcomes[0].checks.iter().zip(&outcome.checks) {
            assert_eq!(first.name, here.name, "checks of schedule 0 and {schedule}");
            assert_eq!(first.bits, here.bits, "{}: bits of schedule 0 and {schedule}", here.name);
        }
        assert_eq!(outcomes[0].checks.len(), outcome.checks.len(), "checks of schedule {schedule}");
    }
    let mut total = 0;
    for (name, counts) in &outcomes[0].counts {
        assert_eq!(counts.matrix_conflicts, 0, "bank conflicts of ldmatrix in {name}");
        total += usize::from(counts.launches > 0);
    }
    println!("{} checks of {total} kernels", outcomes[0].checks.len());
    // A kernel that no check launches is not known to work.
    let mut idle: Vec<_> = outcomes[0].counts.iter().filter(|(_, c)| c.launches == 0).collect();
    idle.sort_by_key(|(name, _)| name.as_str());
    assert!(idle.is_empty(), "no check launches {idle:?}");
}

/// No race, no access outside memory, whether or not it would change a result in some schedule.
#[test]
fn every_access_watched() {
    let Some(folder) = Build::all().watching().make() else { return };
    let outcome = child::checks(&folder, 0, "");
    assert!(outcome.passed(), "{}", outcome.failures());
    let mut conflicts: Vec<_> =
        outcome.counts.iter().map(|(kernel, counts)| (counts.access_conflicts, kernel)).collect();
    conflicts.sort();
    for (count, kernel) in conflicts.into_iter().rev().filter(|(count, _)| *count > 0) {
        println!("{kernel}: {count} extra passes of plain accesses over the banks");
        // The kernels whose speed hangs on it promise that there are none.
        assert!(!kernel.starts_with("prefix_attention"), "{kernel}: {count} bank conflicts");
    }
}
