//! [`Plan`]: the order of work for a tape and a place in memory for every value of it.
//!
//! The plan walks the tape forward and, for training, back, writing down steps. A value lives from the step that
//! writes it to the last that reads it; values whose lives do not meet may share memory. At a recomputation level,
//! results of some kinds of ops are forgotten after the forward walk; when the walk back needs one, the plan inserts
//! the steps that make it again from the nearest values that were kept.
//!
//! Gradients are written once by their first contribution and accumulated by later ones. Where an op hands its
//! output's gradient on unchanged (a residual), input and output share one gradient.

use std::fmt;

use aim_kernels::memory::Span;

use crate::device::Storage;
use crate::error::TensorError;
use crate::fused::Fused;
use crate::precision::{self, backward_scratch, forward_scratch};
use crate::shape::DType;
use crate::tape::{Op, Source, Tape, Var};

/// Words that every buffer starts at a multiple of: one cache line of a CPU, or what a GPU's wide loads want.
const fn align(storage: Storage) -> usize {
    match storage {
        Storage::Fp32 => 16,
        Storage::Bf16 => 64,
    }
}

/// What the backward pass makes again instead of keeping, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Recompute {
    /// Everything is kept.
    #[default]
    None,
    /// Outputs of layer norms.
    Norms,
    /// Outputs of layer norms and GELUs.
    NormsGelu,
    /// Everything but the ends of blocks ([`Tape::checkpoint`]).
    Block,
}

impl Recompute {
    /// Whether results of this op are made again.
    fn forgets(self, op: &Op) -> bool {
        match self {
            Self::None => false,
            Self::Norms => matches!(op, Op::LayerNorm { .. }),
            Self::NormsGelu => matches!(op, Op::LayerNorm { .. } | Op::Gelu { .. }),
            Self::Block => true,
        }
    }
}

/// Which GELU a run computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GeluForm {
    /// `x Phi(x)`, as the paper's code has it.
    #[default]
    Erf,
    /// The tanh approximation, within 5e-4 of it, which a GPU's library computes inside the products before and after.
    /// Only with [`Storage::Bf16`].
    Tanh,
}

/// What to plan for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanOptions {
    /// Plan a backward pass. The tape needs a loss.
    pub backward: bool,
    /// What the backward pass makes again.
    pub recompute: Recompute,
    /// How values are stored. A session sets it to its device's.
    pub storage: Storage,
    /// Which GELU is computed.
    pub gelu: GeluForm,
}

/// What a buffer holds, for the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Images, indices, prefixes.
    Inputs,
    /// Values made by the forward pass.
    Activations,
    /// Values made again by the backward pass.
    Recomputed,
    /// Gradients of values.
    Gradients,
    /// Statistics kept for the backward pass, and scratch of single ops.
    Workspace,
}

impl Category {
    /// All categories, as [`Memory::by_category`] lists them.
    pub const ALL: [Self; 5] =
        [Self::Inputs, Self::Activations, Self::Recomputed, Self::Gradients, Self::Workspace];
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inputs => "inputs",
            Self::Activations => "activations",
            Self::Recomputed => "recomputed activations",
            Self::Gradients => "gradients of activations",
            Self::Workspace => "workspace",
        })
    }
}

/// Memory of one step, parameters left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes in use at the fullest moment, in the order of [`Category::ALL`].
    pub by_category: [usize; 5],
}

/// Index of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buf(u32);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    Buffer(Buf),
    Constant(u32),
    /// Not read by this step.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    Forward,
    Backward,
}

/// Where a contribution to a gradient goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradTarget {
    pub(crate) buffer: Buf,
    /// Add to what is there.
    pub(crate) accumulate: bool,
}

/// One op run once, in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: StepKind,
    pub(crate) node: u32,
    pub(crate) inputs: Vec<Operand>,
    pub(crate) output: Operand,
    pub(crate) stats: Option<Buf>,
    pub(crate) scratch: Option<Buf>,
    /// Gradient of the output; none for the loss itself.
    pub(crate) d_output: Option<Buf>,
    /// Gradients that the op computes, by input.
    pub(crate) d_inputs: Vec<Option<GradTarget>>,
    /// Gradients to which the output's is handed on by copy or addition.
    pub(crate) passes: Vec<GradTarget>,
    /// Of a step that a GELU is fused into: the value before the GELU, which the forward step writes beside its output
    /// and the backward step reads.
    pub(crate) pre: Option<Buf>,
}

struct Buffer {
    words: usize,
    first: usize,
    last: usize,
    category: Category,
}

/// Steps and places. See the module's page.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Steps before this one are the forward pass.
    pub(crate) forward_steps: usize,
    spans: Vec<Span>,
    pub(crate) values: Vec<Option<Buf>>,
    pub(crate) stats: Vec<Option<Buf>>,
    pub(crate) grads: Vec<Option<Buf>>,
    /// Type of each value as it is stored.
    pub(crate) dtypes: Vec<DType>,
    pub(crate) gelu: GeluForm,
    memory: Memory,
}

impl Plan {
    /// Plans a tape.
    ///
    /// # Errors
    /// [`TensorError::BadArgument`] when a backward pass is asked of a tape without a loss that depends on anything
    /// trainable.
    pub fn new(tape: &Tape, options: PlanOptions) -> Result<Self, TensorError> {
        let mut planner = Planner::new(tape, options);
        planner.forward();
        let forward_steps = planner.steps.len();
        if options.backward {
            planner.backward(options.recompute)?;
        }
        Ok(planner.finish(forward_steps, options.gelu))
    }

    /// Memory of one step.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Ops that run in the backward pass only to make values again.
    pub fn recomputed_ops(&self) -> usize {
        self.steps[self.forward_steps..].iter().filter(|s| s.kind == StepKind::Forward).count()
    }

    pub(crate) fn span(&self, buffer: Buf) -> Span {
        self.spans[buffer.0 as usize]
    }
}

struct Planner<'a> {
    tape: &'a Tape,
    steps: Vec<Step>,
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
    fn new(tape: &'a Tape, PlanOptions { storage, gelu, .. }: PlanOptions) -> Self {
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

    fn forward(&mut self) {
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

    fn backward(&mut self, recompute: Recompute) -> Result<(), TensorError> {
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
                let var =
                    if pre.is_some() && i == 0 { self.fused.before(self.tape, var) } else { var };
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

    fn finish(mut self, forward_steps: usize, gelu: GeluForm) -> Plan {
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

/// A place for each buffer: the largest first, each at the lowest address where it meets no other that lives with it.
fn place(buffers: &[Buffer], align: usize) -> (Vec<Span>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].words), buffers[i].first, i));
    let mut spans = vec![Span::default(); buffers.len()];
    // Placed buffers by address.
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    let mut total = 0;
    for i in order {
        let buffer = &buffers[i];
        let mut start = 0;
        for &other in &placed {
            let lives_with =
                buffers[other].first <= buffer.last && buffer.first <= buffers[other].last;
            if lives_with {
                if spans[other].start >= start + buffer.words {
                    break;
                }
                start = start.max((spans[other].start + spans[other].len).next_multiple_of(align));
            }
        }
        spans[i] = Span { start, len: buffer.words };
        total = total.max(start + buffer.words);
        let at = placed.partition_point(|&other| spans[other].start <= start);
        placed.insert(at, i);
    }
    (spans, total)
}

/// Bytes by category at the step where most is alive.
fn fullest(buffers: &[Buffer], steps: usize) -> [usize; 5] {
    let mut change = vec![[0isize; 5]; steps + 2];
    for buffer in buffers {
        let category = buffer.category as usize;
        let bytes = (buffer.words * 4) as isize;
        change[buffer.first.min(steps)][category] += bytes;
        change[buffer.last.min(steps) + 1][category] -= bytes;
    }
    let mut now = [0isize; 5];
    let mut most = [0isize; 5];
    for delta in change {
        now.iter_mut().zip(delta).for_each(|(now, delta)| *now += delta);
        if now.iter().sum::<isize>() > most.iter().sum() {
            most = now;
        }
    }
    most.map(isize::unsigned_abs)
}
