//! [`Key`]: all that the choice of an algorithm depends on.

use std::fmt;

use cudarc::driver::sys::CUdeviceptr;

/// Largest alignment that is told apart, bytes. No kernel for bf16 and f32 asks for more: it is the width of the widest
/// load and what the tensor memory accelerator wants. Pointers that differ only above share a plan, so the same layer
/// runs the same algorithm wherever its buffers are.
pub(super) const ALIGNMENT: u32 = 16;

/// Alignments of matrices that all start at multiples of [`ALIGNMENT`].
pub(crate) const ALIGNED: [u32; 5] = [ALIGNMENT; 5];

/// Which of a linear layer's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// `y = x W^T`
    Forward,
    /// `dx = dy W`
    BackwardInput,
    /// `dW = dy^T x`
    BackwardWeight,
}

/// Type of the result and of what is added to it; operands are bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    Bf16,
    F32,
}

impl Number {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// What is done to the product before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    Nothing,
    /// The product goes to a second matrix, its GELU (tanh form) to the result.
    Gelu,
    /// The product is multiplied by the derivative of the GELU at the values of a second matrix.
    GeluBackward,
}

/// What is added to the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Added {
    Nothing,
    /// What the result's memory holds.
    Result,
    /// Another matrix of the result's type and layout.
    Other,
}

/// All that the choice of an algorithm depends on. As text it is what algorithms are kept under between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) op: Op,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Row strides of the operands, in the order of the formula, and of the result, in elements.
    pub(crate) strides: [usize; 3],
    pub(crate) result: Number,
    pub(crate) epilogue: Epilogue,
    pub(crate) added: Added,
    /// Alignments of the operands, of what is added, of the result and of the epilogue's second matrix, bytes.
    pub(crate) alignments: [u32; 5],
}

/// Addresses of the matrices in the order of [`Key::alignments`]; 0 where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointers {
    pub(crate) left: CUdeviceptr,
    pub(crate) right: CUdeviceptr,
    pub(crate) added: CUdeviceptr,
    pub(crate) result: CUdeviceptr,
    pub(crate) aux: CUdeviceptr,
}

impl Pointers {
    /// Alignments in bytes, up to [`ALIGNMENT`].
    pub(crate) fn alignments(&self) -> [u32; 5] {
        [self.left, self.right, self.added, self.result, self.aux]
            .map(|pointer| 1u32 << pointer.trailing_zeros().min(ALIGNMENT.trailing_zeros()))
    }
}

impl Key {
    /// Rows and columns of the left operand, the right one and the result, as they are stored.
    pub(super) fn sizes(&self) -> [[usize; 2]; 3] {
        let Self { rows, inputs, outputs, .. } = *self;
        match self.op {
            Op::Forward => [[rows, inputs], [outputs, inputs], [rows, outputs]],
            Op::BackwardInput => [[rows, outputs], [outputs, inputs], [rows, inputs]],
            Op::BackwardWeight => [[rows, outputs], [rows, inputs], [outputs, inputs]],
        }
    }

    /// Whether the left and the right operand enter transposed.
    pub(super) fn transposed(&self) -> [bool; 2] {
        match self.op {
            Op::Forward => [false, true],
            Op::BackwardInput => [false, false],
            Op::BackwardWeight => [true, false],
        }
    }

    /// Bytes from the result's first value to its last.
    pub(super) fn result_bytes(&self) -> usize {
        let [_, _, [rows, columns]] = self.sizes();
        ((rows - 1) * self.strides[2] + columns) * self.result.bytes()
    }

    /// Floating-point operations, a multiplication and an addition counted as two.
    pub(super) fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.inputs as f64 * self.outputs as f64
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Forward => "linear forward",
            Op::BackwardInput => "linear backward_input",
            Op::BackwardWeight => "linear backward_weight",
        };
        let Self { rows, inputs, outputs, strides: [left, right, result], .. } = self;
        write!(f, "{op} rows={rows} inputs={inputs} outputs={outputs}")?;
        write!(f, " strides={left},{right},{result}")?;
        f.write_str(match self.result {
            Number::Bf16 => " bf16",
            Number::F32 => " f32",
        })?;
        f.write_str(match self.epilogue {
            Epilogue::Nothing => "",
            Epilogue::Gelu => " gelu",
            Epilogue::GeluBackward => " gelu_backward",
        })?;
        f.write_str(match self.added {
            Added::Nothing => "",
            Added::Result => " accumulate",
            Added::Other => " residual",
        })?;
        if self.alignments != ALIGNED {
            let [left, right, added, result, aux] = self.alignments;
            write!(f, " alignments={left},{right},{added},{result},{aux}")?;
        }
        Ok(())
    }
}
