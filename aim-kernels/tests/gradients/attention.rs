//! Prefix attention and attention pooling.

use aim_kernels::attention_pool::{self, AttentionPool};
use aim_kernels::mean_pool::{self, MeanPool};
use aim_kernels::prefix_attention::{self, PrefixAttention};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, added, assert_close, assert_gradient, cases, dot, wide, written};
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
        let random = &mut Random::new(seed);
        let q = random.normal(queries * shape.dim());
        let (k, v) = (random.normal(batch * tokens * shape.dim()), random.normal(batch * tokens * shape.dim()));
        let dout = random.normal(batch * shape.dim());
        let (wq, wk, wv) = (wide(&q), wide(&k), wide(&v));
        let (mut out, mut p) = (vec![f32::NAN; dout.len()], vec![f32::NAN; batch * shape.scores()]);
        attention_pool::cpu::forward(shape, &q, &k, &v, &mut out, &mut p);
        assert_close("out", &out, &reference::attention_pool(shape, &wq, &wk, &wv));

        let mut scratch = vec![f32::NAN; attention_pool::cpu::backward_scratch(shape)];
        let mut dq = Vec::new();
        // dk and dv side by side, since one flag says whether both accumulate.
        let both = written(random, 2 * k.len(), |both, accumulate| {
            let (dk, dv) = both.split_at_mut(k.len());
            dq = added(&mut Random::new(seed), q.len(), |dq| {
                attention_pool::cpu::backward(
                    shape, &q, &k, &v, &p, &dout, dq, dk, dv, accumulate, &mut scratch,
                );
            });
        });
        let (dk, dv) = both.split_at(k.len());
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&dout, &reference::attention_pool(shape, q, k, v));
        assert_gradient("dq", random, &q, &dq, 0.1, |q| loss(q, &wk, &wv));
        assert_gradient("dk", random, &k, dk, 0.01, |k| loss(&wq, k, &wv));
        assert_gradient("dv", random, &v, dv, 0.0, |v| loss(&wq, &wk, v));
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
