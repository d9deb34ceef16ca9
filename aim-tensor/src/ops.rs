//! Recording ops: each method checks shapes and appends one node.

use crate::error::TensorError;
use crate::kernel_shape::attention_pool_shape;
use crate::parameters::ParamId;
use crate::shape::{DType, Shape};
use crate::tape::{LowRank, Node, Op, Source, Tape, Var};

impl Tape {
    /// [`Op::Patchify`]: `[batch, height, width, 3]` of u8, or `[batch, 3, height, width]` of f32, to
    /// `[batch, tokens, 3 p^2]`.
    ///
    /// # Errors
    /// When `images` has another layout or its sides are no multiples of the patch size.
    pub fn patchify(
        &mut self,
        images: Var,
        patch_size: usize,
        normalize: ([f32; 3], [f32; 3]),
    ) -> Result<Var, TensorError> {
        const OP: &str = "patchify";
        let (shape, dtype) = (self.shape(images), self.values[images.index()].dtype);
        let (batch, height, width) = match (shape.dims(), dtype) {
            (&[b, h, w, 3], DType::U8) | (&[b, 3, h, w], DType::F32) => (b, h, w),
            _ => {
                let expected = "u8 [batch, height, width, 3] or f32 [batch, 3, height, width]";
                return Err(TensorError::BadArgument {
                    op: OP,
                    expected,
                    found: format!("{dtype} {shape}"),
                });
            }
        };
        if patch_size == 0
            || !height.is_multiple_of(patch_size)
            || !width.is_multiple_of(patch_size)
        {
            let expected = "image sides that are multiples of the patch size";
            return Err(TensorError::BadArgument {
                op: OP,
                expected,
                found: format!("{height}x{width} pixels with patches of {patch_size}"),
            });
        }
        let tokens = height / patch_size * (width / patch_size);
        let output = [batch, tokens, 3 * patch_size * patch_size];
        Ok(self.push(Op::Patchify { images, patch_size, normalize }, output, 0))
    }

    /// [`Op::Linear`]: `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When x, weight, bias and residual do not fit.
    pub fn linear(
        &mut self,
        x: Var,
        weight: ParamId,
        bias: Option<ParamId>,
        residual: Option<Var>,
    ) -> Result<Var, TensorError> {
        self.linear_with(x, weight, bias, residual, None)
    }

    /// As [`Tape::linear`], with a low-rank addend to some of the outputs.
    ///
    /// # Errors
    /// When x, weight, bias, residual and the addend do not fit.
    pub fn linear_with(
        &mut self,
        x: Var,
        weight: ParamId,
        bias: Option<ParamId>,
        residual: Option<Var>,
        low_rank: Option<LowRank>,
    ) -> Result<Var, TensorError> {
        const OP: &str = "linear";
        let shape = self.f32_shape(OP, x)?;
        let w = self.param_shape(weight);
        let outputs = w.dims().first().copied().unwrap_or(1);
        if outputs == 0 || w.len() / outputs.max(1) != shape.last() {
            return Err(mismatch(OP, "x [.., inputs] and weight [outputs, inputs]", shape, w));
        }
        let output = shape.with_last(outputs);
        if let Some(bias) = bias.map(|id| self.param_shape(id)).filter(|b| b.len() != outputs) {
            return Err(mismatch(OP, "weight [outputs, inputs] and bias [outputs]", w, bias));
        }
        if let Some(residual) = residual {
            let found = self.f32_shape(OP, residual)?;
            if found.len() != output.len() || found.last() != outputs || residual == x {
                return Err(mismatch(
                    OP,
                    "an output and a residual, not x itself, of one shape",
                    output,
                    found,
                ));
            }
        }
        if let Some(term) = &low_rank {
            self.check_low_rank(x, term, output)?;
        }
        Ok(self.push(Op::Linear { x, weight, bias, residual, low_rank }, output, 0))
    }

    /// Checks that a low-rank addend fits a linear layer's output.
    fn check_low_rank(&self, x: Var, term: &LowRank, output: Shape) -> Result<(), TensorError> {
        const OP: &str = "linear";
        let u = self.f32_shape(OP, term.u)?;
        let mut end = 0;
        for segment in &term.segments {
            if segment.start < end || segment.end <= segment.start {
                let expected = "ranges of columns in ascending order, none of them empty";
                let found = format!("{:?}", term.segments);
                return Err(TensorError::BadArgument { op: OP, expected, found });
            }
            end = segment.end;
        }
        let rank = u.last() / term.segments.len().max(1);
        let covered: usize = term.segments.iter().map(ExactSizeIterator::len).sum();
        let weight = self.param_shape(term.weight);
        if rank * term.segments.len() != u.last()
            || u.rows() != output.rows()
            || end > output.last()
            || end == 0
            || weight.len() != covered * rank
            || term.u == x
        {
            return Err(mismatch(
                OP,
                "u [.., segments * rank] and B [sum of segments, rank] of a low-rank addend",
                u,
                weight,
            ));
        }
        Ok(())
    }

    /// [`Op::Scale`], element by element.
    ///
    /// # Errors
    /// When x is not f32.
    pub fn scale(&mut self, x: Var, factor: f32) -> Result<Var, TensorError> {
        let shape = self.f32_shape("scale", x)?;
        Ok(self.push(Op::Scale { x, factor }, shape, 0))
    }

    /// [`Op::LayerNorm`] over the last dimension.
    ///
    /// # Errors
    /// When weight or bias is not as long as the last dimension.
    pub fn layer_norm(
        &mut self,
        x: Var,
        weight: ParamId,
        bias: ParamId,
        eps: f32,
    ) -> Result<Var, TensorError> {
        const OP: &str = "layer_norm";
        let shape = self.f32_shape(OP, x)?;
        for found in [self.param_shape(weight), self.param_shape(bias)] {
            if found.len() != shape.last() {
                return Err(mismatch(OP, "x [.., dim], weight [dim] and bias [dim]", shape, found));
            }
        }
        Ok(self.push(Op::LayerNorm { x, weight, bias, eps }, shape, 2 * shape.rows()))
    }

    /// [`Op::Gelu`], element by element.
    ///
    /// # Errors
    /// When x is not f32.
    pub fn gelu(&mut self, x: Var) -> Result<Var, TensorError> {
        let shape = self.f32_shape("gelu", x)?;
        Ok(self.push(Op::Gelu { x }, shape, 0))
    }

    /// [`Op::Positions`]: adds row `index[r]` of a fixed table to row r.
    ///
    /// # Errors
    /// When the table's width or the index's length does not fit x.
    pub fn positions(&mut self, x: Var, table: Var, index: Var) -> Result<Var, TensorError> {
        const OP: &str = "positions";
        let shape = self.f32_shape(OP, x)?;
        let found = self.f32_shape(OP, table)?;
        if found.last() != shape.last() {
            return Err(mismatch(OP, "x [rows, dim] and table [positions, dim]", shape, found));
        }
        self.index_shape(OP, index, shape.rows())?;
        Ok(self.push(Op::Positions { x, table, index }, shape, 0))
    }

    /// [`Op::PrefixAttention`]: `[batch, tokens, 3 dim]` to `[batch, tokens, dim]`.
    ///
    /// # Errors
    /// When the last dimension is not three times a multiple of `heads`.
    pub fn prefix_attention(
        &mut self,
        qkv: Var,
        prefix: Var,
        heads: usize,
    ) -> Result<Var, TensorError> {
        const OP: &str = "prefix_attention";
        let shape = self.f32_shape(OP, qkv)?;
        let &[batch, tokens, width] = shape.dims() else {
            let expected = "qkv [batch, tokens, 3 * dim]";
            return Err(TensorError::BadArgument { op: OP, expected, found: shape.to_string() });
        };
        if heads == 0 || !width.is_multiple_of(3 * heads) {
            let expected = "a width that is 3 * heads * head_dim";
            return Err(TensorError::BadArgument {
                op: OP,
                expected,
                found: format!("{width} for {heads} heads"),
            });
        }
        self.index_shape(OP, prefix, batch)?;
        let op = Op::PrefixAttention { qkv, prefix, heads };
        Ok(self.push(op, [batch, tokens, width / 3], batch * heads * tokens))
    }

    /// [`Op::GatherRows`]: `[.., dim]` to `[picked, dim]`.
    ///
    /// # Errors
    /// When x is not f32 or the index is not i32.
    pub fn gather_rows(&mut self, x: Var, index: Var) -> Result<Var, TensorError> {
        const OP: &str = "gather_rows";
        let shape = self.f32_shape(OP, x)?;
        let picked = self.shape(index).len();
        self.index_shape(OP, index, picked)?;
        Ok(self.push(Op::GatherRows { x, index }, [picked, shape.last()], 0))
    }

    /// [`Op::Add`] of two different values of one shape.
    ///
    /// # Errors
    /// When the shapes differ or a is b.
    pub fn add(&mut self, a: Var, b: Var) -> Result<Var, TensorError> {
        let (lhs, rhs) = (self.f32_shape("add", a)?, self.f32_shape("add", b)?);
        if lhs != rhs || a == b {
            return Err(mismatch("add", "two different values of one shape", lhs, rhs));
        }
        Ok(self.push(Op::Add { a, b }, lhs, 0))
    }

    /// [`Op::Average`] of one or more values of one shape.
    ///
    /// # Errors
    /// When there is none or the shapes differ.
    pub fn average(&mut self, inputs: &[Var]) -> Result<Var, TensorError> {
        const OP: &str = "average";
        let [first, rest @ ..] = inputs else {
            return Err(TensorError::BadArgument {
                op: OP,
                expected: "at least one value",
                found: "none".into(),
            });
        };
        let shape = self.f32_shape(OP, *first)?;
        for other in rest {
            let found = self.f32_shape(OP, *other)?;
            if found != shape {
                return Err(mismatch(OP, "values of one shape", shape, found));
            }
        }
        Ok(self.push(Op::Average { inputs: inputs.to_vec() }, shape, 0))
    }

    /// [`Op::MeanPool`]: `[batch, tokens, dim]` to `[batch, dim]`.
    ///
    /// # Errors
    /// When x has another rank.
    pub fn mean_pool(&mut self, x: Var) -> Result<Var, TensorError> {
        const OP: &str = "mean_pool";
        let [batch, _, dim] = self.rank3(OP, x)?;
        Ok(self.push(Op::MeanPool { x }, [batch, dim], 0))
    }

    /// [`Op::BatchNorm`] over rows: with the batch's statistics, or with `running` mean and variance.
    ///
    /// # Errors
    /// When the running statistics are not as long as the last dimension, or a batch of one row is to be normalised
    /// by itself.
    pub fn batch_norm(
        &mut self,
        x: Var,
        running: Option<(ParamId, ParamId)>,
        eps: f32,
    ) -> Result<Var, TensorError> {
        const OP: &str = "batch_norm";
        let shape = self.f32_shape(OP, x)?;
        match running {
            Some((mean, variance)) => {
                for found in [self.param_shape(mean), self.param_shape(variance)] {
                    if found.len() != shape.last() {
                        return Err(mismatch(
                            OP,
                            "x [rows, dim] and statistics [dim]",
                            shape,
                            found,
                        ));
                    }
                }
            }
            None if shape.rows() < 2 => {
                let expected = "at least two rows to normalise by their own statistics";
                return Err(TensorError::BadArgument {
                    op: OP,
                    expected,
                    found: shape.to_string(),
                });
            }
            None => {}
        }
        Ok(self.push(Op::BatchNorm { x, running, eps }, shape, 2 * shape.last()))
    }

    /// [`Op::AttentionPool`]: `[batch, tokens, dim]` to `[batch, dim]`.
    ///
    /// # Errors
    /// When x and the parameters do not fit, or only some of the parameters train.
    pub fn attention_pool(
        &mut self,
        x: Var,
        [query, key, value]: [ParamId; 3],
        heads: usize,
    ) -> Result<Var, TensorError> {
        const OP: &str = "attention_pool";
        let [batch, _, dim] = self.rank3(OP, x)?;
        let trains = [query, key, value].map(|id| self.layout.get(id).spec.trainable);
        if trains.contains(&true) && trains.contains(&false) {
            let expected = "query, key and value that all train or are all frozen";
            return Err(TensorError::BadArgument {
                op: OP,
                expected,
                found: format!("training: {trains:?}"),
            });
        }
        let q = self.param_shape(query);
        if q.last() != dim || heads == 0 || !dim.is_multiple_of(heads) {
            let expected =
                "x [batch, tokens, dim] and queries [1, queries, dim], dim a multiple of heads";
            return Err(mismatch(OP, expected, self.shape(x), q));
        }
        for w in [key, value].map(|id| self.param_shape(id)) {
            if w != Shape::from([dim, dim]) {
                return Err(mismatch(
                    OP,
                    "x [batch, tokens, dim] and weights [dim, dim]",
                    self.shape(x),
                    w,
                ));
            }
        }
        let op = Op::AttentionPool { x, query, key, value, heads };
        let kept = attention_pool_shape(self, x, query, heads).kept();
        Ok(self.push(op, [batch, dim], kept))
    }

    /// [`Op::PatchLoss`]: one loss for each row of pred.
    ///
    /// # Errors
    /// When predictions, patches and targets do not fit.
    pub fn patch_loss(
        &mut self,
        pred: Var,
        patches: Var,
        targets: Var,
        patch_size: usize,
        normalize: bool,
    ) -> Result<Var, TensorError> {
        const OP: &str = "patch_loss";
        let (shape, found) = (self.f32_shape(OP, pred)?, self.f32_shape(OP, patches)?);
        if shape.last() != found.last() || shape.last() != 3 * patch_size * patch_size {
            return Err(mismatch(
                OP,
                "predictions and patches of 3 * patch_size^2 values",
                shape,
                found,
            ));
        }
        self.index_shape(OP, targets, shape.rows())?;
        let op = Op::PatchLoss { pred, patches, targets, patch_size, normalize };
        Ok(self.push(op, [shape.rows()], 0))
    }

    /// [`Op::CrossEntropy`]: one loss for each row of logits; rows with a negative label count for nothing.
    ///
    /// # Errors
    /// When logits and labels do not fit.
    pub fn cross_entropy(&mut self, logits: Var, labels: Var) -> Result<Var, TensorError> {
        const OP: &str = "cross_entropy";
        let shape = self.f32_shape(OP, logits)?;
        self.index_shape(OP, labels, shape.rows())?;
        Ok(self.push(Op::CrossEntropy { logits, labels }, [shape.rows()], 0))
    }

    /// [`Op::SoftCrossEntropy`]: logits and targets `[rows, classes]`.
    ///
    /// # Errors
    /// When logits and targets differ in shape or are not f32.
    pub fn soft_cross_entropy(&mut self, logits: Var, targets: Var) -> Result<Var, TensorError> {
        const OP: &str = "soft_cross_entropy";
        let (shape, found) = (self.f32_shape(OP, logits)?, self.f32_shape(OP, targets)?);
        if found.len() != shape.len() || found.last() != shape.last() || targets == logits {
            return Err(mismatch(OP, "logits and targets of one shape", shape, found));
        }
        Ok(self.push(Op::SoftCrossEntropy { logits, targets }, [shape.rows()], 0))
    }

    pub(crate) fn param_shape(&self, id: ParamId) -> Shape {
        self.layout.get(id).spec.shape
    }

    fn f32_shape(&self, op: &'static str, var: Var) -> Result<Shape, TensorError> {
        let value = &self.values[var.index()];
        match value.dtype {
            DType::F32 => Ok(value.shape),
            found => Err(TensorError::DTypeMismatch { op, expected: DType::F32, found }),
        }
    }

    fn rank3(&self, op: &'static str, x: Var) -> Result<[usize; 3], TensorError> {
        let shape = self.f32_shape(op, x)?;
        shape.dims().try_into().map_err(|_| TensorError::BadArgument {
            op,
            expected: "[batch, tokens, dim]",
            found: shape.to_string(),
        })
    }

    fn index_shape(&self, op: &'static str, index: Var, rows: usize) -> Result<(), TensorError> {
        let value = &self.values[index.index()];
        if value.dtype != DType::I32 {
            return Err(TensorError::DTypeMismatch {
                op,
                expected: DType::I32,
                found: value.dtype,
            });
        }
        if value.shape.len() != rows {
            return Err(mismatch(op, "one index a row", [rows].into(), value.shape));
        }
        Ok(())
    }

    fn push(&mut self, op: Op, shape: impl Into<Shape>, stats: usize) -> Var {
        let reaches = op
            .inputs()
            .iter()
            .zip(op.differentiable())
            .any(|(v, d)| d && self.values[v.index()].requires_grad);
        let trains = op.params().iter().any(|&id| self.layout.get(id).spec.trainable);
        let output = self.push_value(
            shape.into(),
            DType::F32,
            Source::Node(self.nodes.len() as u32),
            reaches || trains,
        );
        self.nodes.push(Node { op, output, stats });
        output
    }
}

fn mismatch(op: &'static str, expected: &'static str, lhs: Shape, rhs: Shape) -> TensorError {
    TensorError::ShapeMismatch { op, expected, lhs, rhs }
}
