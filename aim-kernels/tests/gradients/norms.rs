//! Layer norm and batch norm.

use aim_kernels::batch_norm::{self, BatchNorm};
use aim_kernels::layer_norm::{self, LayerNorm};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{
    Random, added, assert_close, assert_gradient, cases, dot, largest, wide, written,
};
use crate::reference;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn layer_norm_forward_and_gradients(
        rows in select(vec![1usize, 2, 13, 33, 600]),
        dim in select(vec![1usize, 2, 3, 17, 48, 131]),
        eps in select(vec![1e-6f32, 1e-2]),
        seed in any::<u64>(),
    ) {
        let shape = LayerNorm { rows, dim, eps };
        let random = &mut Random::new(seed);
        let x = random.normal(rows * dim);
        let (w, b, dy) = (random.normal(dim), random.normal(dim), random.normal(rows * dim));
        let (wx, ww, wb) = (wide(&x), wide(&w), wide(&b));
        let forward = |x: &[f64], w: &[f64], b: &[f64]| reference::layer_norm(x, w, b, f64::from(eps));

        let (mut mean, mut rstd) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
        let mut y = vec![f32::NAN; x.len()];
        layer_norm::cpu::forward(shape, &x, &w, &b, &mut y, &mut mean, &mut rstd);
        assert_close("layer_norm", &y, &forward(&wx, &ww, &wb));

        let mut scratch = vec![f32::NAN; layer_norm::cpu::backward_scratch(rows, dim)];
        let mut backward = |dx: Option<(&mut [f32], bool)>, parameters: Option<(&mut [f32], &mut [f32])>| {
            let gradients = layer_norm::cpu::Gradients { dx, parameters };
            layer_norm::cpu::backward(shape, &x, &w, &mean, &rstd, &dy, gradients, &mut scratch);
        };
        let mut db = Vec::new();
        let dw = added(random, dim, |dw| {
            db = added(&mut Random::new(seed), dim, |db| backward(None, Some((dw, db))));
        });
        let dx = written(random, x.len(), |dx, accumulate| backward(Some((dx, accumulate)), None));
        let terms = largest(rstd.iter().map(|&r| f64::from(r)));
        assert_gradient("dx", random, &x, &dx, terms, |x| dot(&dy, &forward(x, &ww, &wb)));
        assert_gradient("dweight", random, &w, &dw, 1.0, |w| dot(&dy, &forward(&wx, w, &wb)));
        assert_gradient("dbias", random, &b, &db, 1.0, |b| dot(&dy, &forward(&wx, &ww, b)));
    }

    #[test]
    fn batch_norm_forward_and_gradient(
        rows in select(vec![2usize, 3, 17, 130]),
        dim in select(vec![1usize, 3, 32, 37, 97]),
        offset in select(vec![0f32, 100.0]),
        seed in any::<u64>(),
    ) {
        let shape = BatchNorm { rows, dim, eps: 1e-6 };
        let random = &mut Random::new(seed);
        let x: Vec<f32> = random.normal(rows * dim).iter().map(|v| v + offset).collect();
        let dy = random.normal(x.len());
        let (mut mean, mut rstd) = (vec![f32::NAN; dim], vec![f32::NAN; dim]);
        let mut y = vec![f32::NAN; x.len()];
        batch_norm::cpu::forward_training(shape, &x, &mut y, &mut mean, &mut rstd, None);
        // The mean is stored in f32: that rounding, in units of the column's spread, is in every value.
        let stored = f64::from(offset) * 6e-8 * largest(wide(&rstd));
        let expected = reference::batch_norm(&wide(&x), dim, 1e-6);
        for (y, expected) in y.iter().zip(&expected) {
            prop_assert!((f64::from(*y) - expected).abs() < 2e-5 + stored, "{y}, not {expected}");
        }

        let dx = written(random, x.len(), |dx, accumulate| {
            batch_norm::cpu::backward(shape, &x, &mean, &rstd, &dy, dx, accumulate);
        });
        let terms = largest(wide(&rstd)) * (1.0 + stored * 1e4);
        assert_gradient("dx", random, &x, &dx, terms, |x| {
            dot(&dy, &reference::batch_norm(x, dim, 1e-6))
        });
    }
}
