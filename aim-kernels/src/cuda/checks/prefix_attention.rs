//! Prefix attention against f64: forward, and backward from the device's own out and lse.

use half::bf16;

use super::lab::{Check, Lab, compare};
use crate::cuda::CudaError;
use crate::prefix_attention::{PrefixAttention, cuda};

/// Relative L2 error of what is stored as bf16, from probabilities that are rounded to bf16 before they are multiplied.
const ROUNDED: f64 = 6e-3;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for head_dim in [64, 128] {
        for tokens in [1, 49, 64, 65, 200, 256] {
            let k = tokens as i32;
            let drawn = lab.below(tokens + 1) as i32;
            // Long ones take the emulator's time: the two widths share the prefixes.
            let (heads, prefix) = match (tokens, head_dim) {
                (1, _) => (3, vec![0, 1]),
                (49, _) => (2, vec![0, 1, k - 1, k, drawn]),
                (64, _) => (1, vec![0, 1, k - 1, k, drawn]),
                (65, _) => (2, vec![k, 1, 0, drawn, k - 1]),
                (200, 64) => (1, vec![drawn, 1]),
                (200, _) => (2, vec![k - 1]),
                (_, 64) => (2, vec![drawn]),
                // The last one is out of range: as many as there are.
                _ => (1, vec![0, drawn, k + 1]),
            };
            let shape = PrefixAttention { batch: prefix.len(), tokens, heads, head_dim };
            check(lab, checks, shape, &prefix)?;
        }
    }
    Ok(())
}

fn check(
    lab: &mut Lab,
    checks: &mut Vec<Check>,
    shape: PrefixAttention,
    prefix: &[i32],
) -> Result<(), CudaError> {
    let PrefixAttention { batch, tokens, heads, head_dim } = shape;
    let rows = batch * tokens * shape.dim();
    let (qkv, dout) = (lab.normal_bf16(3 * rows, 1.0), lab.normal_bf16(rows, 1.0));
    let expected = reference(shape, &qkv, prefix, &dout);

    let name = format!("prefix_attention {heads} x {head_dim}, {tokens} tokens, prefix {prefix:?}");
    let (qkv, dout, prefix) = (lab.upload(&qkv)?, lab.upload(&dout)?, lab.upload(prefix)?);
    let (out, lse) = (lab.poisoned::<bf16>(rows)?, lab.poisoned::<f32>(batch * heads * tokens)?);
    let (gpu, qkv, prefix) = (lab.gpu(), qkv.slice(), prefix.slice());
    cuda::forward(gpu, shape, qkv, prefix, out.slice(), lse.slice())?;
    checks.push(compare(format!("{name}: out"), &out, &expected.out, ROUNDED)?);
    checks.push(compare(format!("{name}: lse"), &lse, &expected.lse, 5e-6)?);

    let dqkv = lab.poisoned::<bf16>(3 * rows)?;
    let scratch = lab.poisoned(cuda::backward_scratch(shape))?;
    let (out, lse) = (out.slice(), lse.slice());
    let (dout, scratch) = (dout.slice(), scratch.slice());
    cuda::backward(gpu, shape, qkv, prefix, out, lse, dout, dqkv.slice(), false, scratch)?;
    let found = dqkv.read()?;
    for (part, label) in ["dq", "dk", "dv"].into_iter().enumerate() {
        // Each is a third of every token.
        let third = found.chunks_exact(shape.dim()).skip(part).step_by(3).flatten();
        let third = lab.upload(&third.copied().collect::<Vec<_>>())?;
        checks.push(compare(format!("{name}: {label}"), &third, &expected.dqkv[part], ROUNDED)?);
    }
    Ok(())
}

/// What should come out: dq, dk and dv apart, each `[batch, tokens, heads, head_dim]`.
struct Expected {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: [Vec<f64>; 3],
}

fn reference(shape: PrefixAttention, qkv: &[bf16], prefix: &[i32], dout: &[bf16]) -> Expected {
    let PrefixAttention { batch, tokens, heads, head_dim } = shape;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let wide = |values: &[bf16]| values.iter().map(|v| f64::from(v.to_f32())).collect::<Vec<_>>();
    let (qkv, dout) = (wide(qkv), wide(dout));
    let part = |image: usize, token: usize, part: usize, head: usize| {
        &qkv[(((image * tokens + token) * 3 + part) * heads + head) * head_dim..][..head_dim]
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let add = |to: &mut [f64], by: f64, x: &[f64]| {
        to.iter_mut().zip(x).for_each(|(to, x)| *to += by * x);
    };
    let zeros = || vec![0.0; dout.len()];
    let mut expected = Expected {
        out: zeros(),
        lse: vec![0.0; batch * heads * tokens],
        dqkv: [zeros(), zeros(), zeros()],
    };
    for (image, head, query) in
        (0..batch * heads * tokens).map(|i| (i / tokens / heads, i / tokens % heads, i % tokens))
    {
        let seen = tokens.min((prefix[image].max(0) as usize).max(query + 1));
        let at = |token: usize| {
            let start = ((image * tokens + token) * heads + head) * head_dim;
            start..start + head_dim
        };
        let (q, d_o) = (part(image, query, 0, head), &dout[at(query)]);
        let mut p: Vec<_> =
            (0..seen).map(|key| scale * dot(q, part(image, key, 1, head))).collect();
        let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + p.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        p.iter_mut().for_each(|s| *s = (*s - lse).exp());
        expected.lse[(image * heads + head) * tokens + query] = lse;
        let dp: Vec<_> = (0..seen).map(|key| dot(d_o, part(image, key, 2, head))).collect();
        let delta = dot(&p, &dp);
        for key in 0..seen {
            add(&mut expected.out[at(query)], p[key], part(image, key, 2, head));
            add(&mut expected.dqkv[2][at(key)], p[key], d_o);
            // Where one key is seen the gradient of its score is zero, of which f64 would leave a rest.
            if seen > 1 {
                let ds = scale * p[key] * (dp[key] - delta);
                add(&mut expected.dqkv[0][at(query)], ds, part(image, key, 1, head));
                add(&mut expected.dqkv[1][at(key)], ds, q);
            }
        }
    }
    expected
}
