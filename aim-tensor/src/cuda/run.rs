//! What one step on a device works with.

use std::sync::Arc;

use aim_kernels::attention_pool::cuda::Weights as PoolWeights;
use aim_kernels::cast;
use aim_kernels::cuda::{ALIGN, CudaError, DeviceArena, DeviceSlice, Gpu, Staging};
use aim_kernels::linear::Linear;
use aim_kernels::linear::cuda::{Operand, Out};
use aim_kernels::memory::Span;
use bytemuck::Pod;
use half::bf16;

use super::DeviceParameters;
use crate::parameters::ParamId;
use crate::plan::{self, Buf, Plan, Step};
use crate::precision::{ROW, cast_words};
use crate::shape::{DType, Shape};
use crate::tape::{Tape, Var};

/// The arena of a session on a device: the plan's words, then the tape's constants.
pub(crate) struct Store {
    // Before the arena: copies into it end before it goes.
    staging: Staging,
    pub(crate) arena: DeviceArena,
    /// First word of each constant.
    pub(crate) constants: Vec<usize>,
}

impl Store {
    /// Memory for a plan on `gpu`, that of `old` where it suffices.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        tape: &Tape,
        plan: &Plan,
        old: Option<Self>,
    ) -> Result<Self, CudaError> {
        let mut words = (plan.memory().arena_bytes / 4).next_multiple_of(ALIGN / 4);
        let constants = tape
            .constants
            .iter()
            .map(|values| {
                let start = words;
                words = (start + values.len()).next_multiple_of(ALIGN / 4);
                start
            })
            .collect();
        let arena = match old {
            Some(old) if old.arena.bytes() >= 4 * words => old.arena,
            // Two at once might not fit.
            old => {
                drop(old);
                DeviceArena::new(gpu, 4 * words, "the values of one step")?
            }
        };
        let store = Self { staging: Staging::new(gpu), arena, constants };
        for (values, &start) in tape.constants.iter().zip(&store.constants) {
            store.arena.slice(4 * start, values.len()).upload(gpu, values)?;
        }
        Ok(store)
    }

    /// Writes an input; `values` may change when this returns, which waits for no work on the device.
    pub(crate) fn upload<T: Pod>(&mut self, span: Span, values: &[T]) -> Result<(), CudaError> {
        self.staging.upload(self.arena.slice(4 * span.start, values.len()), values)
    }

    /// `len` values of that type as f32.
    pub(crate) fn download(
        &self,
        span: Span,
        len: usize,
        dtype: DType,
    ) -> Result<Vec<f32>, CudaError> {
        let (gpu, at) = (self.arena.gpu(), 4 * span.start);
        if dtype == DType::Bf16 {
            let mut values = vec![bf16::ZERO; len];
            self.arena.slice(at, len).download(gpu, &mut values)?;
            return Ok(values.into_iter().map(bf16::to_f32).collect());
        }
        let mut values = vec![0.0; len];
        self.arena.slice(at, len).download(gpu, &mut values)?;
        Ok(values)
    }

    pub(crate) fn run<'a>(
        &'a self,
        tape: &'a Tape,
        plan: &'a Plan,
        params: &'a DeviceParameters,
    ) -> Run<'a> {
        Run { tape, plan, store: self, params, gpu: self.arena.gpu() }
    }
}

/// One step's surroundings.
pub(crate) struct Run<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) plan: &'a Plan,
    pub(crate) store: &'a Store,
    pub(crate) params: &'a DeviceParameters,
    pub(crate) gpu: &'a Gpu,
}

impl<'a> Run<'a> {
    /// `len` values in a buffer.
    fn values<T: Pod>(&self, buffer: Buf, len: usize) -> DeviceSlice<'a, T> {
        self.store.arena.slice(4 * self.plan.span(buffer).start, len)
    }

    /// An operand of a step as `len` values of `T`.
    pub(crate) fn input<T: Pod>(&self, operand: plan::Operand, len: usize) -> DeviceSlice<'a, T> {
        match operand {
            plan::Operand::Buffer(buffer) => self.values(buffer, len),
            plan::Operand::Constant(index) => {
                self.store.arena.slice(4 * self.store.constants[index as usize], len)
            }
            plan::Operand::Absent => self.store.arena.slice(0, 0),
        }
    }

    /// All words of a step's statistics or scratch.
    pub(crate) fn extra(&self, buffer: Option<Buf>) -> DeviceSlice<'a, f32> {
        let span = buffer.map_or_else(Span::default, |buffer| self.plan.span(buffer));
        self.store.arena.slice(4 * span.start, span.len)
    }

    pub(crate) fn dtype(&self, var: Var) -> DType {
        self.plan.dtypes[var.index()]
    }

    pub(crate) fn shape(&self, var: Var) -> Shape {
        self.tape.shape(var)
    }

    /// Where a product's result goes.
    pub(crate) fn out(&self, var: Var, operand: plan::Operand) -> Out<'a> {
        let len = self.shape(var).len();
        match self.dtype(var) {
            DType::F32 => Out::F32(self.input(operand, len)),
            _ => Out::Bf16(self.input(operand, len)),
        }
    }

    /// A gradient, in its value's type.
    pub(crate) fn grad<T: Pod>(&self, buffer: Option<Buf>, var: Var) -> DeviceSlice<'a, T> {
        buffer.map_or_else(
            || self.store.arena.slice(0, 0),
            |buffer| self.values(buffer, self.shape(var).len()),
        )
    }

    /// A gradient that a product writes, in its value's type.
    pub(crate) fn grad_out(&self, buffer: Buf, var: Var) -> Out<'a> {
        match self.dtype(var) {
            DType::F32 => Out::F32(self.grad(Some(buffer), var)),
            _ => Out::Bf16(self.grad(Some(buffer), var)),
        }
    }

    /// A matrix as an operand of a product: as it is, or an f32 one rounded into the front of `scratch`. Returns what
    /// is left of the scratch.
    pub(crate) fn matrix(
        &self,
        var: Var,
        buffer: plan::Operand,
        scratch: DeviceSlice<'a, f32>,
    ) -> Result<(Operand<'a>, DeviceSlice<'a, f32>), CudaError> {
        let shape = self.shape(var);
        let (rows, cols) = (shape.rows(), shape.last());
        if self.dtype(var) != DType::F32 {
            let data = self.input::<bf16>(buffer, shape.len());
            return Ok((Operand { data, stride: cols }, scratch));
        }
        let words = cast_words(rows, cols, DType::F32);
        let stride = cols.next_multiple_of(ROW);
        let copy = scratch.range(0..words).cast::<bf16>();
        cast::cuda::to_bf16(self.gpu, rows, cols, self.input(buffer, shape.len()), copy, stride)?;
        Ok((Operand { data: copy, stride }, scratch.range(words..scratch.len())))
    }

    /// The matrices of an attention pooling: queries, keys, values.
    pub(crate) fn pool_weights(&self, ids: [ParamId; 3]) -> PoolWeights<'a> {
        let [query, key, value] = ids.map(|id| self.params.matrix(id));
        PoolWeights { query, key, value }
    }

    /// A bf16 matrix as an operand of a product.
    pub(crate) fn bf16_matrix(
        &self,
        var: Var,
        buffer: plan::Operand,
    ) -> Result<Operand<'a>, CudaError> {
        if self.dtype(var) != DType::Bf16 {
            return Err(super::low_rank_of_f32());
        }
        let shape = self.shape(var);
        Ok(Operand { data: self.input::<bf16>(buffer, shape.len()), stride: shape.last() })
    }

    /// The shape of a product whose operands x and weight are both padded with zeros alike: over the padding the product
    /// is the same, and every row a whole number of 16-byte loads.
    pub(crate) fn over_padding(kernel: Linear, x: &Operand<'_>, weight_stride: usize) -> Linear {
        if x.stride == weight_stride { Linear { inputs: x.stride, ..kernel } } else { kernel }
    }

    /// Statistics and scratch of a step.
    pub(crate) fn extras(&self, step: &Step) -> (DeviceSlice<'a, f32>, DeviceSlice<'a, f32>) {
        (self.extra(step.stats), self.extra(step.scratch))
    }
}

/// Splits a slice in two.
pub(crate) fn split_at(
    slice: DeviceSlice<'_, f32>,
    at: usize,
) -> (DeviceSlice<'_, f32>, DeviceSlice<'_, f32>) {
    (slice.range(0..at), slice.range(at..slice.len()))
}
