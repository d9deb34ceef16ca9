//! Low-rank addend on the CPU.

use super::LowRank;
use crate::cpu::gemm::{Mat, MatMut, gemm, par_gemm};
use crate::cpu::pool;

/// Rows that one piece covers.
const ROWS: usize = 128;

/// `y[:, s_i] += u_i B_i^T`.
pub fn add(shape: LowRank<'_>, u: &[f32], weight: &[f32], y: &mut [f32]) {
    shape.check(y.len(), u.len(), weight.len());
    let LowRank { rank, outputs, .. } = shape;
    let width = shape.width();
    pool::for_each_chunk(y, ROWS * outputs, |piece, y| {
        let rows = y.len() / outputs;
        let u = &u[piece * ROWS * width..][..rows * width];
        for (index, segment, first) in shape.blocks() {
            let weight = Mat::dense(&weight[first * rank..], segment.len(), rank);
            let u = Mat::new(&u[index * rank..], rows, rank, width);
            let y = MatMut::new(&mut y[segment.start..], rows, segment.len(), outputs);
            gemm(y, true, u, weight.t(), 1.0);
        }
    });
}

/// `du_i = dy[:, s_i] B_i`, or `du_i += dy[:, s_i] B_i` when `accumulate`.
pub fn backward_input(
    shape: LowRank<'_>,
    dy: &[f32],
    weight: &[f32],
    du: &mut [f32],
    accumulate: bool,
) {
    shape.check(dy.len(), du.len(), weight.len());
    let LowRank { rank, outputs, .. } = shape;
    let width = shape.width();
    pool::for_each_chunk(du, ROWS * width, |piece, du| {
        let rows = du.len() / width;
        let dy = &dy[piece * ROWS * outputs..][..rows * outputs];
        for (index, segment, first) in shape.blocks() {
            let weight = Mat::dense(&weight[first * rank..], segment.len(), rank);
            let dy = Mat::new(&dy[segment.start..], rows, segment.len(), outputs);
            let du = MatMut::new(&mut du[index * rank..], rows, rank, width);
            gemm(du, accumulate, dy, weight, 1.0);
        }
    });
}

/// `dB_i += dy[:, s_i]^T u_i`.
pub fn backward_weight(shape: LowRank<'_>, dy: &[f32], u: &[f32], dweight: &mut [f32]) {
    shape.check(dy.len(), u.len(), dweight.len());
    let LowRank { rows, rank, outputs, .. } = shape;
    let width = shape.width();
    if rows == 0 {
        return;
    }
    for (index, segment, first) in shape.blocks() {
        let dy = Mat::new(&dy[segment.start..], rows, segment.len(), outputs);
        let u = Mat::new(&u[index * rank..], rows, rank, width);
        let dweight = &mut dweight[first * rank..][..segment.len() * rank];
        par_gemm(dweight, true, dy.t(), u);
    }
}
