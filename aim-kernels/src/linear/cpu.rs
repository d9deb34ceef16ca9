//! Linear layer on the CPU.

use super::Linear;
use crate::cpu::gemm::{Mat, par_gemm};
use crate::cpu::pool;
use crate::cpu::simd::simd_dispatch;

/// Rows that one piece of an element-wise pass covers.
const ROWS: usize = 64;
/// Columns that one piece of a column sum covers: a few cache lines of each row.
const COLUMNS: usize = 128;

/// `y = x W^T + bias + residual`.
pub fn forward(
    shape: Linear,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    let Linear { rows, inputs, outputs } = shape;
    assert_eq!(y.len(), rows * outputs, "linear: y");
    // What is added goes in first and the product accumulates onto it: one pass instead of two.
    match (bias, residual) {
        (None, None) => {}
        (bias, residual) => {
            if let Some(bias) = bias {
                assert_eq!(bias.len(), outputs, "linear: bias");
            }
            if let Some(residual) = residual {
                assert_eq!(residual.len(), y.len(), "linear: residual");
            }
            pool::for_each_chunk(y, ROWS * outputs, |i, y| {
                let residual = residual.map(|r| &r[i * ROWS * outputs..][..y.len()]);
                prefill(outputs, bias, residual, y);
            });
        }
    }
    let accumulate = bias.is_some() || residual.is_some();
    par_gemm(y, accumulate, Mat::dense(x, rows, inputs), Mat::dense(weight, outputs, inputs).t());
}

fn prefill(width: usize, bias: Option<&[f32]>, residual: Option<&[f32]>, y: &mut [f32]) {
    match (bias, residual) {
        (None, Some(residual)) => y.copy_from_slice(residual),
        (Some(bias), None) => y.chunks_exact_mut(width).for_each(|y| y.copy_from_slice(bias)),
        (Some(bias), Some(residual)) => {
            for (y, residual) in y.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
                for ((y, r), b) in y.iter_mut().zip(residual).zip(bias) {
                    *y = r + b;
                }
            }
        }
        (None, None) => {}
    }
}

/// `dx = dy W`, or `dx += dy W` when `accumulate`.
pub fn backward_input(shape: Linear, dy: &[f32], weight: &[f32], dx: &mut [f32], accumulate: bool) {
    let Linear { rows, inputs, outputs } = shape;
    par_gemm(dx, accumulate, Mat::dense(dy, rows, outputs), Mat::dense(weight, outputs, inputs));
}

/// `dweight += dy^T x`.
pub fn backward_weight(shape: Linear, dy: &[f32], x: &[f32], dweight: &mut [f32]) {
    let Linear { rows, inputs, outputs } = shape;
    par_gemm(dweight, true, Mat::dense(dy, rows, outputs).t(), Mat::dense(x, rows, inputs));
}

/// `dbias += sum over rows of dy`.
pub fn backward_bias(shape: Linear, dy: &[f32], dbias: &mut [f32]) {
    assert_eq!(dy.len(), shape.rows * shape.outputs, "linear: dy");
    assert_eq!(dbias.len(), shape.outputs, "linear: dbias");
    pool::for_each_chunk(dbias, COLUMNS, |i, dbias| {
        add_columns(dy, shape.outputs, i * COLUMNS, dbias)
    });
}

#[inline(always)]
fn add_columns_body<const FMA: bool>(dy: &[f32], width: usize, first: usize, sum: &mut [f32]) {
    for row in dy.chunks_exact(width) {
        for (sum, v) in sum.iter_mut().zip(&row[first..]) {
            *sum += v;
        }
    }
}
simd_dispatch! { fn add_columns(dy: &[f32], width: usize, first: usize, sum: &mut [f32]) = add_columns_body; }
