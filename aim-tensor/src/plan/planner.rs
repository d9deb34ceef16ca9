//! [`Planner`]: the walk over a tape, forward and back, that writes down the steps.

use super::place::{Buffer, align, fullest, place};
use super::{
    Buf, Category, GeluForm, GradTarget, Memory, Operand, Plan, PlanOptions, Recompute, Step,
    StepKind,
};
use crate::device::Storage;
use crate::error::TensorError;
use crate::fused::Fused;
use crate::precision::{self, backward_scratch, forward_scratch};
use crate::shape::DType;
use crate::tape::{Op, Source, Tape, Var};

pub(super) struct Planner<'a> {
    tape: &'a Tape,
    pub(super) steps: Vec<Step>,
    buffers: Vec<Buffer>,
    /// Where each value is now, if anywhere.
    values: Vec<Option<Buf>>,
    stats: Vec<Option<Buf>>,
    grads: Vec<Option<Buf>>,
    category: Category,
    storage: Storage,
    dtypes: Vec<DType>,
    /// The GELU nodes whose product before them is fused with them.
    fused: Fused,
}

impl<'a> Planner<'a> {
    pub(super) fn new(tape: &'a Tape, PlanOptions { storage, gelu, .. }: PlanOptions) -> Self {
        let dtypes = precision::dtypes(tape, storage);
        let mut planner = Self {
            tape,
            steps: Vec::new(),
            buffers: Vec::new(),
            values: vec![None; tape.values.len()],
            stats: vec![None; tape.nodes.len()],
            grads: vec![None; tape.values.len()],
            category: Category::Activations,
            storage,
            fused: Fused::new(tape, &dtypes, storage == Storage::Bf16 && gelu == GeluForm::Tanh),
            dtypes,
        };
        for (i, value) in tape.values.iter().enumerate() {
            if value.source == Source::Input {
                let words = precision::words(value.shape.len(), value.dtype);
                let buffer = planner.buffer(words, Category::Inputs);
                planner.pin(buffer);
                planner.values[i] = Some(buffer);
            }
        }
        planner
    }

    pub(super) fn forward(&mut self) {
        for node in 0..self.tape.nodes.len() {
            // The GELU behind it computes it.
            if !self.fused.is_product(node) {
                self.run(node);
            }
        }
        for (i, value) in self.tape.values.iter().enumerate() {
            if let (true, Some(buffer)) = (value.output, self.values[i]) {
                self.pin(buffer);
            }
        }
    }

    pub(super) fn backward(&mut self, recompute: Recompute) -> Result<(), TensorError> {
        let Some(loss) = self.tape.loss.filter(|loss| self.tape.values[loss.index()].requires_grad)
        else {
            return Err(TensorError::BadArgument {
                op: "backward",
                expected: "a loss that depends on something trainable",
                found: "none".into(),
            });
        };
        for node in &self.tape.nodes {
            let value = &self.tape.values[node.output.index()];
            if recompute.forgets(&node.op) && !value.output && !value.checkpoint {
                self.values[node.output.index()] = None;
            }
        }
        self.category = Category::Recomputed;
        for node in (0..self.tape.nodes.len()).rev() {
            let output = self.tape.nodes[node].output;
            let reached = output == loss || self.grads[output.index()].is_some();
            // The gradient of a fused GELU's output is never made: the product behind it goes past it.
            if reached && self.tape.values[output.index()].requires_grad {
                self.backward_step(node);
            }
        }
        for (value, grad) in self.tape.values.iter().zip(self.grads.clone()) {
            if let (Source::Input, Some(grad)) = (value.source, grad) {
                self.pin(grad);
            }
        }
        Ok(())
    }

    /// Appends the step that computes a node, with room for its result.
    fn run(&mut self, node: usize) {
        if let Some(product) = self.fused.product_of(node)
            && self.values[self.tape.nodes[product].output.index()].is_none()
        {
            return self.run_fused(product, node);
        }
        let n = &self.tape.nodes[node];
        let inputs: Vec<_> = n.op.inputs().into_iter().map(|var| self.value(var)).collect();
        let step = self.steps.len();
        inputs.iter().for_each(|&operand| self.touch(operand, step));
        let output = self.buffer(self.words(n.output), self.category);
        self.values[n.output.index()] = Some(output);
        if self.stats[node].is_none() && n.stats > 0 {
            let stats = self.buffer(n.stats, Category::Workspace);
            self.stats[node] = Some(stats);
            if matches!(n.op, Op::BatchNorm { .. }) {
                // Read after the run, for running statistics, also where no gradient needs them.
                self.pin(stats);
            }
        }
        let stats = self.stats[node].inspect(|&buffer| self.touch(Operand::Buffer(buffer), step));
        let scratch = self.scratch(forward_scratch(self.tape, &self.dtypes, self.storage, &n.op));
        self.steps.push(Step {
            kind: StepKind::Forward,
            node: node as u32,
            inputs,
            output: Operand::Buffer(output),
            stats,
            scratch,
            d_output: None,
            d_inputs: Vec::new(),
            passes: Vec::new(),
            pre: None,
        });
    }

    /// Appends the step that computes a product and the GELU of it.
    fn run_fused(&mut self, product: usize, gelu: usize) {
        let (before, after) = (&self.tape.nodes[product], &self.tape.nodes[gelu]);
        let inputs: Vec<_> = before.op.inputs().into_iter().map(|var| self.value(var)).collect();
        let step = self.steps.len();
        inputs.iter().for_each(|&operand| self.touch(operand, step));
        let pre = self.buffer(self.words(before.output), self.category);
        let output = self.buffer(self.words(after.output), self.category);
        self.values[before.output.index()] = Some(pre);
        self.values[after.output.index()] = Some(output);
        self.steps.push(Step {
            kind: StepKind::Forward,
            node: product as u32,
            inputs,
            output: Operand::Buffer(output),
            stats: None,
            scratch: None,
            d_output: None,
            d_inputs: Vec::new(),
            passes: Vec::new(),
            pre: Some(pre),
        });
    }

    /// Where a value is, made again first if it was forgotten.
    fn value(&mut self, var: Var) -> Operand {
        match self.tape.values[var.index()].source {
            Source::Constant(constant) => Operand::Constant(constant),
            Source::Input => self.values[var.index()].map_or(Operand::Absent, Operand::Buffer),
            Source::Node(node) => {
                if self.values[var.index()].is_none() {
                    self.run(node as usize);
                }
                self.values[var.index()].map_or(Operand::Absent, Operand::Buffer)
            }
        }
    }

    fn backward_step(&mut self, node: usize) {
        let n = &self.tape.nodes[node];
        let vars = n.op.inputs();
        let mut saves = n.op.saves_input();
        if let Op::Linear { weight, .. } = n.op {
            // x is there for the weight's gradient only.
            saves[0] = self.tape.layout.get(weight).spec.trainable;
        }
        let inputs: Vec<_> = vars
            .iter()
            .zip(saves)
            .map(|(&var, saved)| if saved { self.value(var) } else { Operand::Absent })
            .collect();
        let output = if n.op.saves_output() { self.value(n.output) } else { Operand::Absent };
        let pre = match self.fused.gelu_before(self.tape, node) {
            Some(before) => match self.value(before) {
                Operand::Buffer(buffer) => Some(buffer),
                _ => None,
            },
            None => None,
        };
        let step = self.steps.len();
        inputs.iter().chain([&output]).for_each(|&operand| self.touch(operand, step));
        if let Some(pre) = pre {
            self.touch(Operand::Buffer(pre), step);
        }
        if let Some(stats) = self.stats[node] {
            self.touch(Operand::Buffer(stats), step);
        }
        let d_output =
            self.grads[n.output.index()].inspect(|&grad| self.touch(Operand::Buffer(grad), step));

        let (d_inputs, passes) = self.contributions(node, pre.is_some(), d_output, step);
        let words = backward_scratch(self.tape, &self.dtypes, self.storage, &n.op, n.output);
        let scratch = self.scratch(words);
        self.steps.push(Step {
            kind: StepKind::Backward,
            node: node as u32,
            inputs,
            output,
            stats: self.stats[node],
            scratch,
            d_output,
            d_inputs,
            passes,
            pre,
        });
    }

    /// Where the gradients go that a node computes, by input, and to which it hands its output's on.
    fn contributions(
        &mut self,
        node: usize,
        past_gelu: bool,
        d_output: Option<Buf>,
        step: usize,
    ) -> (Vec<Option<GradTarget>>, Vec<GradTarget>) {
        let n = &self.tape.nodes[node];
        let vars = n.op.inputs();
        let wanted: Vec<bool> = vars
            .iter()
            .zip(n.op.differentiable())
            .map(|(var, differentiable)| {
                differentiable && self.tape.values[var.index()].requires_grad
            })
            .collect();
        let passes_gradient = n.op.passes_gradient();
        let mut d_inputs = vec![None; vars.len()];
        for (i, &var) in vars.iter().enumerate() {
            if wanted[i] && !passes_gradient[i] {
                // Through a fused GELU the gradient goes straight to what came before it.
                let var = if past_gelu && i == 0 { self.fused.before(self.tape, var) } else { var };
                d_inputs[i] = Some(self.grad_target(var, step));
            }
        }
        let mut passes = Vec::new();
        // The output's gradient is not read after this step: the first input that needs just it takes it over.
        let mut handed_on = false;
        for (i, &var) in vars.iter().enumerate() {
            if !wanted[i] || !passes_gradient[i] {
                continue;
            }
            if self.grads[var.index()].is_none() && !handed_on && d_output.is_some() {
                self.grads[var.index()] = d_output;
                handed_on = true;
            } else {
                passes.push(self.grad_target(var, step));
            }
        }
        (d_inputs, passes)
    }

    fn grad_target(&mut self, var: Var, step: usize) -> GradTarget {
        if let Some(buffer) = self.grads[var.index()] {
            self.touch(Operand::Buffer(buffer), step);
            return GradTarget { buffer, accumulate: true };
        }
        let buffer = self.buffer(self.words(var), Category::Gradients);
        self.grads[var.index()] = Some(buffer);
        GradTarget { buffer, accumulate: false }
    }

    /// Words that a value, or its gradient, is stored in.
    fn words(&self, var: Var) -> usize {
        precision::words(self.tape.values[var.index()].shape.len(), self.dtypes[var.index()])
    }

    /// A buffer that is first written by the next step.
    fn buffer(&mut self, words: usize, category: Category) -> Buf {
        let step = self.steps.len();
        self.buffers.push(Buffer { words, first: step, last: step, category });
        Buf(self.buffers.len() as u32 - 1)
    }

    fn scratch(&mut self, words: usize) -> Option<Buf> {
        (words > 0).then(|| self.buffer(words, Category::Workspace))
    }

    fn touch(&mut self, operand: Operand, step: usize) {
        if let Operand::Buffer(buffer) = operand {
            let buffer = &mut self.buffers[buffer.0 as usize];
            buffer.last = buffer.last.max(step);
        }
    }

    /// Makes a buffer live through the whole run.
    fn pin(&mut self, buffer: Buf) {
        self.buffers[buffer.0 as usize].last = usize::MAX;
    }

    pub(super) fn finish(mut self, forward_steps: usize, gelu: GeluForm) -> Plan {
        // What is written before a run must survive from its start.
        for buffer in &mut self.buffers {
            if buffer.category == Category::Inputs {
                buffer.first = 0;
            }
        }
        let (spans, words) = place(&self.buffers, align(self.storage));
        let memory = Memory {
            arena_bytes: words * 4,
            by_category: fullest(&self.buffers, self.steps.len()),
        };
        Plan {
            steps: self.steps,
            forward_steps,
            spans,
            values: self.values,
            stats: self.stats,
            grads: self.grads,
            dtypes: self.dtypes,
            gelu,
            memory,
        }
    }
}
