//! [`Session`]: a planned tape with its memory, run as often as wanted.
//!
//! A run on the CPU allocates nothing: the arena was sized when the session was made, and every step knows its places.
//! On a GPU the same plan runs with bf16 values ([`Storage::Bf16`](crate::Storage)); what is read comes as a copy.

use std::borrow::Cow;

use aim_kernels::memory::{Arena, Span};

use crate::cuda::run::Store;
use crate::device::Device;
use crate::error::TensorError;
use crate::parameters::Parameters;
use crate::plan::{Memory, Operand, Plan, PlanOptions, Step, StepKind};
use crate::shape::{DType, Shape};
use crate::tape::{Op, Source, Tape, Var};
use crate::{backward, cuda, forward};

/// A tape, its plan and its memory. See the module's page.
pub struct Session {
    pub(crate) tape: Tape,
    pub(crate) plan: Plan,
    memory: Place,
}

/// Where a session's values are.
enum Place {
    Host(Arena),
    Device(Store),
}

impl Session {
    /// Plans a tape and reserves its memory on the CPU.
    ///
    /// # Errors
    /// Those of [`Plan::new`], and [`TensorError::OutOfMemory`].
    pub fn new(tape: Tape, options: PlanOptions) -> Result<Self, TensorError> {
        Self::on(&Device::Cpu, tape, options)
    }

    /// Plans a tape and reserves its memory on a device.
    ///
    /// # Errors
    /// As [`Session::new`], and what no kernel of the device does.
    pub fn on(device: &Device, tape: Tape, options: PlanOptions) -> Result<Self, TensorError> {
        let options = PlanOptions { storage: device.storage(), ..options };
        let plan = Plan::new(&tape, options)?;
        let memory = match device {
            Device::Cpu => Place::Host(host_arena(&plan, None)?),
            Device::Cuda(gpu) => {
                cuda::check(&tape, &plan.dtypes)?;
                Place::Device(Store::new(gpu, &tape, &plan, None)?)
            }
        };
        Ok(Self { tape, plan, memory })
    }

    /// As [`Session::on`], in the memory of an earlier session where that is large enough.
    ///
    /// # Errors
    /// As [`Session::on`].
    pub fn reusing(self, tape: Tape, options: PlanOptions) -> Result<Self, TensorError> {
        let plan = Plan::new(&tape, PlanOptions { storage: self.device().storage(), ..options })?;
        let memory = match self.memory {
            Place::Host(arena) => Place::Host(host_arena(&plan, Some(arena))?),
            Place::Device(store) => {
                cuda::check(&tape, &plan.dtypes)?;
                let gpu = store.arena.gpu().clone();
                Place::Device(Store::new(&gpu, &tape, &plan, Some(store))?)
            }
        };
        Ok(Self { tape, plan, memory })
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        match &self.memory {
            Place::Host(_) => Device::Cpu,
            Place::Device(store) => Device::Cuda(store.arena.gpu().clone()),
        }
    }

    /// The record.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Memory of one step, parameters left out.
    pub fn memory(&self) -> Memory {
        self.plan.memory()
    }

    /// Writes an f32 input.
    ///
    /// # Errors
    /// When `var` is no f32 input or `data` has another length.
    pub fn write_f32(&mut self, var: Var, data: &[f32]) -> Result<(), TensorError> {
        let span = self.input(var, DType::F32, data.len())?;
        self.write(span, data)
    }

    /// Writes an i32 input, after checking the rows that it points to.
    ///
    /// # Errors
    /// When `var` is no i32 input, `data` has another length, or an index points nowhere.
    pub fn write_i32(&mut self, var: Var, data: &[i32]) -> Result<(), TensorError> {
        let span = self.input(var, DType::I32, data.len())?;
        for node in &self.tape.nodes {
            if let Some(rows) = indexed_rows(&self.tape, &node.op, var)
                && let Some(position) = data.iter().position(|&i| !rows.contains(&i64::from(i)))
            {
                let (op, index) = (node.op.name(), data[position]);
                let rows = rows.end.max(0) as usize;
                return Err(TensorError::IndexOutOfRange { op, index, position, rows });
            }
        }
        let on_device = matches!(self.memory, Place::Device(_));
        if on_device
            && cuda::wants_ascending(&self.tape, var)
            && let Some(position) = data.windows(2).position(|pair| pair[0] > pair[1])
        {
            return Err(TensorError::BadArgument {
                op: "gather_rows on CUDA",
                expected: "an index in ascending order",
                found: format!("{} before {} at {position}", data[position], data[position + 1]),
            });
        }
        self.write(span, data)
    }

    /// Writes a u8 input.
    ///
    /// # Errors
    /// When `var` is no u8 input or `data` has another length.
    pub fn write_u8(&mut self, var: Var, data: &[u8]) -> Result<(), TensorError> {
        let span = self.input(var, DType::U8, data.len())?;
        self.write(span, data)
    }

    /// Copies to the front of a place.
    fn write<T: bytemuck::Pod>(&mut self, span: Span, data: &[T]) -> Result<(), TensorError> {
        match &mut self.memory {
            Place::Host(arena) => {
                bytemuck::cast_slice_mut(arena.write(span))[..data.len()].copy_from_slice(data);
                Ok(())
            }
            Place::Device(store) => Ok(store.upload(span, data)?),
        }
    }

    fn input(&self, var: Var, dtype: DType, found: usize) -> Result<Span, TensorError> {
        let value = &self.tape.values[var.index()];
        if value.source != Source::Input || value.dtype != dtype {
            return Err(TensorError::DTypeMismatch {
                op: "input",
                expected: value.dtype,
                found: dtype,
            });
        }
        if value.shape.len() != found {
            return Err(TensorError::InputLength { shape: value.shape, found });
        }
        Ok(self.plan.values[var.index()]
            .map_or_else(Span::default, |buffer| self.plan.span(buffer)))
    }

    /// Computes every value from the inputs.
    ///
    /// # Errors
    /// When the parameters have another layout than the tape.
    pub fn forward(&mut self, params: &Parameters) -> Result<(), TensorError> {
        self.check(params)?;
        let steps = &self.plan.steps[..self.plan.forward_steps];
        let (tape, plan) = (&self.tape, &self.plan);
        match (&mut self.memory, params.on_device()) {
            (Place::Device(store), Some(params)) => {
                let run = store.run(tape, plan, params);
                for step in steps {
                    cuda::forward::run(&run, step)?;
                }
            }
            (Place::Host(arena), _) => {
                let (layout, values) = (params.layout(), params.values());
                for step in steps {
                    forward::run(&mut Run { tape, plan, arena, layout, values }, step);
                }
            }
            (Place::Device(_), None) => return Err(elsewhere()),
        }
        Ok(())
    }

    /// Adds the gradient of `scale` times the sum of the loss to the gradients of the parameters.
    ///
    /// Follows a [`Session::forward`] with the same parameters and inputs.
    ///
    /// # Errors
    /// When the session was planned without a backward pass, or the parameters have no gradients.
    pub fn backward(&mut self, params: &mut Parameters, scale: f32) -> Result<(), TensorError> {
        self.check(params)?;
        let steps = &self.plan.steps[self.plan.forward_steps..];
        if steps.is_empty() || !params.has_gradients() {
            return Err(TensorError::BadArgument {
                op: "backward",
                expected: "a session planned with a backward pass and parameters with gradients",
                found: format!("{} steps, gradients: {}", steps.len(), params.has_gradients()),
            });
        }
        let (tape, plan) = (&self.tape, &self.plan);
        match (&mut self.memory, params.on_device()) {
            (Place::Device(store), Some(params)) => {
                let run = store.run(tape, plan, params);
                for step in steps {
                    match step.kind {
                        StepKind::Forward => cuda::forward::run(&run, step)?,
                        StepKind::Backward => cuda::backward::run(&run, step, scale)?,
                    }
                }
            }
            (Place::Host(arena), _) => {
                let (layout, values, grads) = params.split();
                for step in steps {
                    let mut run = Run { tape, plan, arena, layout, values };
                    match step.kind {
                        StepKind::Forward => forward::run(&mut run, step),
                        StepKind::Backward => backward::run(&mut run, step, grads, scale),
                    }
                }
            }
            (Place::Device(_), None) => return Err(elsewhere()),
        }
        Ok(())
    }

    fn check(&self, params: &Parameters) -> Result<(), TensorError> {
        if self.device() != params.device() {
            return Err(elsewhere());
        }
        let (ours, theirs) = (&self.tape.layout, params.layout());
        if std::sync::Arc::ptr_eq(ours, theirs) {
            return Ok(());
        }
        Err(TensorError::BadArgument {
            op: "run",
            expected: "parameters of the layout that the tape was recorded with",
            found: format!("another layout, of {} values", theirs.count()),
        })
    }

    /// A value declared with [`Tape::output`] (or the loss), after a run.
    ///
    /// # Errors
    /// When `var` was not declared so.
    pub fn read(&self, var: Var) -> Result<Cow<'_, [f32]>, TensorError> {
        let value = &self.tape.values[var.index()];
        let kept = value.output || value.source == Source::Input;
        match self.plan.values[var.index()].filter(|_| kept && value.dtype == DType::F32) {
            Some(buffer) => self.values(self.plan.span(buffer), var),
            None => Err(unreadable("an f32 value declared as output", value.shape)),
        }
    }

    /// A value as f32, from wherever it is.
    fn values(&self, span: Span, var: Var) -> Result<Cow<'_, [f32]>, TensorError> {
        match &self.memory {
            Place::Host(arena) => Ok(Cow::Borrowed(arena.read(span))),
            Place::Device(store) => {
                let len = self.tape.shape(var).len();
                Ok(Cow::Owned(store.download(span, len, self.plan.dtypes[var.index()])?))
            }
        }
    }

    /// Gradient of an input made with [`Tape::input_with_grad`], after a backward run.
    ///
    /// # Errors
    /// When the input has none.
    pub fn read_grad(&self, var: Var) -> Result<Cow<'_, [f32]>, TensorError> {
        let value = &self.tape.values[var.index()];
        match self.plan.grads[var.index()].filter(|_| value.source == Source::Input) {
            Some(buffer) => self.values(self.plan.span(buffer), var),
            None => Err(unreadable("an input with a gradient", value.shape)),
        }
    }

    /// Mean and reciprocal standard deviation of the batch in the norm that made `var`, after a forward run.
    ///
    /// # Errors
    /// When `var` was not made by a batch norm with the batch's own statistics.
    pub fn batch_statistics(&self, var: Var) -> Result<[Cow<'_, [f32]>; 2], TensorError> {
        let value = &self.tape.values[var.index()];
        if let Source::Node(node) = value.source {
            let batch_norm =
                matches!(self.tape.nodes[node as usize].op, Op::BatchNorm { running: None, .. });
            if let (true, Some(buffer)) = (batch_norm, self.plan.stats[node as usize]) {
                let (span, dim) = (self.plan.span(buffer), value.shape.last());
                return Ok(match &self.memory {
                    Place::Host(arena) => {
                        let (mean, rstd) = arena.read(span).split_at(dim);
                        [mean.into(), rstd.into()]
                    }
                    Place::Device(store) => {
                        let mut mean = store.download(span, 2 * dim, DType::F32)?;
                        let rstd = mean.split_off(dim);
                        [mean.into(), rstd.into()]
                    }
                });
            }
        }
        Err(unreadable("the output of a batch norm over its own batch", value.shape))
    }
}

/// Memory for a plan: the old one where it suffices.
fn host_arena(plan: &Plan, old: Option<Arena>) -> Result<Arena, TensorError> {
    let words = plan.memory().arena_bytes / 4;
    match old {
        Some(arena) if arena.words() >= words => Ok(arena),
        _ => Arena::new(words).map_err(|e| TensorError::OutOfMemory {
            what: "the values of one step",
            bytes: e.bytes,
        }),
    }
}

fn elsewhere() -> TensorError {
    TensorError::BadArgument {
        op: "run",
        expected: "parameters on the session's device",
        found: "parameters elsewhere".into(),
    }
}

fn unreadable(expected: &'static str, shape: Shape) -> TensorError {
    TensorError::BadArgument { op: "read", expected, found: format!("a value of shape {shape}") }
}

/// The values that an index input may hold, if `op` reads it as one.
fn indexed_rows(tape: &Tape, op: &Op, var: Var) -> Option<std::ops::Range<i64>> {
    let rows = |of: Var| 0..tape.shape(of).rows() as i64;
    match *op {
        Op::Positions { table, index, .. } if index == var => Some(rows(table)),
        Op::GatherRows { x, index } if index == var => Some(rows(x)),
        Op::PatchLoss { patches, targets, .. } if targets == var => Some(rows(patches)),
        Op::PrefixAttention { qkv, prefix, .. } if prefix == var => {
            Some(0..tape.shape(qkv).dims()[1] as i64 + 1)
        }
        Op::CrossEntropy { logits, labels } if labels == var => {
            Some(i64::MIN..tape.shape(logits).last() as i64)
        }
        _ => None,
    }
}

/// What one step works with.
pub(crate) struct Run<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) plan: &'a Plan,
    pub(crate) arena: &'a mut Arena,
    pub(crate) layout: &'a crate::parameters::ParamLayout,
    pub(crate) values: &'a [f32],
}

impl<'a> Run<'a> {
    /// Place of an operand; empty when the step does not read it from the arena.
    pub(crate) fn span(&self, operand: Operand) -> Span {
        match operand {
            Operand::Buffer(buffer) => self.plan.span(buffer),
            Operand::Constant(_) | Operand::Absent => Span::default(),
        }
    }

    /// Places of a step's statistics and scratch.
    pub(crate) fn extras(&self, step: &Step) -> (Span, Span) {
        let place =
            |buffer: Option<_>| buffer.map_or_else(Span::default, |buffer| self.plan.span(buffer));
        (place(step.stats), place(step.scratch))
    }

    /// Values of a parameter.
    pub(crate) fn param(&self, id: crate::parameters::ParamId) -> &'a [f32] {
        &self.values[self.layout.get(id).range.clone()]
    }
}
