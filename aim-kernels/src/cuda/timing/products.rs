//! Every matrix product of a training step, fused as a step fuses it.

use super::sets::Part;
use super::{Case, Sizes};
use crate::linear::Linear;
use crate::linear::cuda::{self, Operand, Out};

const BF16: usize = 2;
const F32: usize = 4;
/// Weights are small, so that results are not: Xavier's for a width of 1500.
const WEIGHT: f64 = 0.025;

/// A linear layer of the model.
#[derive(Clone, Copy)]
struct Layer {
    name: &'static str,
    kernel: Linear,
    /// From one row to the next of x and of the weight; of dy.
    strides: [usize; 2],
    /// Its result is f32.
    f32: bool,
    /// A residual is added to its result.
    residual: bool,
    /// A GELU follows it.
    gelu: bool,
    /// It follows a GELU.
    after_gelu: bool,
    /// Its input has a gradient.
    gradient: bool,
}

impl Layer {
    fn new(name: &'static str, rows: usize, inputs: usize, outputs: usize) -> Self {
        let kernel = Linear { rows, inputs, outputs };
        let strides = [inputs, outputs];
        let (f32, residual, gelu, after_gelu) = (false, false, false, false);
        Self { name, kernel, strides, f32, residual, gelu, after_gelu, gradient: true }
    }

    fn shape(&self) -> String {
        let Linear { rows, inputs, outputs } = self.kernel;
        format!("{rows} x {inputs} -> {outputs}")
    }

    fn x(&self) -> Part {
        Part::bf16(self.kernel.rows * self.strides[0])
    }

    fn weight(&self) -> Part {
        Part::bf16(self.kernel.outputs * self.strides[0]).scaled(WEIGHT)
    }

    fn dy(&self) -> Part {
        Part::bf16(self.kernel.rows * self.strides[1])
    }

    /// A bf16 result, or something of its size.
    fn y(&self) -> Part {
        Part::output(BF16 * self.kernel.rows * self.kernel.outputs)
    }

    fn dx(&self) -> Part {
        Part::output(BF16 * self.kernel.rows * self.kernel.inputs)
    }

    /// The shape over the padding of x and the weight, as a step runs it.
    fn padded(&self) -> Linear {
        Linear { inputs: self.strides[0], ..self.kernel }
    }

    fn cases(self) -> Vec<Case> {
        let mut cases = vec![self.forward(), self.backward_weight()];
        if self.gradient {
            cases.push(self.backward_input());
        }
        if self.gelu {
            cases.push(self.forward_gelu());
        }
        if self.after_gelu {
            cases.push(self.backward_input_gelu());
        }
        let Linear { rows, inputs, outputs } = self.kernel;
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        cases.into_iter().map(|case| case.flops(flops, flops)).collect()
    }

    fn forward(self) -> Case {
        let Self { strides: [stride, _], f32, residual, .. } = self;
        let kernel = self.padded();
        let y = if f32 { Part::output(F32 * kernel.rows * kernel.outputs) } else { self.y() };
        let mut parts = vec![self.x(), self.weight(), y];
        if residual {
            parts.push(Part::bf16(kernel.rows * kernel.outputs));
        }
        let name = format!("{}/forward", self.name);
        Case::new(name, self.shape(), parts, move |gpu, sets, n| {
            let x = Operand { data: sets.get(n, 0), stride };
            let weight = Operand { data: sets.get(n, 1), stride };
            let y = if f32 { Out::F32(sets.get(n, 2)) } else { Out::Bf16(sets.get(n, 2)) };
            let residual = residual.then(|| sets.get(n, 3));
            cuda::forward(gpu, kernel, x, weight, residual, y)
        })
    }

    fn forward_gelu(self) -> Case {
        let Self { kernel, strides: [stride, _], .. } = self;
        let parts = vec![self.x(), self.weight(), self.y(), self.y()];
        let name = format!("{}/forward_gelu", self.name);
        Case::new(name, self.shape(), parts, move |gpu, sets, n| {
            let x = Operand { data: sets.get(n, 0), stride };
            let weight = Operand { data: sets.get(n, 1), stride };
            cuda::forward_gelu(gpu, kernel, x, weight, sets.get(n, 2), sets.get(n, 3))
        })
    }

    fn backward_input(self) -> Case {
        let Self { kernel, strides: [weight_stride, stride], .. } = self;
        let parts = vec![self.dy(), self.weight(), self.dx()];
        let name = format!("{}/backward_input", self.name);
        Case::new(name, self.shape(), parts, move |gpu, sets, n| {
            let dy = Operand { data: sets.get(n, 0), stride };
            let weight = Operand { data: sets.get(n, 1), stride: weight_stride };
            cuda::backward_input(gpu, kernel, dy, weight, Out::Bf16(sets.get(n, 2)), false)
        })
    }

    fn backward_input_gelu(self) -> Case {
        let Self { kernel, strides: [weight_stride, stride], .. } = self;
        let pre = Part::bf16(kernel.rows * kernel.inputs);
        let parts = vec![self.dy(), self.weight(), pre, self.dx()];
        let name = format!("{}/backward_input_gelu", self.name);
        Case::new(name, self.shape(), parts, move |gpu, sets, n| {
            let dy = Operand { data: sets.get(n, 0), stride };
            let weight = Operand { data: sets.get(n, 1), stride: weight_stride };
            cuda::backward_input_gelu(gpu, kernel, dy, weight, sets.get(n, 2), sets.get(n, 3))
        })
    }

    fn backward_weight(self) -> Case {
        let Self { strides: [x_stride, stride], .. } = self;
        let kernel = self.padded();
        let dweight = Part::output(F32 * kernel.outputs * x_stride).updated();
        let parts = vec![self.dy(), self.x(), dweight];
        let name = format!("{}/backward_weight", self.name);
        Case::new(name, self.shape(), parts, move |gpu, sets, n| {
            let dy = Operand { data: sets.get(n, 0), stride };
            let x = Operand { data: sets.get(n, 1), stride: x_stride };
            cuda::backward_weight(gpu, kernel, dy, x, sets.get(n, 2), x_stride)
        })
    }
}

/// The products at the trunk's width, the head's first among them: forward, dX and dW of each layer; beside the layers
/// around a GELU the products with a fused one.
pub fn trunk_products(sizes: &Sizes) -> Vec<Case> {
    let (tokens, dim, rows) = (sizes.all_tokens(), sizes.dim, sizes.rows.len());
    let hidden = sizes.mlp_ratio * dim;
    let patches = Layer {
        strides: [sizes.patch_stride(), dim],
        gradient: false,
        ..Layer::new("patches", tokens, sizes.patch_dim(), dim)
    };
    let layers = [
        patches,
        Layer::new("qkv", tokens, dim, 3 * dim),
        Layer { residual: true, ..Layer::new("proj", tokens, dim, dim) },
        Layer { gelu: true, ..Layer::new("fc1", tokens, dim, hidden) },
        Layer { residual: true, after_gelu: true, ..Layer::new("fc2", tokens, hidden, dim) },
        Layer::new("head proj", rows, dim, sizes.head_width),
    ];
    layers.into_iter().flat_map(Layer::cases).collect()
}

/// The products at the pixel head's width, the same for all sizes of the trunk.
pub fn head_products(sizes: &Sizes) -> Vec<Case> {
    let (rows, width, patch) = (sizes.rows.len(), sizes.head_width, sizes.patch_dim());
    let hidden = sizes.mlp_ratio * width;
    let layers = [
        Layer { gelu: true, ..Layer::new("head fc1", rows, width, hidden) },
        Layer { residual: true, after_gelu: true, ..Layer::new("head fc2", rows, hidden, width) },
        Layer {
            strides: [width, sizes.patch_stride()],
            f32: true,
            ..Layer::new("head pred", rows, width, patch)
        },
    ];
    layers.into_iter().flat_map(Layer::cases).collect()
}

/// The product of two square matrices, the yardstick for all others.
pub fn cube(side: usize) -> Case {
    let layer = Layer::new("cube", side, side, side);
    let flops = 2.0 * (side as f64).powi(3);
    layer.forward().flops(flops, flops)
}
