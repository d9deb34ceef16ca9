//! Prefix attention and attention pooling.

use aim_kernels::attention_pool::cpu::{WeightGradients, Weights};
use aim_kernels::attention_pool::{self, AttentionPool};
use aim_kernels::mean_pool::{self, MeanPool};
use aim_kernels::prefix_attention::{self, PrefixAttention};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, assert_close, assert_gradient, cases, dot, wide, written};
use crate::reference;

/// Prefixes at both ends of their range and anywhere between.
fn prefixes(random: &mut Random, batch: usize, tokens: usize) -> Vec<i32> {
    let mut prefix = || match random.below(6) {
        0 => 0,
        1 => 1,
        2 => tokens - 1,
        3 => tokens,
        _ => random.below(tokens + 1),
    };
    (0..batch).map(|_| prefix() as i32).collect()
}

struct Forward {
    out: Vec<f32>,
    lse: Vec<f32>,
}

fn forward(shape: PrefixAttention, qkv: &[f32], prefix: &[i32]) -> Forward {
    let mut scratch = vec![f32::NAN; prefix_attention::cpu::forward_scratch(shape)];
    let mut out = vec![f32::NAN; qkv.len() / 3];
    let mut lse = vec![f32::NAN; shape.batch * shape.heads * shape.tokens];
    prefix_attention::cpu::forward(shape, qkv, prefix, &mut out, &mut lse, &mut scratch);
    Forward { out, lse }
}

fn backward(
    shape: PrefixAttention,
    qkv: &[f32],
    prefix: &[i32],
    done: &Forward,
    dout: &[f32],
    dqkv: &mut [f32],
    accumulate: bool,
) {
    let Forward { out, lse } = done;
    let mut scratch = vec![f32::NAN; prefix_attention::cpu::backward_scratch(shape)];
    prefix_attention::cpu::backward(
        shape,
        qkv,
        prefix,
        out,
        lse,
        dout,
        dqkv,
        accumulate,
        &mut scratch,
    );
}

/// Queries, keys or values of a packed array.
fn part(dim: usize, packed: &[f32], part: usize) -> Vec<f32> {
    packed.chunks_exact(3 * dim).flat_map(|token| token[part * dim..][..dim].to_vec()).collect()
}

fn check_prefix_attention(shape: PrefixAttention, prefix: &[i32], random: &mut Random) {
    let qkv = random.normal(shape.batch * shape.tokens * 3 * shape.dim());
    let dout = random.normal(qkv.len() / 3);
    let done = forward(shape, &qkv, prefix);
    assert_close("out", &done.out, &reference::prefix_attention(shape, &wide(&qkv), prefix));
    let dqkv = written(random, qkv.len(), |dqkv, accumulate| {
        backward(shape, &qkv, prefix, &done, &dout, dqkv, accumulate);
    });
    // Each of the three by its own scale: dV is larger than dQ and dK, whose errors it would cover.
    for (which, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let (x, found) = (part(shape.dim(), &qkv, which), part(shape.dim(), &dqkv, which));
        let mut packed = wide(&qkv);
        assert_gradient(name, random, &x, &found, 0.01, |x| {
            for (token, x) in
                packed.chunks_exact_mut(3 * shape.dim()).zip(x.chunks_exact(shape.dim()))
            {
                token[which * shape.dim()..][..shape.dim()].copy_from_slice(x);
            }
            dot(&dout, &reference::prefix_attention(shape, &packed, prefix))
        });
    }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn prefix_attention_forward_and_gradients(
        batch in 1usize..4,
        tokens in select(vec![1usize, 2, 3, 13, 31, 64, 65]),
        heads in 1usize..4,
        head_dim in select(vec![1usize, 3, 8, 17]),
        seed in any::<u64>(),
    ) {
        let random = &mut Random::new(seed);
        let prefix = prefixes(random, batch, tokens);
        check_prefix_attention(PrefixAttention { batch, tokens, heads, head_dim }, &prefix, random);
    }

    #[test]
    fn attention_pool_forward_and_gradients(
        batch in select(vec![1usize, 2, 3, 35]),
        tokens in select(vec![1usize, 2, 7, 16, 33]),
        queries in 1usize..4,
        heads in 1usize..4,
        head_dim in select(vec![1usize, 5, 16, 19]),
        seed in any::<u64>(),
    ) {
        let shape = AttentionPool { batch, tokens, queries, heads, head_dim };
        let (random, dim) = (&mut Random::new(seed), shape.dim());
        let x = random.normal(batch * tokens * dim);
        // Scores and outputs of about one, whatever the width.
        let mut weights = |rows: usize| -> Vec<f32> {
            random.normal(rows * dim).iter().map(|v| v / (dim as f32).sqrt()).collect()
        };
        let (q, k, v) = (weights(queries), weights(dim), weights(dim));
        let dout = random.normal(batch * dim);
        let (wide_x, wide_q, wide_k, wide_v) = (wide(&x), wide(&q), wide(&k), wide(&v));
        let weights = Weights { query: &q, key: &k, value: &v };
        let (mut out, mut kept) = (vec![f32::NAN; dout.len()], vec![f32::NAN; shape.kept()]);
        let mut scratch = vec![f32::NAN; attention_pool::cpu::forward_scratch(shape)];
        attention_pool::cpu::forward(shape, &x, weights, &mut out, &mut kept, &mut scratch);
        let reference = |x: &[f64], [q, k, v]: [&[f64]; 3]| {
            let project = |w| reference::linear(x, w, dim);
            reference::attention_pool(shape, q, &project(k), &project(v))
        };
        assert_close("out", &out, &reference(&wide_x, [&wide_q, &wide_k, &wide_v]));

        let mut scratch = vec![f32::NAN; attention_pool::cpu::backward_scratch(shape)];
        let before = random.normal((queries + 2 * dim) * dim);
        let mut sum = before.clone();
        let mut first = true;
        let dx = written(random, x.len(), |dx, accumulate| {
            let (query, rest) = sum.split_at_mut(q.len());
            let (key, value) = rest.split_at_mut(k.len());
            // The second call is for x alone.
            let gradients = std::mem::take(&mut first).then_some(WeightGradients { query, key, value });
            attention_pool::cpu::backward(
                shape, &x, weights, &kept, &dout, gradients, Some((dx, accumulate)), &mut scratch,
            );
        });
        let gradients: Vec<f32> = sum.iter().zip(&before).map(|(sum, before)| sum - before).collect();
        let (dq, rest) = gradients.split_at(q.len());
        let (dk, dv) = rest.split_at(k.len());
        let loss = |x: &[f64], weights: [&[f64]; 3]| dot(&dout, &reference(x, weights));
        assert_gradient("dx", random, &x, &dx, 0.1, |x| loss(x, [&wide_q, &wide_k, &wide_v]));
        assert_gradient("dq", random, &q, dq, 0.1, |q| loss(&wide_x, [q, &wide_k, &wide_v]));
        assert_gradient("dk", random, &k, dk, 0.1, |k| loss(&wide_x, [&wide_q, k, &wide_v]));
        assert_gradient("dv", random, &v, dv, 0.0, |v| loss(&wide_x, [&wide_q, &wide_k, v]));
    }

    #[test]
    fn mean_pool_forward_and_gradient(
        (batch, tokens, dim) in (1usize..5, 1usize..40, select(vec![1usize, 3, 16, 37])),
        seed in any::<u64>(),
    ) {
        let shape = MeanPool { batch, tokens, dim };
        let random = &mut Random::new(seed);
        let (x, dy) = (random.normal(batch * tokens * dim), random.normal(batch * dim));
        let mut y = vec![f32::NAN; dy.len()];
        mean_pool::cpu::forward(shape, &x, &mut y);
        assert_close("mean_pool", &y, &reference::mean_pool(&wide(&x), tokens, dim));
        let dx = written(random, x.len(), |dx, accumulate| {
            mean_pool::cpu::backward(shape, &dy, dx, accumulate);
        });
        assert_gradient("dx", random, &x, &dx, 0.0, |x| dot(&dy, &reference::mean_pool(x, tokens, dim)));
    }
}

/// Three tiles of queries, so that products accumulate and each tile sees another number of keys.
#[test]
fn prefix_attention_over_several_tiles() {
    let random = &mut Random::new(3);
    let shape = PrefixAttention { batch: 4, tokens: 131, heads: 1, head_dim: 5 };
    check_prefix_attention(shape, &[0, 1, 130, 131], random);
    let shape = PrefixAttention { batch: 3, tokens: 150, heads: 2, head_dim: 4 };
    check_prefix_attention(shape, &[63, 64, 100], random);
}

/// More (image, head) pairs than stretches of scratch, which then serve several pairs each.
#[test]
fn prefix_attention_over_many_heads() {
    let random = &mut Random::new(4);
    let shape = PrefixAttention { batch: 23, tokens: 5, heads: 3, head_dim: 2 };
    let prefix = prefixes(random, 23, 5);
    check_prefix_attention(shape, &prefix, random);
}

/// What no query of a tile sees is not computed: NaN there does not reach the tile's outputs and gradients.
#[test]
fn keys_behind_the_mask_are_never_touched() {
    const TILE: usize = 64;
    let shape = PrefixAttention { batch: 1, tokens: 200, heads: 2, head_dim: 8 };
    let dim = shape.dim();
    let random = &mut Random::new(5);
    for (prefix, poisoned) in
        [(0, 64), (1, 199), (64, 64), (70, 70), (70, 128), (130, 130), (150, 192)]
    {
        let mut qkv = random.normal(shape.tokens * 3 * dim);
        let dout = random.normal(shape.tokens * dim);
        for token in poisoned..shape.tokens {
            qkv[(token * 3 + 1) * dim..][..2 * dim].fill(f32::NAN);
        }
        let done = forward(shape, &qkv, &[prefix]);
        let mut dqkv = vec![0.0; qkv.len()];
        backward(shape, &qkv, &[prefix], &done, &dout, &mut dqkv, false);
        // Tiles all of whose queries, and the prefix, end before the poison.
        let clean = poisoned / TILE * TILE;
        assert!(prefix as usize <= poisoned);
        assert!(done.out[..clean * dim].iter().all(|v| v.is_finite()), "{prefix}, {poisoned}: out");
        let dq = part(dim, &dqkv, 0);
        assert!(dq[..clean * dim].iter().all(|v| v.is_finite()), "{prefix}, {poisoned}: dq");
        // And the poison is real: who sees it shows it.
        assert!(done.out[poisoned * dim..].iter().all(|v| v.is_nan()), "{prefix}, {poisoned}");
    }
}
