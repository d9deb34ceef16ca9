//! Patch loss on the CPU. Targets are never stored: a patch is small, and its statistics cost less than its traffic.

use super::{EPS, PatchLoss};
use crate::cpu::pool;
use crate::cpu::rows::row;
use crate::cpu::simd::{LANES, fma, fold, simd_dispatch, sum_by};

/// Rows per piece.
const ROWS: usize = 16;

fn check(shape: PatchLoss, patches: &[f32], targets: &[i32]) {
    assert!(shape.patch > 0, "patch_loss: patch of no pixels");
    assert!(patches.len().is_multiple_of(shape.dim()), "patch_loss: patches");
    assert_eq!(targets.len(), shape.rows, "patch_loss: targets");
}

/// Writes the loss of each row.
///
/// # Panics
/// If a target is outside patches.
pub fn forward(shape: PatchLoss, pred: &[f32], patches: &[f32], targets: &[i32], loss: &mut [f32]) {
    check(shape, patches, targets);
    assert_eq!(pred.len(), shape.rows * shape.dim(), "patch_loss: pred");
    assert_eq!(loss.len(), shape.rows, "patch_loss: loss");
    pool::for_each_chunk(loss, ROWS, |i, loss| {
        forward_rows(shape, &pred[i * ROWS * shape.dim()..], patches, &targets[i * ROWS..], loss);
    });
}

/// `dpred = scale * 2 / n * (pred - target)`, written or accumulated.
///
/// # Panics
/// If a target is outside patches.
pub fn backward(
    shape: PatchLoss,
    pred: &[f32],
    patches: &[f32],
    targets: &[i32],
    scale: f32,
    dpred: &mut [f32],
    accumulate: bool,
) {
    check(shape, patches, targets);
    assert!(
        pred.len() == shape.rows * shape.dim() && dpred.len() == pred.len(),
        "patch_loss: pred and dpred"
    );
    let chunk = ROWS * shape.dim();
    pool::for_each_chunk(dpred, chunk, |i, dpred| {
        let pred = &pred[i * chunk..][..dpred.len()];
        backward_rows(shape, pred, patches, &targets[i * ROWS..], scale, dpred, accumulate);
    });
}

/// Writes what each row is scored against, `[rows, n]` in the order of the predictions.
///
/// # Panics
/// If a target is outside patches.
pub fn write_targets(shape: PatchLoss, patches: &[f32], targets: &[i32], out: &mut [f32]) {
    check(shape, patches, targets);
    assert_eq!(out.len(), shape.rows * shape.dim(), "patch_loss: values of the targets");
    pool::for_each_chunk(out, ROWS * shape.dim(), |i, out| {
        target_rows(shape, patches, &targets[i * ROWS..], out);
    });
}

/// Writes each row's `mean` and `std`, with which `pred * std + mean` is in the units of the patches: the target's own
/// when it is normalised, 0 and 1 when not.
///
/// # Panics
/// If a target is outside patches.
pub fn statistics(
    shape: PatchLoss,
    patches: &[f32],
    targets: &[i32],
    mean: &mut [f32],
    std: &mut [f32],
) {
    check(shape, patches, targets);
    assert!(mean.len() == shape.rows && std.len() == shape.rows, "patch_loss: mean and std");
    pool::for_each_chunk2(mean, ROWS, std, ROWS, |i, mean, std| {
        statistics_rows(shape, patches, &targets[i * ROWS..], mean, std);
    });
}

/// Mean of a target and its standard deviation with [`EPS`].
#[inline(always)]
fn mean_std(patch: &[f32], normalize: bool) -> (f32, f32) {
    if !normalize {
        return (0.0, 1.0);
    }
    // Taken from the first value on, the mean of a flat patch (a white background) is exact and its target is zero.
    // Rounding in the mean would otherwise be blown up by 1 / sqrt(EPS) = 1000.
    let first = patch[0];
    let mean = first + sum_by(patch, |v| v - first) / patch.len() as f32;
    let variance = sum_by(patch, |v| (v - mean) * (v - mean)) / (patch.len() - 1) as f32;
    (mean, (variance + EPS).sqrt())
}

/// The three colour planes of a patch.
#[inline(always)]
fn planes(patch: &[f32]) -> (&[f32], &[f32], &[f32]) {
    let (r, rest) = patch.split_at(patch.len() / 3);
    let (g, b) = rest.split_at(r.len());
    (r, g, b)
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    shape: PatchLoss,
    pred: &[f32],
    patches: &[f32],
    targets: &[i32],
    loss: &mut [f32],
) {
    let dim = shape.dim();
    for ((loss, pred), &target) in loss.iter_mut().zip(pred.chunks_exact(dim)).zip(targets) {
        let patch = row(patches, dim, target);
        let (mean, std) = mean_std(patch, shape.normalize);
        let rstd = 1.0 / std;
        let (r, g, b) = planes(patch);
        let mut lanes = [0.0; LANES];
        let colours = r.chunks(LANES).zip(g.chunks(LANES)).zip(b.chunks(LANES));
        for (pred, ((r, g), b)) in pred.as_chunks::<3>().0.chunks(LANES).zip(colours) {
            for ((((lane, p), r), g), b) in lanes.iter_mut().zip(pred).zip(r).zip(g).zip(b) {
                let (r, g, b) = ((r - mean) * rstd, (g - mean) * rstd, (b - mean) * rstd);
                let (r, g, b) = (p[0] - r, p[1] - g, p[2] - b);
                *lane = fma::<FMA>(r, r, fma::<FMA>(g, g, fma::<FMA>(b, b, *lane)));
            }
        }
        *loss = fold(lanes, |a, b| a + b) / dim as f32;
    }
}
simd_dispatch! {
    fn forward_rows(
        shape: PatchLoss, pred: &[f32], patches: &[f32], targets: &[i32], loss: &mut [f32],
    ) = forward_body;
}

#[inline(always)]
fn backward_body<const FMA: bool>(
    shape: PatchLoss,
    pred: &[f32],
    patches: &[f32],
    targets: &[i32],
    scale: f32,
    dpred: &mut [f32],
    accumulate: bool,
) {
    let dim = shape.dim();
    let scale = 2.0 * scale / dim as f32;
    let rows = pred.chunks_exact(dim).zip(dpred.chunks_exact_mut(dim)).zip(targets);
    for ((pred, dpred), &target) in rows {
        let patch = row(patches, dim, target);
        let (mean, std) = mean_std(patch, shape.normalize);
        let rstd = 1.0 / std;
        let (r, g, b) = planes(patch);
        let pred = pred.as_chunks::<3>().0.iter();
        let dpred = dpred.as_chunks_mut::<3>().0.iter_mut();
        for ((((d, p), r), g), b) in dpred.zip(pred).zip(r).zip(g).zip(b) {
            let target = [(r - mean) * rstd, (g - mean) * rstd, (b - mean) * rstd];
            for ((d, p), target) in d.iter_mut().zip(p).zip(target) {
                let gradient = scale * (p - target);
                *d = if accumulate { *d + gradient } else { gradient };
            }
        }
    }
}
simd_dispatch! {
    fn backward_rows(
        shape: PatchLoss, pred: &[f32], patches: &[f32], targets: &[i32], scale: f32,
        dpred: &mut [f32], accumulate: bool,
    ) = backward_body;
}

#[inline(always)]
fn target_body<const FMA: bool>(
    shape: PatchLoss,
    patches: &[f32],
    targets: &[i32],
    out: &mut [f32],
) {
    let dim = shape.dim();
    for (out, &target) in out.chunks_exact_mut(dim).zip(targets) {
        let patch = row(patches, dim, target);
        let (mean, std) = mean_std(patch, shape.normalize);
        let rstd = 1.0 / std;
        let (r, g, b) = planes(patch);
        for (((out, r), g), b) in out.as_chunks_mut::<3>().0.iter_mut().zip(r).zip(g).zip(b) {
            *out = [(r - mean) * rstd, (g - mean) * rstd, (b - mean) * rstd];
        }
    }
}
simd_dispatch! {
    fn target_rows(shape: PatchLoss, patches: &[f32], targets: &[i32], out: &mut [f32]) = target_body;
}

#[inline(always)]
fn statistics_body<const FMA: bool>(
    shape: PatchLoss,
    patches: &[f32],
    targets: &[i32],
    mean: &mut [f32],
    std: &mut [f32],
) {
    for ((mean, std), &target) in mean.iter_mut().zip(std).zip(targets) {
        (*mean, *std) = mean_std(row(patches, shape.dim(), target), shape.normalize);
    }
}
simd_dispatch! {
    fn statistics_rows(
        shape: PatchLoss, patches: &[f32], targets: &[i32], mean: &mut [f32], std: &mut [f32],
    ) = statistics_body;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_patch_has_a_target_of_zeros() {
        let shape = PatchLoss { rows: 1, patch: 14, normalize: true };
        let mut out = vec![f32::NAN; shape.dim()];
        write_targets(shape, &vec![2.248_908_3; shape.dim()], &[0], &mut out);
        assert!(out.iter().all(|&v| v == 0.0));
    }

    #[test]
    fn statistics_undo_the_normalisation_and_the_order() {
        let shape = PatchLoss { rows: 1, patch: 2, normalize: true };
        let patches: Vec<f32> = (0..24).map(|i| (i * i % 17) as f32).collect();
        let (mut out, mut mean, mut std) = ([0.0; 12], [0.0], [0.0]);
        write_targets(shape, &patches, &[1], &mut out);
        statistics(shape, &patches, &[1], &mut mean, &mut std);
        for (i, v) in out.iter().enumerate() {
            let (pixel, channel) = (i / 3, i % 3);
            assert!((v * std[0] + mean[0] - patches[12 + channel * 4 + pixel]).abs() < 1e-5);
        }
        let raw = PatchLoss { normalize: false, ..shape };
        statistics(raw, &patches, &[1], &mut mean, &mut std);
        assert_eq!((mean, std), ([0.0], [1.0]));
        write_targets(raw, &patches, &[1], &mut out);
        assert_eq!(out[1], patches[12 + 4]);
    }
}
