//! Gather on the CPU.

use super::GatherRows;
use crate::cpu::pool;
use crate::cpu::rows::row;
use crate::cpu::simd::simd_dispatch;

/// Rows of y per piece of the forward pass.
const ROWS: usize = 64;
/// Most pieces of the backward pass; each reads the whole index.
const GROUPS: usize = 32;

/// `y[r] = x[index[r]]`.
///
/// # Panics
/// If an index is outside x.
pub fn forward(shape: GatherRows, x: &[f32], index: &[i32], y: &mut [f32]) {
    let GatherRows { sources, rows, dim } = shape;
    assert!(x.len() == sources * dim && y.len() == rows * dim, "gather_rows: x and y");
    assert_eq!(index.len(), rows, "gather_rows: index");
    pool::for_each_chunk(y, ROWS * dim, |i, y| {
        for (y, &index) in y.chunks_exact_mut(dim).zip(&index[i * ROWS..]) {
            y.copy_from_slice(row(x, dim, index));
        }
    });
}

/// `dx[index[r]] += dy[r]`, onto zeros or, when `accumulate`, onto what is there.
///
/// # Panics
/// If an index is outside dx.
pub fn backward(shape: GatherRows, dy: &[f32], index: &[i32], dx: &mut [f32], accumulate: bool) {
    let GatherRows { sources, rows, dim } = shape;
    assert!(dx.len() == sources * dim && dy.len() == rows * dim, "gather_rows: dx and dy");
    assert_eq!(index.len(), rows, "gather_rows: index");
    assert!(
        index.iter().all(|&i| i >= 0 && (i as usize) < sources),
        "gather_rows: an index outside {sources} rows"
    );
    // A piece owns rows of dx and looks for those that send to it: repeats add in order, and on one thread.
    let group = sources.div_ceil(GROUPS).max(16);
    pool::for_each_chunk(dx, group * dim, |i, dx| {
        scatter(dy, index, i * group, dim, dx, accumulate);
    });
}

#[inline(always)]
fn scatter_body<const FMA: bool>(
    dy: &[f32],
    index: &[i32],
    first: usize,
    dim: usize,
    dx: &mut [f32],
    accumulate: bool,
) {
    if !accumulate {
        dx.fill(0.0);
    }
    let owned = first..first + dx.len() / dim;
    for (dy, &index) in dy.chunks_exact(dim).zip(index) {
        if owned.contains(&(index as usize)) {
            let dx = &mut dx[(index as usize - first) * dim..][..dim];
            dx.iter_mut().zip(dy).for_each(|(sum, v)| *sum += v);
        }
    }
}
simd_dispatch! {
    fn scatter(
        dy: &[f32], index: &[i32], first: usize, dim: usize, dx: &mut [f32], accumulate: bool,
    ) = scatter_body;
}
