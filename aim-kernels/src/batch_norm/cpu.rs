//! Batch norm on the CPU. A piece owns some columns and goes down all rows, so that every sum has one fixed order;
//! sums are f64, since there may be a million rows.

use super::BatchNorm;
use crate::cpu::pool::{self, Disjoint};
use crate::cpu::simd::{fma, simd_dispatch};

/// Columns per piece: two cache lines of each row.
const COLUMNS: usize = 32;
/// Rows per piece of evaluation.
const ROWS: usize = 64;

/// Statistics for evaluation, which training moves.
pub struct Running<'a> {
    /// Mean of each column.
    pub mean: &'a mut [f32],
    /// Unbiased variance of each column.
    pub var: &'a mut [f32],
    /// Share of the new batch (0.1 in PyTorch).
    pub momentum: f32,
}

/// Normalises by the batch's own statistics; writes y, mean and rstd and moves the running statistics.
///
/// # Panics
/// If there are fewer than two rows: one value has no variance.
pub fn forward_training(
    shape: BatchNorm,
    x: &[f32],
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    running: Option<Running<'_>>,
) {
    let BatchNorm { rows, dim, eps } = shape;
    assert!(rows > 1, "batch_norm: training needs at least two rows, not {rows}");
    assert!(x.len() == rows * dim && y.len() == x.len(), "batch_norm: x and y");
    assert!(mean.len() == dim && rstd.len() == dim, "batch_norm: mean and rstd");
    let y = Disjoint::new(y);
    let running = running.map(|running| {
        assert!(
            running.mean.len() == dim && running.var.len() == dim,
            "batch_norm: running statistics"
        );
        (Disjoint::new(running.mean), Disjoint::new(running.var), running.momentum)
    });
    pool::for_each_chunk2(mean, COLUMNS, rstd, COLUMNS, |i, mean, rstd| {
        let mut var = [0.0; COLUMNS];
        let (first, var) = (i * COLUMNS, &mut var[..mean.len()]);
        column_statistics(x, dim, first, mean, var);
        for (rstd, var) in rstd.iter_mut().zip(&*var) {
            *rstd = 1.0 / (var + eps).sqrt();
        }
        // Piece i owns these columns of y, which is `[rows, dim]` as x is.
        normalize_columns(x, dim, first, mean, rstd, &y);
        if let Some((running_mean, running_var, momentum)) = &running {
            let width = mean.len();
            // SAFETY: piece i owns these columns.
            let (running_mean, running_var) =
                unsafe { (running_mean.slice(first, width), running_var.slice(first, width)) };
            let unbiased = rows as f32 / (rows - 1) as f32;
            for ((old, old_var), (new, var)) in
                running_mean.iter_mut().zip(running_var).zip(mean.iter().zip(var))
            {
                *old += momentum * (*new - *old);
                *old_var += momentum * (*var * unbiased - *old_var);
            }
        }
    });
}

/// Normalises by the running statistics.
pub fn forward_evaluation(
    shape: BatchNorm,
    x: &[f32],
    running_mean: &[f32],
    running_var: &[f32],
    y: &mut [f32],
) {
    let BatchNorm { rows, dim, eps } = shape;
    assert!(x.len() == rows * dim && y.len() == x.len(), "batch_norm: x and y");
    assert!(
        running_mean.len() == dim && running_var.len() == dim,
        "batch_norm: running statistics"
    );
    pool::for_each_chunk(y, ROWS * dim, |i, y| {
        let x = &x[i * ROWS * dim..][..y.len()];
        evaluate_rows(x, running_mean, running_var, eps, y);
    });
}

/// Gradient of x through the batch's statistics, written or accumulated.
pub fn backward(
    shape: BatchNorm,
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let BatchNorm { rows, dim, .. } = shape;
    assert!(
        x.len() == rows * dim && dy.len() == x.len() && dx.len() == x.len(),
        "batch_norm: x, dy and dx"
    );
    assert!(mean.len() == dim && rstd.len() == dim, "batch_norm: mean and rstd");
    let dx = Disjoint::new(dx);
    pool::for_each(dim.div_ceil(COLUMNS), |i| {
        let columns = i * COLUMNS..dim.min((i + 1) * COLUMNS);
        // Piece i owns these columns of dx, which is `[rows, dim]` as x is.
        let stats = (&mean[columns.clone()], &rstd[columns.clone()]);
        backward_columns(x, dim, columns.start, stats, dy, &dx, accumulate);
    });
}

/// Mean and biased variance of the columns `first..first + mean.len()`.
#[inline(always)]
fn statistics_body<const FMA: bool>(
    x: &[f32],
    dim: usize,
    first: usize,
    mean: &mut [f32],
    var: &mut [f32],
) {
    let rows = (x.len() / dim) as f64;
    let (mut sum, mut squares) = ([0f64; COLUMNS], [0f64; COLUMNS]);
    // One pass: f64 sums of differences from the first row lose nothing that f32 could show.
    let origin = &x[first..first + mean.len()];
    for row in x.chunks_exact(dim) {
        let columns = row[first..].iter().zip(origin);
        for ((v, origin), (sum, squares)) in columns.zip(sum.iter_mut().zip(&mut squares)) {
            let v = f64::from(*v) - f64::from(*origin);
            *sum += v;
            *squares += v * v;
        }
    }
    let sums = sum.iter().zip(&squares).zip(origin);
    for (((sum, squares), origin), (mean, var)) in sums.zip(mean.iter_mut().zip(var)) {
        let shift = sum / rows;
        *mean = (f64::from(*origin) + shift) as f32;
        *var = (squares / rows - shift * shift).max(0.0) as f32;
    }
}
simd_dispatch! {
    fn column_statistics(
        x: &[f32], dim: usize, first: usize, mean: &mut [f32], var: &mut [f32],
    ) = statistics_body;
}

/// Normalises the columns `first..first + mean.len()`, of which the caller is the only user.
#[inline(always)]
fn normalize_body<const FMA: bool>(
    x: &[f32],
    dim: usize,
    first: usize,
    mean: &[f32],
    rstd: &[f32],
    y: &Disjoint<'_, f32>,
) {
    for (i, row) in x.chunks_exact(dim).enumerate() {
        // SAFETY: the caller owns these columns.
        let y = unsafe { y.slice(i * dim + first, mean.len()) };
        for (((y, x), mean), rstd) in y.iter_mut().zip(&row[first..]).zip(mean).zip(rstd) {
            *y = (x - mean) * rstd;
        }
    }
}
simd_dispatch! {
    fn normalize_columns(
        x: &[f32], dim: usize, first: usize, mean: &[f32], rstd: &[f32], y: &Disjoint<'_, f32>,
    ) = normalize_body;
}

#[inline(always)]
fn evaluate_body<const FMA: bool>(x: &[f32], mean: &[f32], var: &[f32], eps: f32, y: &mut [f32]) {
    let dim = mean.len();
    for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
        for (((y, x), mean), var) in y.iter_mut().zip(x).zip(mean).zip(var) {
            *y = (x - mean) / (var + eps).sqrt();
        }
    }
}
simd_dispatch! {
    fn evaluate_rows(x: &[f32], mean: &[f32], var: &[f32], eps: f32, y: &mut [f32]) = evaluate_body;
}

/// Gradient of the columns `first..first + mean.len()`, of which the caller is the only user.
#[inline(always)]
fn backward_body<const FMA: bool>(
    x: &[f32],
    dim: usize,
    first: usize,
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    dx: &Disjoint<'_, f32>,
    accumulate: bool,
) {
    let width = mean.len();
    let (mut sum, mut sum_x) = ([0f64; COLUMNS], [0f64; COLUMNS]);
    for (x, dy) in x.chunks_exact(dim).zip(dy.chunks_exact(dim)) {
        let columns = x[first..].iter().zip(&dy[first..]).zip(mean.iter().zip(rstd));
        for (((x, dy), (mean, rstd)), (sum, sum_x)) in columns.zip(sum.iter_mut().zip(&mut sum_x)) {
            *sum += f64::from(*dy);
            *sum_x += f64::from(dy * ((x - mean) * rstd));
        }
    }
    let rows = (x.len() / dim) as f64;
    let mean_dy = sum.map(|v| (v / rows) as f32);
    let mean_dy_x = sum_x.map(|v| (v / rows) as f32);
    for (i, (x, dy)) in x.chunks_exact(dim).zip(dy.chunks_exact(dim)).enumerate() {
        // SAFETY: the caller owns these columns.
        let dx = unsafe { dx.slice(i * dim + first, width) };
        let columns = x[first..].iter().zip(&dy[first..]).zip(mean.iter().zip(rstd));
        let means = mean_dy.iter().zip(&mean_dy_x);
        for ((dx, ((x, dy), (mean, rstd))), (mean_dy, mean_dy_x)) in
            dx.iter_mut().zip(columns).zip(means)
        {
            let gradient = rstd * fma::<FMA>((x - mean) * rstd, -mean_dy_x, dy - mean_dy);
            *dx = if accumulate { *dx + gradient } else { gradient };
        }
    }
}
simd_dispatch! {
    fn backward_columns(
        x: &[f32], dim: usize, first: usize, stats: (&[f32], &[f32]), dy: &[f32],
        dx: &Disjoint<'_, f32>, accumulate: bool,
    ) = backward_body;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_statistics_move_as_in_pytorch_and_drive_evaluation() {
        let shape = BatchNorm { rows: 4, dim: 1, eps: 1e-6 };
        let x = [1.0, 2.0, 3.0, 6.0];
        let (mut y, mut mean, mut rstd) = ([0.0; 4], [0.0], [0.0]);
        let (mut running_mean, mut running_var) = ([0.0], [1.0]);
        let running = Running { mean: &mut running_mean, var: &mut running_var, momentum: 0.1 };
        forward_training(shape, &x, &mut y, &mut mean, &mut rstd, Some(running));
        // Mean 3, biased variance 3.5, unbiased 14 / 3.
        assert!((running_mean[0] - 0.3).abs() < 1e-6);
        assert!((running_var[0] - (0.9 + 0.1 * 14.0 / 3.0)).abs() < 1e-6);
        assert!((y[3] - 3.0 / (3.5f32 + 1e-6).sqrt()).abs() < 1e-6);
        forward_evaluation(shape, &x, &running_mean, &running_var, &mut y);
        assert!((y[3] - 5.7 / (running_var[0] + 1e-6).sqrt()).abs() < 1e-5);
    }
}
