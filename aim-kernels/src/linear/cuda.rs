//! Linear layer on CUDA: the three products, through [`gemm`].
//!
//! Operands are bf16, sums f32. Operands have a row stride in elements, at least the row's length; a multiple of 8 with
//! a start at a multiple of 16 bytes lets cuBLASLt use the fast kernels. Values between the end of a row and the next
//! row are never read or written. What is written must not overlap what is read.

use half::bf16;

use super::Linear;
use crate::cuda::gemm::{self, ALIGNED, Added, Epilogue, Key, Number, Op, Pointers};
use crate::cuda::{CudaError, DeviceSlice, Gpu};

/// Result of a product: bf16 for activations, f32 for predictions, logits, and gradients of what is f32. Without gaps
/// between rows.
#[derive(Clone, Copy)]
pub enum Out<'a> {
    /// Rounded once, from the f32 sum.
    Bf16(DeviceSlice<'a, bf16>),
    /// The sum itself.
    F32(DeviceSlice<'a, f32>),
}

impl Out<'_> {
    fn parts(self) -> (u64, Number, usize) {
        match self {
            Self::Bf16(y) => (y.ptr(), Number::Bf16, y.len()),
            Self::F32(y) => (y.ptr(), Number::F32, y.len()),
        }
    }
}

/// A bf16 matrix with a row stride.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// The values from the first row's first to at least the last row's last.
    pub data: DeviceSlice<'a, bf16>,
    /// Elements from one row's start to the next one's.
    pub stride: usize,
}

impl<'a> Operand<'a> {
    /// Rows of `width` values without gaps.
    pub fn dense(data: DeviceSlice<'a, bf16>, width: usize) -> Self {
        Self { data, stride: width }
    }

    pub(crate) fn check(self, what: &str, rows: usize, width: usize) {
        check_matrix(what, self.data.len(), self.stride, rows, width);
    }
}

fn check_matrix(what: &str, len: usize, stride: usize, rows: usize, width: usize) {
    assert!(
        stride >= width && rows * width > 0 && len >= (rows - 1) * stride + width,
        "linear: {what} has {len} values for {rows} rows of {width} with stride {stride}"
    );
}

/// The key of a product, with the strides of the left operand, the right one and the result.
pub(crate) fn key(op: Op, shape: Linear, strides: [usize; 3]) -> Key {
    let Linear { rows, inputs, outputs } = shape;
    Key {
        op,
        rows,
        inputs,
        outputs,
        strides,
        result: Number::Bf16,
        epilogue: Epilogue::Nothing,
        added: Added::Nothing,
        alignments: ALIGNED,
    }
}

/// Runs a product whose operands and result were checked.
pub(crate) fn run(gpu: &Gpu, key: Key, pointers: Pointers) -> Result<(), CudaError> {
    let key = Key { alignments: pointers.alignments(), ..key };
    // SAFETY: every caller has checked the lengths of the slices that the pointers are from; slices lie inside live
    // arenas; what is written overlaps nothing, says the module's text.
    unsafe { gemm::run(gpu, &key, pointers) }
}

/// `y = x W^T + residual`: x `[rows, inputs]`, weight `[outputs, inputs]`, residual and y `[rows, outputs]` without
/// gaps. The residual is added to the f32 sum, and may be y's own memory.
///
/// # Errors
/// [`CudaError::Blas`], or [`CudaError::Unsupported`] for a residual with an f32 result.
///
/// # Panics
/// If lengths do not fit the shape.
pub fn forward(
    gpu: &Gpu,
    shape: Linear,
    x: Operand<'_>,
    weight: Operand<'_>,
    residual: Option<DeviceSlice<'_, bf16>>,
    y: Out<'_>,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let (result, number, len) = y.parts();
    assert_eq!(len, rows * outputs, "linear: y");
    if len == 0 {
        return Ok(());
    }
    x.check("x", rows, inputs);
    weight.check("weight", outputs, inputs);
    let added = match residual {
        None => Added::Nothing,
        Some(_) if number == Number::F32 => {
            return Err(CudaError::Unsupported {
                op: "linear",
                expected: "a bf16 result where a residual is added",
                found: format!("an f32 result for {shape:?}"),
            });
        }
        Some(residual) => {
            assert_eq!(residual.len(), len, "linear: residual");
            if residual.ptr() == result { Added::Result } else { Added::Other }
        }
    };
    let key = Key {
        result: number,
        added,
        ..key(Op::Forward, shape, [x.stride, weight.stride, outputs])
    };
    let pointers = Pointers {
        left: x.data.ptr(),
        right: weight.data.ptr(),
        added: residual.map_or(0, DeviceSlice::ptr),
        result,
        aux: 0,
    };
    run(gpu, key, pointers)
}

/// `pre = x W^T`, `y = gelu(pre)`: the tanh form of the GELU, of the f32 sum. pre and y: `[rows, outputs]` without
/// gaps. For shapes where [`fuses_gelu`] says so.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn forward_gelu(
    gpu: &Gpu,
    shape: Linear,
    x: Operand<'_>,
    weight: Operand<'_>,
    pre: DeviceSlice<'_, bf16>,
    y: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    assert_eq!(y.len(), rows * outputs, "linear: y");
    assert_eq!(pre.len(), y.len(), "linear: pre");
    if y.is_empty() {
        return Ok(());
    }
    x.check("x", rows, inputs);
    weight.check("weight", outputs, inputs);
    let pointers = Pointers {
        left: x.data.ptr(),
        right: weight.data.ptr(),
        added: 0,
        result: y.ptr(),
        aux: pre.ptr(),
    };
    run(gpu, gelu_key(shape, x.stride, weight.stride), pointers)
}

fn gelu_key(shape: Linear, x_stride: usize, weight_stride: usize) -> Key {
    let key = key(Op::Forward, shape, [x_stride, weight_stride, shape.outputs]);
    Key { epilogue: Epilogue::Gelu, ..key }
}

/// Whether [`forward_gelu`] can run with these strides and buffers that start at multiples of 16 bytes. Where it
/// cannot, [`gemm::notes`] says so.
///
/// # Errors
/// As for opening cuBLASLt.
pub fn fuses_gelu(
    gpu: &Gpu,
    shape: Linear,
    x_stride: usize,
    weight_stride: usize,
) -> Result<bool, CudaError> {
    if shape.rows * shape.outputs == 0 {
        return Ok(true);
    }
    gemm::possible(gpu, &gelu_key(shape, x_stride, weight_stride))
}

/// `dx = dy W`, or `dx += dy W` when `accumulate`: dy `[rows, outputs]`, weight `[outputs, inputs]`, dx
/// `[rows, inputs]` without gaps.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn backward_input(
    gpu: &Gpu,
    shape: Linear,
    dy: Operand<'_>,
    weight: Operand<'_>,
    dx: Out<'_>,
    accumulate: bool,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    let (result, number, len) = dx.parts();
    assert_eq!(len, rows * inputs, "linear: dx");
    if len == 0 {
        return Ok(());
    }
    dy.check("dy", rows, outputs);
    weight.check("weight", outputs, inputs);
    let added = if accumulate { Added::Result } else { Added::Nothing };
    let key = Key {
        result: number,
        added,
        ..key(Op::BackwardInput, shape, [dy.stride, weight.stride, inputs])
    };
    let pointers =
        Pointers { left: dy.data.ptr(), right: weight.data.ptr(), added: 0, result, aux: 0 };
    run(gpu, key, pointers)
}

/// `dpre = (dy W) gelu'(pre)`, the gradient of what the layer's input was the GELU of (tanh form). dy
/// `[rows, outputs]`, weight `[outputs, inputs]`, pre and dpre `[rows, inputs]` without gaps. For shapes where
/// [`fuses_gelu_backward`] says so.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn backward_input_gelu(
    gpu: &Gpu,
    shape: Linear,
    dy: Operand<'_>,
    weight: Operand<'_>,
    pre: DeviceSlice<'_, bf16>,
    dpre: DeviceSlice<'_, bf16>,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    assert_eq!(dpre.len(), rows * inputs, "linear: dpre");
    assert_eq!(pre.len(), dpre.len(), "linear: pre");
    if dpre.is_empty() {
        return Ok(());
    }
    dy.check("dy", rows, outputs);
    weight.check("weight", outputs, inputs);
    let pointers = Pointers {
        left: dy.data.ptr(),
        right: weight.data.ptr(),
        added: 0,
        result: dpre.ptr(),
        aux: pre.ptr(),
    };
    run(gpu, gelu_backward_key(shape, dy.stride, weight.stride), pointers)
}

fn gelu_backward_key(shape: Linear, dy_stride: usize, weight_stride: usize) -> Key {
    let key = key(Op::BackwardInput, shape, [dy_stride, weight_stride, shape.inputs]);
    Key { epilogue: Epilogue::GeluBackward, ..key }
}

/// Whether [`backward_input_gelu`] can run, as [`fuses_gelu`] for the other direction.
///
/// # Errors
/// As for opening cuBLASLt.
pub fn fuses_gelu_backward(
    gpu: &Gpu,
    shape: Linear,
    dy_stride: usize,
    weight_stride: usize,
) -> Result<bool, CudaError> {
    if shape.rows * shape.inputs == 0 {
        return Ok(true);
    }
    gemm::possible(gpu, &gelu_backward_key(shape, dy_stride, weight_stride))
}

/// `dW += dy^T x`: dy `[rows, outputs]`, x `[rows, inputs]`, dweight `[outputs, inputs]` with a row stride. Without
/// rows nothing is added.
///
/// # Errors
/// [`CudaError::Blas`].
///
/// # Panics
/// If lengths do not fit the shape.
pub fn backward_weight(
    gpu: &Gpu,
    shape: Linear,
    dy: Operand<'_>,
    x: Operand<'_>,
    dweight: DeviceSlice<'_, f32>,
    dweight_stride: usize,
) -> Result<(), CudaError> {
    let Linear { rows, inputs, outputs } = shape;
    if rows * inputs * outputs == 0 {
        return Ok(());
    }
    dy.check("dy", rows, outputs);
    x.check("x", rows, inputs);
    check_matrix("dweight", dweight.len(), dweight_stride, outputs, inputs);
    let key = Key {
        result: Number::F32,
        added: Added::Result,
        ..key(Op::BackwardWeight, shape, [dy.stride, x.stride, dweight_stride])
    };
    let pointers = Pointers {
        left: dy.data.ptr(),
        right: x.data.ptr(),
        added: 0,
        result: dweight.ptr(),
        aux: 0,
    };
    run(gpu, key, pointers)
}
