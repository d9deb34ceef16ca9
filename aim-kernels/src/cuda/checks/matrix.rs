//! Operands of products, and the products in f64.

use half::bf16;

use super::lab::{Buffer, Lab};
use crate::cuda::CudaError;
use crate::linear::cuda::Operand;

/// A random matrix. What lies between its rows is NaN, behind the last row is nothing.
pub(super) struct Matrix {
    pub(super) values: Vec<bf16>,
    pub(super) buffer: Buffer<bf16>,
    pub(super) stride: usize,
}

impl Matrix {
    pub(super) fn new(
        lab: &mut Lab,
        rows: usize,
        width: usize,
        gap: usize,
    ) -> Result<Self, CudaError> {
        let stride = width.next_multiple_of(8) + gap;
        let mut values = lab.normal_bf16(((rows - 1) * stride + width).max(1), 1.0);
        for row in values.chunks_mut(stride) {
            let end = width.min(row.len());
            row[end..].fill(bf16::NAN);
        }
        Ok(Self { buffer: lab.upload(&values)?, values, stride })
    }

    pub(super) fn operand(&self) -> Operand<'_> {
        Operand { data: self.buffer.slice(), stride: self.stride }
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.values[row * self.stride + column].to_f32())
    }
}

/// `result[i][j] = sum over l of left(i, l) right(l, j)`
pub(super) fn product(
    [rows, columns, inner]: [usize; 3],
    left: impl Fn(usize, usize) -> f64,
    right: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut result = vec![0.0; rows * columns];
    for (i, row) in result.chunks_mut(columns).enumerate() {
        for l in 0..inner {
            let left = left(i, l);
            row.iter_mut().enumerate().for_each(|(j, sum)| *sum += left * right(l, j));
        }
    }
    result
}
