//! A grid of attention poolings: against a plain one after a batch norm, and each point against itself alone.

use aim_kernels::attention_pool::cpu::{WeightGradients, Weights};
use aim_kernels::attention_pool::grid::{self, Grid, Statistics};
use aim_kernels::attention_pool::{AttentionPool, Tokens};
use half::bf16;
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, assert_close, assert_gradient, cases, dot, wide};
use crate::reference;

const EPS: f32 = 1e-6;

/// Query, key and value of one point.
type Point = [Vec<f32>; 3];

struct Done {
    out: Vec<f32>,
    gradients: Vec<Point>,
}

/// The outputs and gradients of some points, with gradients that start at `before`.
fn run(shape: Grid, x: Tokens<'_>, points: &[Point], dout: &[f32], before: f32) -> Done {
    let shape = Grid { points: points.len(), ..shape };
    let dim = shape.dim();
    let (mut mean, mut rstd) = (vec![f32::NAN; dim], vec![f32::NAN; dim]);
    grid::column_statistics(x, dim, &mut mean, &mut rstd);
    rstd.iter_mut().for_each(|var| *var = 1.0 / (*var + EPS).sqrt());
    let norm = Statistics { mean: &mean, rstd: &rstd };
    let weights: Vec<_> =
        points.iter().map(|[query, key, value]| Weights { query, key, value }).collect();
    let mut out = vec![f32::NAN; points.len() * shape.batch * dim];
    let mut kept = vec![f32::NAN; shape.kept()];
    grid::forward(shape, x, norm, &weights, &mut out, &mut kept);
    let mut sums: Vec<Point> =
        points.iter().map(|point| point.each_ref().map(|w| vec![before; w.len()])).collect();
    let mut gradients: Vec<_> =
        sums.iter_mut().map(|[query, key, value]| WeightGradients { query, key, value }).collect();
    let mut scratch = vec![f32::NAN; shape.backward_scratch()];
    grid::backward(shape, x, norm, &weights, &kept, dout, &mut gradients, &mut scratch);
    Done { out, gradients: sums }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn a_grid_is_its_points(
        batch in select(vec![2usize, 3, 21, 35]),
        tokens in select(vec![2usize, 7, 16, 33]),
        points in 1usize..5,
        heads in 1usize..5,
        head_dim in select(vec![1usize, 5, 16, 19]),
        // How far the features are from zero, in standard deviations.
        offset in select(vec![0.0f32, 3.0, 30.0]),
        seed in any::<u64>(),
    ) {
        let shape = Grid { points, batch, tokens, heads, head_dim };
        let (random, dim) = (&mut Random::new(seed), shape.dim());
        let offsets = random.normal(dim);
        let mut x = random.normal(batch * tokens * dim);
        for row in x.chunks_exact_mut(dim) {
            row.iter_mut().zip(&offsets).for_each(|(v, o)| *v = 0.7 * *v + offset * o);
        }
        let mut weights = |rows: usize| -> Vec<f32> {
            random.normal(rows * dim).iter().map(|v| v / (dim as f32).sqrt()).collect()
        };
        let all: Vec<Point> =
            (0..points).map(|_| [weights(1), weights(dim), weights(dim)]).collect();
        let dout = random.normal(points * batch * dim);
        let images: Vec<&[f32]> = x.chunks_exact(tokens * dim).collect();
        let done = run(shape, Tokens::F32(&images), &all, &dout, 0.0);

        // Alone, a point has the same bits.
        for (i, point) in all.iter().enumerate() {
            let range = i * batch * dim..(i + 1) * batch * dim;
            let alone = run(shape, Tokens::F32(&images), std::slice::from_ref(point), &dout[range.clone()], 0.0);
            prop_assert_eq!(&alone.out[..], &done.out[range]);
            prop_assert_eq!(&alone.gradients[0], &done.gradients[i]);
        }

        // One point, its last one, against the definition.
        let last = points - 1;
        let normed = reference::batch_norm(&wide(&x), dim, f64::from(EPS));
        let one = AttentionPool { batch, tokens, queries: 1, heads, head_dim };
        let reference = |[q, k, v]: [&[f64]; 3]| {
            let project = |w| reference::linear(&normed, w, dim);
            reference::attention_pool(one, q, &project(k), &project(v))
        };
        let [q, k, v] = all[last].each_ref().map(|w| wide(w));
        let (out, dout) = (&done.out[last * batch * dim..], &dout[last * batch * dim..]);
        if offset < 30.0 {
            assert_close("out", out, &reference([&q, &k, &v]));
        } else {
            for (found, exact) in out.iter().zip(reference([&q, &k, &v])) {
                prop_assert!((f64::from(*found) - exact).abs() < 1e-4, "{} {}", found, exact);
            }
        }
        let [dq, dk, dv] = &done.gradients[last];
        let loss = |weights: [&[f64]; 3]| dot(dout, &reference(weights));
        let terms = 0.1 * f64::from(1.0 + offset);
        assert_gradient("dq", random, &all[last][0], dq, terms, |q| loss([q, &k, &v]));
        assert_gradient("dk", random, &all[last][1], dk, terms, |k| loss([&q, k, &v]));
        assert_gradient("dv", random, &all[last][2], dv, terms, |v| loss([&q, &k, v]));
    }
}

#[test]
fn gradients_accumulate_and_bf16_is_widened() {
    let shape = Grid { points: 2, batch: 19, tokens: 5, heads: 2, head_dim: 16 };
    let (random, dim) = (&mut Random::new(5), shape.dim());
    let narrow: Vec<bf16> =
        random.normal(shape.batch * shape.tokens * dim).into_iter().map(bf16::from_f32).collect();
    let x: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
    let all: Vec<Point> = (0..2)
        .map(|_| [random.normal(dim), random.normal(dim * dim), random.normal(dim * dim)])
        .collect();
    let dout = random.normal(2 * shape.batch * dim);
    let images: Vec<&[f32]> = x.chunks_exact(shape.tokens * dim).collect();
    let narrow: Vec<&[bf16]> = narrow.chunks_exact(shape.tokens * dim).collect();
    let done = run(shape, Tokens::F32(&images), &all, &dout, 0.0);
    let from_bf16 = run(shape, Tokens::Bf16(&narrow), &all, &dout, 0.0);
    assert_eq!(done.out, from_bf16.out);
    assert_eq!(done.gradients, from_bf16.gradients);
    let onto_one = run(shape, Tokens::F32(&images), &all, &dout, 1.0);
    let pairs = done
        .gradients
        .iter()
        .flatten()
        .flatten()
        .zip(onto_one.gradients.iter().flatten().flatten());
    for (alone, sum) in pairs {
        assert!(
            (sum - 1.0 - alone).abs() <= 1e-4 * (1.0 + alone.abs()),
            "{sum} is not 1 + {alone}"
        );
    }
}
