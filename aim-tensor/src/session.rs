//! [`Session`]: a planned tape with its memory, run as often as wanted.
//!
//! A run allocates nothing: the arena was sized when the session was made, and every step knows its places.

use aim_kernels::memory::{Arena, Span};

use crate::error::TensorError;
use crate::parameters::Parameters;
use crate::plan::{Memory, Operand, Plan, PlanOptions, Step, StepKind};
use crate::shape::{DType, Shape};
use crate::tape::{Op, Source, Tape, Var};
use crate::{backward, forward};

/// A tape, its plan and its memory. See the module's page.
pub struct Session {
    pub(crate) tape: Tape,
    pub(crate) plan: Plan,
    pub(crate) arena: Arena,
}

impl Session {
    /// Plans a tape and reserves its memory.
    ///
    /// # Errors
    /// Those of [`Plan::new`], and [`TensorError::OutOfMemory`].
    pub fn new(tape: Tape, options: PlanOptions) -> Result<Self, TensorError> {
        Self::within(tape, options, None)
    }

    /// As [`Session::new`], in the memory of an earlier session where that is large enough.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn reusing(self, tape: Tape, options: PlanOptions) -> Result<Self, TensorError> {
        Self::within(tape, options, Some(self.arena))
    }

    fn within(tape: Tape, options: PlanOptions, arena: Option<Arena>) -> Result<Self, TensorError> {
        let plan = Plan::new(&tape, options)?;
        let words = plan.memory().arena_bytes / 4;
        let arena = match arena {
            Some(arena) if arena.words() >= words => arena,
            _ => Arena::new(words).map_err(|e| TensorError::OutOfMemory {
                what: "the values of one step",
                bytes: e.bytes,
            })?,
        };
        Ok(Self { tape, plan, arena })
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
        self.arena.write(span).copy_from_slice(data);
        Ok(())
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
        bytemuck::cast_slice_mut(self.arena.write(span)).copy_from_slice(data);
        Ok(())
    }

    /// Writes a u8 input.
    ///
    /// # Errors
    /// When `var` is no u8 input or `data` has another length.
    pub fn write_u8(&mut self, var: Var, data: &[u8]) -> Result<(), TensorError> {
        let span = self.input(var, DType::U8, data.len())?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(self.arena.write(span));
        bytes[..data.len()].copy_from_slice(data);
        Ok(())
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
        let (layout, values) = (params.layout(), params.values());
        for step in &self.plan.steps[..self.plan.forward_steps] {
            let mut run =
                Run { tape: &self.tape, plan: &self.plan, arena: &mut self.arena, layout, values };
            forward::run(&mut run, step);
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
        if steps.is_empty() || params.grads().len() != params.layout().trainable_len() {
            return Err(TensorError::BadArgument {
                op: "backward",
                expected: "a session planned with a backward pass and parameters with gradients",
                found: format!("{} steps and {} gradients", steps.len(), params.grads().len()),
            });
        }
        let (layout, values, grads) = params.split();
        for step in steps {
            let mut run =
                Run { tape: &self.tape, plan: &self.plan, arena: &mut self.arena, layout, values };
            match step.kind {
                StepKind::Forward => forward::run(&mut run, step),
                StepKind::Backward => backward::run(&mut run, step, grads, scale),
            }
        }
        Ok(())
    }

    fn check(&self, params: &Parameters) -> Result<(), TensorError> {
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
    pub fn read(&self, var: Var) -> Result<&[f32], TensorError> {
        let value = &self.tape.values[var.index()];
        let kept = value.output || value.source == Source::Input;
        match self.plan.values[var.index()].filter(|_| kept && value.dtype == DType::F32) {
            Some(buffer) => Ok(self.arena.read(self.plan.span(buffer))),
            None => Err(unreadable("an f32 value declared as output", value.shape)),
        }
    }

    /// Gradient of an input made with [`Tape::input_with_grad`], after a backward run.
    ///
    /// # Errors
    /// When the input has none.
    pub fn read_grad(&self, var: Var) -> Result<&[f32], TensorError> {
        let value = &self.tape.values[var.index()];
        match self.plan.grads[var.index()].filter(|_| value.source == Source::Input) {
            Some(buffer) => Ok(self.arena.read(self.plan.span(buffer))),
            None => Err(unreadable("an input with a gradient", value.shape)),
        }
    }

    /// Mean and reciprocal standard deviation of the batch in the norm that made `var`, after a forward run.
    ///
    /// # Errors
    /// When `var` was not made by a batch norm with the batch's own statistics.
    pub fn batch_statistics(&self, var: Var) -> Result<(&[f32], &[f32]), TensorError> {
        let value = &self.tape.values[var.index()];
        if let Source::Node(node) = value.source {
            let batch_norm =
                matches!(self.tape.nodes[node as usize].op, Op::BatchNorm { running: None, .. });
            if let (true, Some(buffer)) = (batch_norm, self.plan.stats[node as usize]) {
                let stats = self.arena.read(self.plan.span(buffer));
                return Ok(stats.split_at(stats.len() / 2));
            }
        }
        Err(unreadable("the output of a batch norm", value.shape))
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
