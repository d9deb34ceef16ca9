//! Layer norm.

use half::bf16;

use super::cast::Split;
use super::lab::{Buffer, Check, Lab, compare};
use crate::cuda::CudaError;
use crate::layer_norm::{LayerNorm, cuda};

/// Largest relative error of a bf16 result: one rounding.
const ROUNDED: f64 = 4e-3;
/// Largest relative error of an f32 result.
const SUMMED: f64 = 2e-6;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    // A warp a row up to 512, then a block; 588 and 8200 go over the row again.
    let shapes = [
        (1, 8),
        (7, 48),
        (33, 192),
        (150, 64),
        (20, 512),
        (9, 520),
        (7, 588),
        (17, 1536),
        (5, 2056),
        (3, 4096),
        (1, 8192),
        (2, 8200),
        (3, 1),
    ];
    for (rows, dim) in shapes {
        Case::new(lab, LayerNorm { rows, dim, eps: 1e-6 }, 0)?.run(lab, checks)?;
    }
    // So many rows that a block, or a warp, takes several in turn.
    for (rows, dim) in [(2200, 520), (17_000, 8)] {
        Case::new(lab, LayerNorm { rows, dim, eps: 1e-6 }, 0)?.forward(lab, checks)?;
    }
    // Values that are not at 16 bytes.
    Case::new(lab, LayerNorm { rows: 5, dim: 64, eps: 1e-5 }, 1)?.run(lab, checks)
}

/// Operands on both sides.
struct Case {
    shape: LayerNorm,
    skip: usize,
    x: Vec<bf16>,
    dy: Vec<bf16>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Mean and 1 / std of each row.
    stats: Vec<(f64, f64)>,
    device_x: Buffer<bf16>,
    device_dy: Buffer<bf16>,
    device_weight: Split,
    device_bias: Split,
}

impl Case {
    fn new(lab: &mut Lab, shape: LayerNorm, skip: usize) -> Result<Self, CudaError> {
        let LayerNorm { rows, dim, eps } = shape;
        let mut x = lab.normal(skip + rows * dim, 1.5);
        // Rows of very different means, so that a variance by E[x^2] - mean^2 would show.
        x.iter_mut().enumerate().for_each(|(at, x)| *x += 20.0 * (at / dim % 3) as f32);
        let x: Vec<_> = x.into_iter().map(bf16::from_f32).collect();
        let dy = lab.normal_bf16(rows * dim, 1.0);
        let weight: Vec<_> = lab.normal(dim, 0.3).into_iter().map(|w| w + 1.0).collect();
        let bias = lab.normal(dim, 0.5);
        let stats = x[skip..].chunks(dim).map(|row| {
            let n = dim as f64;
            let mean = row.iter().map(|v| v.to_f64()).sum::<f64>() / n;
            let variance = row.iter().map(|v| (v.to_f64() - mean).powi(2)).sum::<f64>() / n;
            (mean, 1.0 / (variance + f64::from(eps)).sqrt())
        });
        Ok(Self {
            shape,
            skip,
            stats: stats.collect(),
            device_x: lab.upload(&x)?,
            device_dy: lab.upload(&dy)?,
            device_weight: Split::upload(lab, &weight)?,
            device_bias: Split::upload(lab, &bias)?,
            x: x[skip..].to_vec(),
            dy,
            weight,
            bias,
        })
    }

    fn run(&self, lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
        self.forward(lab, checks)?;
        for accumulate in [false, true] {
            self.backward(lab, checks, Some(accumulate), true)?;
        }
        self.backward(lab, checks, Some(false), false)?;
        self.backward(lab, checks, None, true)
    }

    fn name(&self, what: &str) -> String {
        format!("layer_norm {what} {:?} from {}", self.shape, self.skip)
    }

    /// Row, column, normalised value.
    fn hats(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let dim = self.shape.dim;
        self.x.iter().enumerate().map(move |(at, x)| {
            let (mean, rstd) = self.stats[at / dim];
            (at / dim, at % dim, (x.to_f64() - mean) * rstd)
        })
    }

    fn forward(&self, lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
        let rows = self.shape.rows;
        let (y, mean) = (lab.poisoned(self.x.len())?, lab.poisoned(rows)?);
        let rstd = lab.poisoned(rows)?;
        let x = self.device_x.slice().range(self.skip..self.device_x.slice().len());
        let (weight, bias) = (self.device_weight.slice(), self.device_bias.slice());
        let (outs, gpu) = ((y.slice(), mean.slice(), rstd.slice()), lab.gpu());
        cuda::forward(gpu, self.shape, x, weight, bias, outs.0, outs.1, outs.2)?;
        let expected: Vec<_> = self
            .hats()
            .map(|(_, column, hat)| {
                hat * f64::from(self.weight[column]) + f64::from(self.bias[column])
            })
            .collect();
        checks.push(compare(self.name("forward"), &y, &expected, ROUNDED)?);
        let (means, rstds): (Vec<_>, Vec<_>) = self.stats.iter().copied().unzip();
        checks.push(compare(self.name("mean"), &mean, &means, SUMMED)?);
        checks.push(compare(self.name("rstd"), &rstd, &rstds, SUMMED)?);
        Ok(())
    }

    /// Gradient of x.
    fn dx(&self) -> Vec<f64> {
        let dim = self.shape.dim;
        let mut sums = vec![(0.0, 0.0); self.shape.rows];
        for ((row, column, hat), dy) in self.hats().zip(&self.dy) {
            let g = dy.to_f64() * f64::from(self.weight[column]) / dim as f64;
            sums[row].0 += g;
            sums[row].1 += g * hat;
        }
        let values = self.hats().zip(&self.dy);
        let one = |((row, column, hat), dy): ((usize, usize, f64), &bf16)| {
            let g = dy.to_f64() * f64::from(self.weight[column]);
            self.stats[row].1 * (g - sums[row].0 - hat * sums[row].1)
        };
        values.map(one).collect()
    }

    /// `dx`: whether there is one, and whether it is added to.
    fn backward(
        &self,
        lab: &mut Lab,
        checks: &mut Vec<Check>,
        dx: Option<bool>,
        parameters: bool,
    ) -> Result<(), CudaError> {
        let (dim, len) = (self.shape.dim, self.x.len());
        let before = lab.normal_bf16(len, 1.0);
        let added = dx == Some(true);
        let out = if added { lab.upload(&before)? } else { lab.poisoned(len)? };
        let start = [lab.normal(dim, 1.0), lab.normal(dim, 1.0)];
        let (dweight, dbias) = (lab.upload(&start[0])?, lab.upload(&start[1])?);
        let scratch = lab.poisoned(cuda::backward_scratch(self.shape))?;
        let (means, rstds): (Vec<_>, Vec<_>) =
            self.stats.iter().map(|&(mean, rstd)| (mean as f32, rstd as f32)).unzip();
        let (mean, rstd) = (lab.upload(&means)?, lab.upload(&rstds)?);
        cuda::backward(
            lab.gpu(),
            self.shape,
            self.device_x.slice().range(self.skip..self.device_x.slice().len()),
            self.device_weight.slice(),
            mean.slice(),
            rstd.slice(),
            self.device_dy.slice(),
            dx.map(|accumulate| (out.slice(), accumulate)),
            parameters.then(|| (dweight.slice(), dbias.slice())),
            scratch.slice(),
        )?;
        let case = format!("dx={dx:?} parameters={parameters}");
        if dx.is_some() {
            let mut expected = self.dx();
            if added {
                expected.iter_mut().zip(&before).for_each(|(sum, v)| *sum += v.to_f64());
            }
            // A row of one value has no gradient: what is left is the rounding of 1 / std.
            let tolerance = if dim == 1 { 1e-2 } else { ROUNDED };
            checks.push(compare(
                self.name(&format!("backward {case}")),
                &out,
                &expected,
                tolerance,
            )?);
        }
        if parameters {
            let [mut w, mut b] = start.map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
            for ((_, column, hat), dy) in self.hats().zip(&self.dy) {
                w[column] += dy.to_f64() * hat;
                b[column] += dy.to_f64();
            }
            let name = |what: &str| self.name(&format!("{what} {case}"));
            checks.push(compare(name("dweight"), &dweight, &w, SUMMED)?);
            checks.push(compare(name("dbias"), &dbias, &b, SUMMED)?);
        }
        Ok(())
    }
}
