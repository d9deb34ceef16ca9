//! The ops in f64, written as their formulas read.

use aim_kernels::attention_pool::AttentionPool;
use aim_kernels::patch_embed::PatchEmbed;
use aim_kernels::prefix_attention::PrefixAttention;

/// `y = x W^T`.
pub(crate) fn linear(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    let product = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks_exact(inputs)
        .flat_map(|x| weight.chunks_exact(inputs).map(move |w| product(x, w)))
        .collect()
}

/// Adds a row to every row.
pub(crate) fn add_row(x: &[f64], row: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x + row[i % row.len()]).collect()
}

/// Mean and biased variance.
pub(crate) fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
}

pub(crate) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks_exact(weight.len()) {
        let (mean, var) = moments(row);
        for ((x, w), b) in row.iter().zip(weight).zip(bias) {
            y.push((x - mean) / (var + eps).sqrt() * w + b);
        }
    }
    y
}

pub(crate) fn batch_norm(x: &[f64], dim: usize, eps: f64) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for column in 0..dim {
        let values: Vec<f64> = x.iter().skip(column).step_by(dim).copied().collect();
        let (mean, var) = moments(&values);
        for (row, x) in values.iter().enumerate() {
            y[row * dim + column] = (x - mean) / (var + eps).sqrt();
        }
    }
    y
}

/// `erf(x) = 2 / sqrt(pi) e^(-x^2) sum over n of 2^n x^(2n+1) / (1 3 5 ... (2n+1))`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

pub(crate) fn gelu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x * (1.0 + erf(x / 2f64.sqrt())) / 2.0).collect()
}

pub(crate) fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

pub(crate) fn prefix_attention(shape: PrefixAttention, qkv: &[f64], prefix: &[i32]) -> Vec<f64> {
    let PrefixAttention { batch, tokens, heads, head_dim } = shape;
    let part = |image: usize, token: usize, part: usize, head: usize| {
        &qkv[(((image * tokens + token) * 3 + part) * heads + head) * head_dim..][..head_dim]
    };
    let mut out = Vec::new();
    for (image, &prefix) in (0..batch).zip(prefix) {
        for query in 0..tokens {
            for head in 0..heads {
                let seen: Vec<usize> =
                    (0..tokens).filter(|&key| key < prefix as usize || key <= query).collect();
                let q = part(image, query, 0, head);
                let score = |&key: &usize| {
                    let k = part(image, key, 1, head);
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let p = softmax(&seen.iter().map(score).collect::<Vec<_>>());
                let mut row = vec![0.0; head_dim];
                for (p, &key) in p.iter().zip(&seen) {
                    row.iter_mut().zip(part(image, key, 2, head)).for_each(|(o, v)| *o += p * v);
                }
                out.extend(row);
            }
        }
    }
    out
}

pub(crate) fn attention_pool(shape: AttentionPool, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let AttentionPool { batch, tokens, queries, heads, head_dim } = shape;
    let of = |x: &[f64], row: usize, head: usize| -> Vec<f64> {
        x[(row * heads + head) * head_dim..][..head_dim].to_vec()
    };
    let mut out = Vec::new();
    for image in 0..batch {
        for head in 0..heads {
            let mut row = vec![0.0; head_dim];
            for query in 0..queries {
                let q = of(q, query, head);
                let score = |token: usize| {
                    let k = of(k, image * tokens + token, head);
                    q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let p = softmax(&(0..tokens).map(score).collect::<Vec<_>>());
                for (token, p) in p.iter().enumerate() {
                    let v = of(v, image * tokens + token, head);
                    row.iter_mut().zip(v).for_each(|(o, v)| *o += p * v / queries as f64);
                }
            }
            out.extend(row);
        }
    }
    out
}

pub(crate) fn mean_pool(x: &[f64], tokens: usize, dim: usize) -> Vec<f64> {
    let image = |x: &[f64]| -> Vec<f64> {
        let column = |d: usize| x.iter().skip(d).step_by(dim).sum::<f64>() / tokens as f64;
        (0..dim).map(column).collect()
    };
    x.chunks_exact(tokens * dim).flat_map(image).collect()
}

pub(crate) fn gather_rows(x: &[f64], index: &[i32], dim: usize) -> Vec<f64> {
    index.iter().flat_map(|&i| x[i as usize * dim..][..dim].to_vec()).collect()
}

pub(crate) fn patchify(shape: PatchEmbed, images: &[f64]) -> Vec<f64> {
    let PatchEmbed { batch, height, width, patch } = shape;
    let mut patches = Vec::new();
    for image in 0..batch {
        for (top, left) in
            (0..height).step_by(patch).flat_map(|y| (0..width).step_by(patch).map(move |x| (y, x)))
        {
            for channel in 0..3 {
                for y in top..top + patch {
                    for x in left..left + patch {
                        patches.push(images[((image * 3 + channel) * height + y) * width + x]);
                    }
                }
            }
        }
    }
    patches
}

/// What predictions are scored against, from patches in (channel, row, column) order.
pub(crate) fn patch_targets(
    patches: &[f64],
    targets: &[i32],
    patch: usize,
    normalize: bool,
) -> Vec<f64> {
    let dim = 3 * patch * patch;
    let mut out = Vec::new();
    for &target in targets {
        let values = &patches[target as usize * dim..][..dim];
        let (mut mean, mut std) = (0.0, 1.0);
        if normalize {
            let (m, biased) = moments(values);
            (mean, std) = (m, (biased * dim as f64 / (dim - 1) as f64 + 1e-6).sqrt());
        }
        for row in 0..patch {
            for column in 0..patch {
                for channel in 0..3 {
                    out.push((values[(channel * patch + row) * patch + column] - mean) / std);
                }
            }
        }
    }
    out
}

/// Mean squared error of each row.
pub(crate) fn squared_error(pred: &[f64], target: &[f64], dim: usize) -> Vec<f64> {
    let row = |(p, t): (&[f64], &[f64])| {
        p.iter().zip(t).map(|(p, t)| (p - t).powi(2)).sum::<f64>() / dim as f64
    };
    pred.chunks_exact(dim).zip(target.chunks_exact(dim)).map(row).collect()
}

pub(crate) fn softmax_cross_entropy(
    logits: &[f64],
    labels: &[i32],
    classes: usize,
    smoothing: f64,
) -> Vec<f64> {
    let row = |(x, &label): (&[f64], &i32)| {
        if label < 0 {
            return 0.0;
        }
        let p = softmax(x);
        let even: f64 = p.iter().map(|p| -p.ln()).sum::<f64>() / classes as f64;
        (1.0 - smoothing) * -p[label as usize].ln() + smoothing * even
    };
    logits.chunks_exact(classes).zip(labels).map(row).collect()
}

/// One AdamW step of PyTorch: params, first and second moments, in place.
pub(crate) fn adamw(
    settings: aim_kernels::adamw::AdamW,
    params: &mut [f64],
    grads: &[f64],
    m: &mut [f64],
    v: &mut [f64],
) {
    let t = settings.step as i32;
    for i in 0..params.len() {
        let g = grads[i] * f64::from(settings.grad_scale);
        params[i] -= settings.lr * settings.weight_decay * params[i];
        m[i] = settings.beta1 * m[i] + (1.0 - settings.beta1) * g;
        v[i] = settings.beta2 * v[i] + (1.0 - settings.beta2) * g * g;
        let m_hat = m[i] / (1.0 - settings.beta1.powi(t));
        let v_hat = v[i] / (1.0 - settings.beta2.powi(t));
        params[i] -= settings.lr * m_hat / (v_hat.sqrt() + settings.eps);
    }
}
