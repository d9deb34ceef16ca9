//! Positions on the CPU.

use super::Positions;
use crate::cpu::pool;
use crate::cpu::rows::row;
use crate::cpu::simd::simd_dispatch;

/// Rows per piece.
const ROWS: usize = 64;

/// `y[r] = x[r] + table[index[r]]`.
///
/// # Panics
/// If an index is outside the table.
pub fn forward(shape: Positions, x: &[f32], table: &[f32], index: &[i32], y: &mut [f32]) {
    let Positions { rows, dim } = shape;
    assert!(x.len() == rows * dim && y.len() == x.len(), "positions: x and y");
    assert_eq!(index.len(), rows, "positions: index");
    pool::for_each_chunk(y, ROWS * dim, |i, y| {
        let index = &index[i * ROWS..][..y.len() / dim];
        add_rows(&x[i * ROWS * dim..][..y.len()], table, index, dim, y);
    });
}

#[inline(always)]
fn add_body<const FMA: bool>(x: &[f32], table: &[f32], index: &[i32], dim: usize, y: &mut [f32]) {
    for ((x, y), &index) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(index) {
        for ((y, x), t) in y.iter_mut().zip(x).zip(row(table, dim, index)) {
            *y = x + t;
        }
    }
}
simd_dispatch! {
    fn add_rows(x: &[f32], table: &[f32], index: &[i32], dim: usize, y: &mut [f32]) = add_body;
}
