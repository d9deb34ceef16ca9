//! The low-rank addend of a linear layer.

use std::ops::Range;

use aim_kernels::low_rank::{self, LowRank};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, added, assert_close, assert_gradient, cases, dot, wide, written};

/// `y + u_i B_i^T` in the columns of each range.
fn forward(shape: LowRank<'_>, y: &[f64], u: &[f64], b: &[f64]) -> Vec<f64> {
    let LowRank { rows, rank, outputs, segments } = shape;
    let mut y = y.to_vec();
    for row in 0..rows {
        let mut block = 0;
        for (index, segment) in segments.iter().enumerate() {
            for column in segment.clone() {
                for r in 0..rank {
                    y[row * outputs + column] += u[row * rank * segments.len() + index * rank + r]
                        * b[(block + column - segment.start) * rank + r];
                }
            }
            block += segment.len();
        }
    }
    y
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn low_rank_forward_and_gradients(
        rows in select(vec![1usize, 2, 17, 128, 131, 300]),
        rank in select(vec![1usize, 3, 8]),
        (outputs, segments) in select(vec![
            (5usize, vec![(0, 5)]),
            (12, vec![(0, 4), (8, 12)]),
            (12, vec![(4, 8)]),
            (30, vec![(0, 10), (10, 20), (20, 30)]),
            (9, vec![(1, 2), (4, 9)]),
        ]),
        seed in any::<u64>(),
    ) {
        let segments: Vec<Range<usize>> = segments.into_iter().map(|(from, to)| from..to).collect();
        let shape = LowRank { rows, rank, outputs, segments: &segments };
        let random = &mut Random::new(seed);
        let (before, u) = (random.normal(rows * outputs), random.normal(rows * shape.width()));
        let (b, dy) = (random.normal(shape.covered() * rank), random.normal(rows * outputs));
        let (wy, wu, wb) = (wide(&before), wide(&u), wide(&b));

        let mut y = before.clone();
        low_rank::cpu::add(shape, &u, &b, &mut y);
        assert_close("y", &y, &forward(shape, &wy, &wu, &wb));
        for (i, (y, before)) in y.iter().zip(&before).enumerate() {
            let column = i % outputs;
            if !segments.iter().any(|segment| segment.contains(&column)) {
                assert_eq!(y.to_bits(), before.to_bits(), "column {column} was touched");
            }
        }
        let du = written(random, u.len(), |du, accumulate| {
            low_rank::cpu::backward_input(shape, &dy, &b, du, accumulate);
        });
        assert_gradient("du", random, &u, &du, 0.0, |u| dot(&dy, &forward(shape, &wy, u, &wb)));
        let db = added(random, b.len(), |db| low_rank::cpu::backward_weight(shape, &dy, &u, db));
        assert_gradient("dB", random, &b, &db, 0.0, |b| dot(&dy, &forward(shape, &wy, &wu, b)));
    }
}
