//! Attention pooling against f64, from keys and values as they are written in papers.

use super::lab::{Check, Lab, compare};
use super::matrix::Matrix;
use super::shifted::{Shifted, behind};
use crate::attention_pool::AttentionPool;
use crate::attention_pool::cuda::{self, WeightGradients, Weights};
use crate::cuda::CudaError;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for (batch, tokens, queries, heads, head_dim) in [
        (1, 1, 1, 1, 1),
        (2, 5, 1, 3, 4),
        (9, 33, 1, 2, 20),
        (3, 50, 3, 5, 8),
        (2, 70, 2, 4, 67),
        (2, 20, 3, 12, 4),
    ] {
        check(lab, checks, AttentionPool { batch, tokens, queries, heads, head_dim })?;
    }
    Ok(())
}

/// `[rows, dim]` in f64.
type Rows = Vec<f64>;

/// What the kernels should give.
struct Expected {
    out: Rows,
    dquery: Rows,
    dkey: Rows,
    dvalue: Rows,
    dx: Rows,
}

fn expected(
    shape: AttentionPool,
    x: &[f32],
    [query, key, value]: [&Matrix; 3],
    dout: &[f32],
) -> Expected {
    let AttentionPool { batch, tokens, queries, heads, head_dim } = shape;
    let dim = shape.dim();
    let scale = 1.0 / (head_dim as f64).sqrt();
    let zeros = |rows: usize| vec![0.0; rows * dim];
    let mut all = Expected {
        out: zeros(batch),
        dquery: zeros(queries),
        dkey: zeros(dim),
        dvalue: zeros(dim),
        dx: zeros(batch * tokens),
    };
    for image in 0..batch {
        let x = |token: usize, c: usize| f64::from(x[(image * tokens + token) * dim + c]);
        let projected = |weight: &Matrix| -> Rows {
            let of =
                |token: usize, row: usize| (0..dim).map(|c| x(token, c) * weight.at(row, c)).sum();
            (0..tokens * dim).map(|i| of(i / dim, i % dim)).collect()
        };
        let (keys, values) = (projected(key), projected(value));
        let (mut dkeys, mut dvalues) = (zeros(tokens), zeros(tokens));
        for (head, q) in (0..heads).flat_map(|head| (0..queries).map(move |q| (head, q))) {
            let columns = head * head_dim..(head + 1) * head_dim;
            let mut p: Vec<f64> = (0..tokens)
                .map(|t| columns.clone().map(|c| query.at(q, c) * keys[t * dim + c]).sum::<f64>())
                .map(|score| (scale * score).exp())
                .collect();
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);
            let dout = |c: usize| f64::from(dout[image * dim + c]) / queries as f64;
            let g: Vec<f64> = (0..tokens)
                .map(|t| columns.clone().map(|c| dout(c) * values[t * dim + c]).sum())
                .collect();
            let mean: f64 = p.iter().zip(&g).map(|(p, g)| p * g).sum();
            for (t, (p, g)) in p.iter().zip(&g).enumerate() {
                let ds = scale * p * (g - mean);
                for c in columns.clone() {
                    all.out[image * dim + c] += p * values[t * dim + c] / queries as f64;
                    dvalues[t * dim + c] += p * dout(c);
                    dkeys[t * dim + c] += ds * query.at(q, c);
                    all.dquery[q * dim + c] += ds * keys[t * dim + c];
                }
            }
        }
        for (t, row) in (0..tokens).flat_map(|t| (0..dim).map(move |row| (t, row))) {
            let (dk, dv) = (dkeys[t * dim + row], dvalues[t * dim + row]);
            for c in 0..dim {
                all.dkey[row * dim + c] += dk * x(t, c);
                all.dvalue[row * dim + c] += dv * x(t, c);
                all.dx[(image * tokens + t) * dim + c] +=
                    dk * key.at(row, c) + dv * value.at(row, c);
            }
        }
    }
    all
}

fn check(lab: &mut Lab, checks: &mut Vec<Check>, shape: AttentionPool) -> Result<(), CudaError> {
    let AttentionPool { batch, tokens, queries, .. } = shape;
    let dim = shape.dim();
    let name = |what: &str| format!("attention_pool {what} {shape:?}");
    let values = lab.normal(batch * tokens * dim, 1.0);
    let query = Matrix::new(lab, queries, dim, 0)?;
    let key = Matrix::new(lab, dim, dim, 8)?;
    let value = Matrix::new(lab, dim, dim, 0)?;
    let gradient = lab.normal(batch * dim, 1.0);
    let expected = expected(shape, &values, [&query, &key, &value], &gradient);
    let weights = Weights { query: query.operand(), key: key.operand(), value: value.operand() };

    let x = Shifted::new(lab, 1, &values)?;
    let (out, kept) = (lab.poisoned(batch * dim)?, lab.poisoned(shape.kept())?);
    cuda::forward(lab.gpu(), shape, x.slice(), weights, out.slice(), kept.slice())?;
    checks.push(compare(name("forward"), &out, &expected.out, 1e-5)?);

    let dout = lab.upload(&gradient)?;
    let before = lab.normal(values.len(), 1.0);
    let stride = dim + 3;
    let padded = |rows: usize, sums: &[f64], old: &[f32]| -> Vec<f64> {
        let mut padded: Vec<f64> = old.iter().map(|&v| f64::from(v)).collect();
        for row in 0..rows {
            let to = &mut padded[row * stride..][..dim];
            to.iter_mut().zip(&sums[row * dim..]).for_each(|(to, sum)| *to += sum);
        }
        padded
    };
    for accumulate in [false, true] {
        let dx = match accumulate {
            false => Shifted::poisoned(lab, 1, values.len())?,
            true => Shifted::new(lab, 1, &before)?,
        };
        let old = [queries, dim, dim].map(|rows| lab.normal(rows * stride, 1.0));
        let [dquery, dkey, dvalue] = [&old[0], &old[1], &old[2]].map(|old| lab.upload(old));
        let (dquery, dkey, dvalue) = (dquery?, dkey?, dvalue?);
        let gradients = WeightGradients {
            query: (dquery.slice(), stride),
            key: (dkey.slice(), stride),
            value: (dvalue.slice(), stride),
        };
        let scratch = lab.poisoned(cuda::backward_scratch(shape))?;
        cuda::backward(
            lab.gpu(),
            shape,
            x.slice(),
            weights,
            kept.slice(),
            dout.slice(),
            Some(gradients),
            Some((dx.slice(), accumulate)),
            scratch.slice(),
        )?;
        let was = before.iter().map(|&v| if accumulate { f64::from(v) } else { 0.0 });
        let sum: Vec<f64> = expected.dx.iter().zip(was).map(|(dx, was)| dx + was).collect();
        let dx_name = name(&format!("dx, accumulate {accumulate}"));
        checks.push(compare(dx_name, &dx.buffer, &behind(1, &sum), 1e-5)?);
        for (what, rows, sums, old, found) in [
            ("dQ", queries, &expected.dquery, &old[0], &dquery),
            ("dWk", dim, &expected.dkey, &old[1], &dkey),
            ("dWv", dim, &expected.dvalue, &old[2], &dvalue),
        ] {
            checks.push(compare(name(what), found, &padded(rows, sums, old), 1e-5)?);
        }
    }
    Ok(())
}
