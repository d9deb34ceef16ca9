//! [`GridStep`]: many classifiers on the same frozen features at once, for a grid of learning rates and weight decays.
//!
//! The classifiers differ in their parameters only; the statistics of the batch norm depend on nothing but the
//! features, so they are computed once. The attentive probe's work is
//! [`attention_pool::grid`](aim_kernels::attention_pool::grid)'s. A point's results are the same bits as alone.

use aim_kernels::attention_pool::Tokens;
use aim_kernels::attention_pool::cpu::{WeightGradients, Weights};
use aim_kernels::attention_pool::grid::{self as kernel, Statistics};
use aim_kernels::linear::{self, Linear};
use aim_kernels::softmax_cross_entropy::{self, SoftmaxCrossEntropy};
use aim_tensor::parameters::zeros;
use aim_tensor::{ParamId, Parameters};

use super::{Attention, BATCH_NORM_EPS, Probe};
use crate::error::ModelError;

/// f32 values of pooled features for each point that are held at once; they and their gradients are most of the memory.
/// It bounds how many images go forward and backward together, which only the sizes of the classifier may decide.
const POOLED_VALUES: usize = 1 << 21;

/// Several classifiers of one kind on batches of the same features.
pub struct GridStep {
    probe: Probe,
    tokens: usize,
    mean: Vec<f32>,
    var: Vec<f32>,
    rstd: Vec<f32>,
    /// Features that a linear layer sees: pooled and normalised, `[images, dim]` for the linear probe, and
    /// `[points, images, dim]` for the attentive one.
    inputs: Vec<f32>,
    dinputs: Vec<f32>,
    logits: Vec<f32>,
    dlogits: Vec<f32>,
    losses: Vec<f32>,
    kept: Vec<f32>,
    scratch: Vec<f32>,
}

/// A buffer that is at least that long.
fn room(buffer: &mut Vec<f32>, len: usize) -> Result<&mut [f32], ModelError> {
    if buffer.len() < len {
        *buffer = Vec::new();
        *buffer = zeros("a grid of probes", len)?;
    }
    Ok(&mut buffer[..len])
}

impl GridStep {
    /// Describes classifiers on features `[batch, tokens, dim]`. Memory is taken when it is needed.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(probe: &Probe, tokens: usize) -> Result<Self, ModelError> {
        let column = || zeros("statistics of a probe", probe.config.dim);
        Ok(Self {
            probe: probe.clone(),
            tokens,
            mean: column()?,
            var: column()?,
            rstd: column()?,
            inputs: Vec::new(),
            dinputs: Vec::new(),
            logits: Vec::new(),
            dlogits: Vec::new(),
            losses: Vec::new(),
            kept: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Images that go forward and backward together.
    fn stretch(&self) -> usize {
        let config = self.probe.config;
        (POOLED_VALUES / (config.heads * config.dim)).clamp(16, 256)
    }

    fn check(&self, x: Tokens<'_>, labels: Option<&[i32]>) -> Result<(), ModelError> {
        let expected = self.tokens * self.probe.config.dim;
        let bad = |value: String, expected: String| ModelError::BadConfig {
            key: "probe",
            value,
            expected,
        };
        for image in 0..x.len() {
            let len = match x {
                Tokens::F32(images) => images[image].len(),
                Tokens::Bf16(images) => images[image].len(),
            };
            if len != expected {
                return Err(bad(
                    format!("{len} values"),
                    format!("features of {expected} values for each image"),
                ));
            }
        }
        if let Some(labels) = labels {
            let classes = self.probe.config.classes;
            let wrong = labels.iter().find(|&&label| label >= 0 && label as usize >= classes);
            if labels.len() != x.len() || wrong.is_some() {
                return Err(bad(
                    format!("{} labels, one of them {wrong:?}", labels.len()),
                    format!("{} labels below {classes}", x.len()),
                ));
            }
        }
        Ok(())
    }

    /// Adds each point's gradients of `scale` times the summed loss over images whose label is not negative, and moves
    /// the running statistics; returns each point's summed loss.
    ///
    /// # Errors
    /// When features are of another size, a label is not below the number of classes, or there are fewer than two rows
    /// to take statistics of.
    pub fn train(
        &mut self,
        params: &mut [Parameters],
        x: Tokens<'_>,
        labels: &[i32],
        scale: f32,
    ) -> Result<Vec<f64>, ModelError> {
        self.check(x, Some(labels))?;
        let attentive = self.probe.attention.is_some();
        let rows = if attentive { x.len() * self.tokens } else { x.len() };
        if rows < 2 {
            return Err(ModelError::BadConfig {
                key: "probe",
                value: format!("{rows} rows"),
                expected: "at least two, for a batch norm".into(),
            });
        }
        if attentive {
            let dim = self.probe.config.dim;
            kernel::column_statistics(x, dim, &mut self.mean, &mut self.var);
        } else {
            self.pool_tokens(x)?;
            let dim = self.probe.config.dim;
            let images: Vec<&[f32]> = self.inputs[..x.len() * dim].chunks_exact(dim).collect();
            kernel::column_statistics(Tokens::F32(&images), dim, &mut self.mean, &mut self.var);
        }
        self.invert();
        let losses = if attentive {
            let mut losses = vec![0.0; params.len()];
            for first in (0..x.len()).step_by(self.stretch()) {
                let range = first..x.len().min(first + self.stretch());
                let (x, labels) = (x.slice(range.clone()), &labels[range]);
                self.pool_attentively(&params.iter().collect::<Vec<_>>(), x)?;
                self.classify(params, x.len(), labels, scale, &mut losses)?;
                self.backward_attention(params, x)?;
            }
            losses
        } else {
            self.normalise(x.len());
            let mut losses = vec![0.0; params.len()];
            self.classify(params, x.len(), labels, scale, &mut losses)?;
            losses
        };
        for params in params {
            self.probe.move_running(params, &self.mean, &self.var, rows)?;
        }
        Ok(losses)
    }

    /// Logits of all points, `[points, batch, classes]`, by the running statistics, which must be the same in all
    /// points: they are after [`GridStep::train`] on the same batches.
    ///
    /// # Errors
    /// When features are of another size.
    pub fn logits(
        &mut self,
        params: &[&Parameters],
        x: Tokens<'_>,
        out: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.check(x, None)?;
        let (classes, batch) = (self.probe.config.classes, x.len());
        out.clear();
        out.resize(params.len() * batch * classes, 0.0);
        let Some(any) = params.first() else { return Ok(()) };
        self.mean.copy_from_slice(any.value(self.probe.running.0));
        self.var.copy_from_slice(any.value(self.probe.running.1));
        self.invert();
        for first in (0..batch).step_by(self.stretch()) {
            let range = first..batch.min(first + self.stretch());
            let x = x.slice(range.clone());
            if self.probe.attention.is_some() {
                self.pool_attentively(params, x)?;
            } else {
                self.pool_tokens(x)?;
                self.normalise(x.len());
            }
            for (point, params) in params.iter().enumerate() {
                let start = (point * batch + range.start) * classes;
                let logits = &mut out[start..][..x.len() * classes];
                self.linear(params, point, x.len(), logits);
            }
        }
        Ok(())
    }

    fn invert(&mut self) {
        for (rstd, var) in self.rstd.iter_mut().zip(&self.var) {
            *rstd = 1.0 / (var + BATCH_NORM_EPS).sqrt();
        }
    }

    /// The linear probe's means over tokens, into `inputs`.
    fn pool_tokens(&mut self, x: Tokens<'_>) -> Result<(), ModelError> {
        let dim = self.probe.config.dim;
        let share = 1.0 / self.tokens as f32;
        let pooled = room(&mut self.inputs, x.len() * dim)?;
        aim_kernels::cpu::pool::for_each_chunk(pooled, dim, |image, pooled| {
            x.with_image(image, |x| {
                pooled.fill(0.0);
                for token in x.chunks_exact(dim) {
                    pooled.iter_mut().zip(token).for_each(|(sum, v)| *sum += v * share);
                }
            });
        });
        Ok(())
    }

    /// Normalises the linear probe's inputs where they are.
    fn normalise(&mut self, images: usize) {
        let dim = self.probe.config.dim;
        for row in self.inputs[..images * dim].chunks_exact_mut(dim) {
            for ((v, mean), rstd) in row.iter_mut().zip(&self.mean).zip(&self.rstd) {
                *v = (*v - mean) * rstd;
            }
        }
    }

    fn grid(&self, points: usize, batch: usize) -> kernel::Grid {
        let config = self.probe.config;
        let head_dim = config.dim / config.heads;
        kernel::Grid { points, batch, tokens: self.tokens, heads: config.heads, head_dim }
    }

    /// The attentive probe's pooling, into `inputs`.
    fn pool_attentively(
        &mut self,
        params: &[&Parameters],
        x: Tokens<'_>,
    ) -> Result<(), ModelError> {
        let Some(attention) = self.probe.attention else { return Ok(()) };
        let shape = self.grid(params.len(), x.len());
        let weights: Vec<_> = params.iter().map(|params| attention.weights(params)).collect();
        let out = room(&mut self.inputs, params.len() * x.len() * shape.dim())?;
        let kept = room(&mut self.kept, shape.kept())?;
        let norm = Statistics { mean: &self.mean, rstd: &self.rstd };
        kernel::forward(shape, x, norm, &weights, out, kept);
        Ok(())
    }

    fn backward_attention(
        &mut self,
        params: &mut [Parameters],
        x: Tokens<'_>,
    ) -> Result<(), ModelError> {
        let Some(attention) = self.probe.attention else { return Ok(()) };
        let shape = self.grid(params.len(), x.len());
        let scratch = room(&mut self.scratch, shape.backward_scratch())?;
        let (mut weights, mut gradients) = (Vec::new(), Vec::new());
        for params in params {
            let (layout, values, grads) = params.trainable_mut();
            let ids = [attention.queries, attention.key, attention.value];
            let ranges = ids.map(|id| layout.get(id).range.clone());
            let values = &*values;
            let [query, key, value] = ranges.clone().map(|range| &values[range]);
            weights.push(Weights { query, key, value });
            let split = grads.get_disjoint_mut(ranges);
            let [query, key, value] = split.map_err(|_| ModelError::MissingParameter {
                name: "gradients of the attentive probe".into(),
            })?;
            gradients.push(WeightGradients { query, key, value });
        }
        let norm = Statistics { mean: &self.mean, rstd: &self.rstd };
        let (kept, dout) = (&self.kept[..shape.kept()], &self.dinputs);
        let dout = &dout[..shape.points * shape.batch * shape.dim()];
        kernel::backward(shape, x, norm, &weights, kept, dout, &mut gradients, scratch);
        Ok(())
    }

    fn linear_shape(&self, rows: usize) -> Linear {
        let config = self.probe.config;
        Linear { rows, inputs: config.dim, outputs: config.classes }
    }

    /// Where a point's inputs lie.
    fn inputs_of(&self, point: usize, images: usize) -> std::ops::Range<usize> {
        // Linear probes all see the same.
        let point = if self.probe.attention.is_some() { point } else { 0 };
        let len = images * self.probe.config.dim;
        point * len..(point + 1) * len
    }

    fn linear(&self, params: &Parameters, point: usize, images: usize, logits: &mut [f32]) {
        let (weight, bias) = self.probe.linear;
        let inputs = &self.inputs[self.inputs_of(point, images)];
        let bias = bias.map(|id| params.value(id));
        let shape = self.linear_shape(images);
        linear::cpu::forward(shape, inputs, params.value(weight), bias, None, logits);
    }

    /// The linear layers: losses, their gradients, and for attentive probes those of the inputs.
    fn classify(
        &mut self,
        params: &mut [Parameters],
        images: usize,
        labels: &[i32],
        scale: f32,
        losses: &mut [f64],
    ) -> Result<(), ModelError> {
        let config = self.probe.config;
        let rows =
            SoftmaxCrossEntropy { rows: images, classes: config.classes, label_smoothing: 0.0 };
        room(&mut self.logits, images * config.classes)?;
        room(&mut self.dlogits, images * config.classes)?;
        room(&mut self.losses, images)?;
        if self.probe.attention.is_some() {
            room(&mut self.dinputs, params.len() * images * config.dim)?;
        }
        let len = images * config.classes;
        for (point, (params, sum)) in params.iter_mut().zip(losses).enumerate() {
            let mut logits = std::mem::take(&mut self.logits);
            self.linear(params, point, images, &mut logits[..len]);
            self.logits = logits;
            let (logits, dlogits) = (&self.logits[..len], &mut self.dlogits[..len]);
            let each = &mut self.losses[..images];
            softmax_cross_entropy::cpu::forward(rows, logits, labels, each);
            *sum += each.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            softmax_cross_entropy::cpu::backward(rows, logits, labels, scale, dlogits, false);

            let range = self.inputs_of(point, images);
            let shape = self.linear_shape(images);
            let dlogits = &self.dlogits[..len];
            let (layout, values, grads) = params.trainable_mut();
            let of = |id: ParamId| layout.get(id).range.clone();
            let (weight, bias) = self.probe.linear;
            let inputs = &self.inputs[range.clone()];
            linear::cpu::backward_weight(shape, dlogits, inputs, &mut grads[of(weight)]);
            if let Some(bias) = bias {
                linear::cpu::backward_bias(shape, dlogits, &mut grads[of(bias)]);
            }
            if self.probe.attention.is_some() {
                let dinputs = &mut self.dinputs[range];
                linear::cpu::backward_input(shape, dlogits, &values[of(weight)], dinputs, false);
            }
        }
        Ok(())
    }
}

impl Attention {
    fn weights(self, params: &Parameters) -> Weights<'_> {
        Weights {
            query: params.value(self.queries),
            key: params.value(self.key),
            value: params.value(self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::{ProbeConfig, ProbeKind, ProbeStep};
    use aim_tensor::Philox;

    fn largest(x: &[f32]) -> f32 {
        x.iter().fold(0.0, |top, v| top.max(v.abs()))
    }

    /// The tape's probe projects keys and values of normalised features, step by step.
    #[test]
    fn a_grid_is_the_tape_s_probe() {
        for (kind, images) in [(ProbeKind::Attentive, 300), (ProbeKind::Linear, 40)] {
            let (tokens, dim, classes) = (3, 24, 5);
            let probe = Probe::new(ProbeConfig { kind, dim, heads: 2, classes }).unwrap();
            let random = Philox::new(3, "features");
            let mut x = vec![0.0; images * tokens * dim];
            random.fill_normal(2.0, &mut x);
            x.iter_mut().for_each(|v| *v += 3.0);
            let labels: Vec<i32> =
                (0..images).map(|i| random.below(5, i as u64, 9) as i32).collect();
            let slices: Vec<&[f32]> = x.chunks_exact(tokens * dim).collect();
            let mut params = vec![probe.init(1).unwrap(), probe.init(2).unwrap()];
            let mut grid = GridStep::new(&probe, tokens).unwrap();
            let losses = grid.train(&mut params, Tokens::F32(&slices), &labels, 0.1).unwrap();

            let mut alone = probe.init(2).unwrap();
            let mut step = ProbeStep::new(&probe, images, tokens, true).unwrap();
            let loss = step.forward(&alone, &x, &labels).unwrap();
            step.backward(&mut alone, 0.1).unwrap();
            assert!((loss - losses[1]).abs() < 1e-4 * loss, "{loss} {}", losses[1]);
            for (found, expected) in
                [(params[1].grads(), alone.grads()), (params[1].values(), alone.values())]
            {
                let off = found.iter().zip(expected).map(|(a, b)| a - b).collect::<Vec<_>>();
                assert!(largest(&off) < 1e-4 * largest(expected), "{kind:?}: {}", largest(&off));
            }

            let mut logits = Vec::new();
            grid.logits(&[&params[0], &params[1]], Tokens::F32(&slices[..7]), &mut logits).unwrap();
            let mut step = ProbeStep::new(&probe, 7, tokens, false).unwrap();
            step.forward(&alone, &x[..7 * tokens * dim], &labels[..7]).unwrap();
            let expected = step.logits().unwrap();
            let off: Vec<f32> =
                logits[7 * classes..].iter().zip(expected.iter()).map(|(a, b)| a - b).collect();
            assert!(largest(&off) < 1e-4 * largest(&expected), "{kind:?}: {}", largest(&off));

            assert!(grid.train(&mut params, Tokens::F32(&slices[..2]), &[0, 5], 1.0).is_err());
            assert!(grid.train(&mut params, Tokens::F32(&[&x[..3]]), &[0], 1.0).is_err());
        }
    }
}
