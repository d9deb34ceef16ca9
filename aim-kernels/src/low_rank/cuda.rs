//! Low-rank addend on CUDA: products of strided parts, through [`linear`](crate::linear::cuda).

use half::bf16;

use super::LowRank;
use crate::cuda::gemm::{Added, Key, Number, Op, Pointers};
use crate::cuda::{CudaError, DeviceSlice, Gpu};
use crate::linear::Linear;
use crate::linear::cuda::{Operand, key, run};

/// From the start of a matrix's part at `row` and `column` to its end.
fn part(matrix: Operand<'_>, row: usize, column: usize) -> Operand<'_> {
    let start = row * matrix.stride + column;
    Operand { data: matrix.data.range(start..matrix.data.len()), ..matrix }
}

/// `y[:, s_i] += u_i B_i^T`; y without gaps.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn add(
    gpu: &Gpu,
    shape: LowRank<'_>,
    u: Operand<'_>,
    weight: Operand<'_>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    let LowRank { rows, rank, outputs, .. } = shape;
    shape.check(y.len(), rows * shape.width(), shape.covered() * rank);
    for (index, segment, first) in shape.blocks() {
        let product = Linear { rows, inputs: rank, outputs: segment.len() };
        if rows * rank == 0 {
            continue;
        }
        let (u, weight) = (part(u, 0, index * rank), part(weight, first, 0));
        u.check("u", rows, rank);
        weight.check("B", segment.len(), rank);
        let key = Key {
            added: Added::Result,
            ..key(Op::Forward, product, [u.stride, weight.stride, outputs])
        };
        let result = y.range(segment.start..y.len()).ptr();
        let (left, right) = (u.data.ptr(), weight.data.ptr());
        run(gpu, key, Pointers { left, right, added: 0, result, aux: 0 })?;
    }
    Ok(())
}

/// `du_i = dy[:, s_i] B_i`, or `du_i += dy[:, s_i] B_i` when `accumulate`; du without gaps.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn backward_input(
    gpu: &Gpu,
    shape: LowRank<'_>,
    dy: Operand<'_>,
    weight: Operand<'_>,
    du: DeviceSlice<'_, bf16>,
    accumulate: bool,
) -> Result<(), CudaError> {
    let LowRank { rows, rank, outputs, .. } = shape;
    shape.check(rows * outputs, du.len(), shape.covered() * rank);
    for (index, segment, first) in shape.blocks() {
        let product = Linear { rows, inputs: rank, outputs: segment.len() };
        if rows * rank == 0 {
            continue;
        }
        let (dy, weight) = (part(dy, 0, segment.start), part(weight, first, 0));
        dy.check("dy", rows, segment.len());
        weight.check("B", segment.len(), rank);
        let key = Key {
            added: if accumulate { Added::Result } else { Added::Nothing },
            ..key(Op::BackwardInput, product, [dy.stride, weight.stride, shape.width()])
        };
        let result = du.range(index * rank..du.len()).ptr();
        let (left, right) = (dy.data.ptr(), weight.data.ptr());
        run(gpu, key, Pointers { left, right, added: 0, result, aux: 0 })?;
    }
    Ok(())
}

/// `dB_i += dy[:, s_i]^T u_i`; the rows of dB start `dweight_stride` values apart.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn backward_weight(
    gpu: &Gpu,
    shape: LowRank<'_>,
    dy: Operand<'_>,
    u: Operand<'_>,
    dweight: DeviceSlice<'_, f32>,
    dweight_stride: usize,
) -> Result<(), CudaError> {
    let LowRank { rows, rank, .. } = shape;
    for (index, segment, first) in shape.blocks() {
        let product = Linear { rows, inputs: rank, outputs: segment.len() };
        if rows * rank == 0 {
            continue;
        }
        let (dy, u) = (part(dy, 0, segment.start), part(u, 0, index * rank));
        dy.check("dy", rows, segment.len());
        u.check("u", rows, rank);
        let start = first * dweight_stride;
        assert!(
            dweight_stride >= rank
                && dweight.len() >= start + (segment.len() - 1) * dweight_stride + rank,
            "low_rank: dB has {} values for {shape:?} with stride {dweight_stride}",
            dweight.len()
        );
        let key = Key {
            result: Number::F32,
            added: Added::Result,
            ..key(Op::BackwardWeight, product, [dy.stride, u.stride, dweight_stride])
        };
        let result = dweight.range(start..dweight.len()).ptr();
        let (left, right) = (dy.data.ptr(), u.data.ptr());
        run(gpu, key, Pointers { left, right, added: 0, result, aux: 0 })?;
    }
    Ok(())
}
