//! Random inputs, and how gradients are compared.

use proptest::test_runner::{Config, RngSeed};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// What a value of the forward pass may be off, relative to the largest one: f32 carries 6e-8, and sums of a few
/// hundred terms of both signs lose one or two digits of it.
const FORWARD: f64 = 2e-5;
/// What a gradient may be off, relative to the largest one of its kind. The f64 differences are good to about 1e-9 of
/// it; the f32 backward pass chains two or three sums and recomputes exponentials, which costs up to 1e-5. A wrong
/// sign, factor, index or a forgotten term is 1e-2 or more.
const BACKWARD: f64 = 1e-4;
/// Half the distance of a central difference: truncation is of the order of its square, 1e-10, and rounding in f64
/// about 1e-16 / 1e-5 = 1e-11.
const STEP: f64 = 1e-5;
/// Coordinates of a large input that are looked at.
const COORDINATES: usize = 32;

/// The same cases in every run.
pub(crate) fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(17), ..Config::default() }
}

/// Source of the values of one case.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// In `0..end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }

    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        let mut uniform = || (f64::from(self.0.next_u32()) + 0.5) / 4_294_967_296.0;
        let mut value =
            || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        (0..len).map(|_| value() as f32).collect()
    }

    /// `len` indices below `end`, or `missing` now and then.
    pub(crate) fn indices(&mut self, len: usize, end: usize, missing: Option<i32>) -> Vec<i32> {
        let mut index = || match missing {
            Some(missing) if self.below(4) == 0 => missing,
            _ => self.below(end) as i32,
        };
        (0..len).map(|_| index()).collect()
    }
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The scalar whose gradient is `dy` at `y`.
pub(crate) fn dot(dy: &[f32], y: &[f64]) -> f64 {
    assert_eq!(dy.len(), y.len());
    dy.iter().zip(y).map(|(&dy, y)| f64::from(dy) * y).sum()
}

pub(crate) fn largest(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().fold(0.0, |top, v| top.max(v.abs()))
}

pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let allowed = FORWARD * largest(expected.iter().copied());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= allowed, "{what}[{i}] is {found}, not {expected} within {allowed:e}");
    }
}

/// The gradient that a backward kernel writes, once it has shown that it writes all of it and that accumulating adds
/// the same onto what was there.
pub(crate) fn written(
    random: &mut Random,
    len: usize,
    mut run: impl FnMut(&mut [f32], bool),
) -> Vec<f32> {
    let mut gradient = vec![f32::NAN; len];
    run(&mut gradient, false);
    let before = random.normal(len);
    let mut sum = before.clone();
    run(&mut sum, true);
    let allowed = 1e-5 * (1.0 + largest(wide(&gradient))) as f32;
    for (i, ((g, b), s)) in gradient.iter().zip(&before).zip(&sum).enumerate() {
        assert!((s - (g + b)).abs() <= allowed, "accumulated [{i}]: {s}, not {g} + {b}");
    }
    gradient
}

/// The gradient that a backward kernel adds to a parameter's.
pub(crate) fn added(random: &mut Random, len: usize, run: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let before = random.normal(len);
    let mut sum = before.clone();
    run(&mut sum);
    sum.iter().zip(&before).map(|(sum, before)| sum - before).collect()
}

/// Holds the gradient `found` at `x` to central differences of `loss`. `terms` is the size of what cancels inside the
/// gradient, where that can be much larger than the gradient (a norm of two rows has almost none).
pub(crate) fn assert_gradient(
    what: &str,
    random: &mut Random,
    x: &[f32],
    found: &[f32],
    terms: f64,
    mut loss: impl FnMut(&[f64]) -> f64,
) {
    assert_eq!(x.len(), found.len(), "{what}: length");
    assert!(found.iter().all(|v| v.is_finite()), "{what}: a gradient is not finite");
    let mut coordinates: Vec<usize> = (0..x.len()).collect();
    if x.len() > COORDINATES {
        coordinates = (0..COORDINATES).map(|_| random.below(x.len())).collect();
        // The largest one sets the scale, when it is right.
        coordinates.extend((0..x.len()).max_by(|&a, &b| found[a].abs().total_cmp(&found[b].abs())));
    }
    let mut at = wide(x);
    let mut difference = |i: usize| {
        let (low, high) = (at[i] - STEP, at[i] + STEP);
        let middle = std::mem::replace(&mut at[i], high);
        let above = loss(&at);
        at[i] = low;
        let below = loss(&at);
        at[i] = middle;
        (above - below) / (high - low)
    };
    let expected: Vec<f64> = coordinates.iter().map(|&i| difference(i)).collect();
    let allowed = BACKWARD * largest(expected.iter().copied().chain([terms, 1e-6]));
    for (&i, &expected) in coordinates.iter().zip(&expected) {
        let off = (f64::from(found[i]) - expected).abs();
        assert!(off <= allowed, "{what}[{i}] is {}, not {expected} within {allowed:e}", found[i]);
    }
}
