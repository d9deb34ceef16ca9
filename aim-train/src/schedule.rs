//! The learning rate: linear warm-up, then half a cosine down to zero (the paper's Table 1, with
//! the shape of the public configuration).

use std::f64::consts::PI;

/// The learning rate of the first step of a warm-up.
pub const WARMUP_START: f64 = 1e-6;

/// The learning rate of `step`, counted from 0, of `total` steps.
///
/// With `where = step / total`: over the first `warmup_fraction` it rises linearly from
/// [`WARMUP_START`] to `peak`, then it falls as `peak / 2 * (1 + cos(pi * t))` with `t` going from
/// 0 to 1 over the rest. It is set before each step, so the last one is taken slightly above zero.
///
/// ```
/// use aim_train::schedule::lr_at;
/// assert_eq!(lr_at(0, 1000, 1e-3, 0.025), 1e-6);
/// assert_eq!(lr_at(25, 1000, 1e-3, 0.025), 1e-3);
/// assert!(lr_at(999, 1000, 1e-3, 0.025) < 1e-8);
/// ```
pub fn lr_at(step: u64, total: u64, peak: f64, warmup_fraction: f64) -> f64 {
    let position = step.min(total) as f64 / total.max(1) as f64;
    if position < warmup_fraction {
        return WARMUP_START + (peak - WARMUP_START) * (position / warmup_fraction);
    }
    let rest = 1.0 - warmup_fraction;
    let t = if rest > 0.0 { (position - warmup_fraction) / rest } else { 1.0 };
    0.5 * peak * (1.0 + (PI * t).cos())
}

/// As [`lr_at`] with a warm-up of so many steps and a floor: the shape of the recipes for classifiers, which end at 1e-5.
///
/// ```
/// use aim_train::schedule::lr_with_floor;
/// assert_eq!(lr_with_floor(0, 100, [1e-3, 1e-5], 0), 1e-3);
/// assert!((lr_with_floor(50, 100, [1e-3, 1e-5], 0) - 5.05e-4).abs() < 1e-12);
/// assert!(lr_with_floor(99, 100, [1e-3, 1e-5], 10) < 1.1e-5);
/// ```
pub fn lr_with_floor(step: u64, total: u64, [peak, floor]: [f64; 2], warmup_steps: u64) -> f64 {
    if step < warmup_steps {
        let start = WARMUP_START.min(peak);
        return start + (peak - start) * (step as f64 / warmup_steps as f64);
    }
    let rest = total.saturating_sub(warmup_steps).max(1);
    let t = (step.min(total) - warmup_steps.min(step)) as f64 / rest as f64;
    floor + 0.5 * (peak - floor) * (1.0 + (PI * t.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_points() {
        let at = |step| lr_at(step, 1_250_000, 1e-3, 0.025);
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-15;
        assert!(close(at(0), 1e-6));
        // Half of the 31,250 warm-up steps: the mean of both ends.
        assert!(close(at(15_625), (1e-6 + 1e-3) / 2.0));
        assert!(close(at(31_250), 1e-3));
        // Half of the rest: half of the peak; all of it: zero.
        assert!(close(at(31_250 + 609_375), 5e-4));
        assert!(close(at(1_250_000), 0.0));
        // No warm-up starts at the peak; nothing but warm-up ends below it.
        assert_eq!(lr_at(0, 10, 1e-3, 0.0), 1e-3);
        assert!(lr_at(9, 10, 1e-3, 1.0) < 1e-3 && lr_at(9, 10, 1e-3, 1.0) > 8e-4);
    }

    proptest! {
        #[test]
        fn rises_then_falls_within_bounds(
            total in 1u64..100_000, peak in 1e-5f64..1.0, warmup in 0.0f64..=1.0, step in 0u64..100_000
        ) {
            let step = step % total;
            let (now, next) = (lr_at(step, total, peak, warmup), lr_at(step + 1, total, peak, warmup));
            prop_assert!((0.0..=peak).contains(&now), "{now}");
            let position = |step: u64| step as f64 / total as f64;
            if position(step + 1) < warmup {
                prop_assert!(next > now);
            } else if position(step) >= warmup {
                prop_assert!(next < now);
            }
        }
    }
}
