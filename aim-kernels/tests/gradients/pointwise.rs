//! Linear, GELU and the element-wise sums.

use aim_kernels::linear::{self, Linear};
use aim_kernels::{elementwise, gelu};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, added, assert_close, assert_gradient, cases, dot, wide, written};
use crate::reference;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn linear_forward_and_gradients(
        rows in select(vec![1usize, 2, 3, 17, 64, 131]),
        inputs in select(vec![1usize, 3, 7, 48, 129]),
        outputs in select(vec![1usize, 2, 5, 31, 130]),
        (with_bias, with_residual) in any::<(bool, bool)>(),
        seed in any::<u64>(),
    ) {
        let shape = Linear { rows, inputs, outputs };
        let random = &mut Random::new(seed);
        let (x, w) = (random.normal(rows * inputs), random.normal(outputs * inputs));
        let (b, r) = (random.normal(outputs), random.normal(rows * outputs));
        let dy = random.normal(rows * outputs);
        let forward = |x: &[f64], w: &[f64], b: &[f64], r: &[f64]| {
            let mut y = reference::linear(x, w, inputs);
            if with_bias {
                y = reference::add_row(&y, b);
            }
            if with_residual {
                y.iter_mut().zip(r).for_each(|(y, r)| *y += r);
            }
            y
        };
        let (wx, ww, wb, wr) = (wide(&x), wide(&w), wide(&b), wide(&r));

        let mut y = vec![f32::NAN; dy.len()];
        let (bias, residual) = (with_bias.then_some(&b[..]), with_residual.then_some(&r[..]));
        linear::cpu::forward(shape, &x, &w, bias, residual, &mut y);
        assert_close("linear", &y, &forward(&wx, &ww, &wb, &wr));

        let dx = written(random, x.len(), |dx, accumulate| {
            linear::cpu::backward_input(shape, &dy, &w, dx, accumulate);
        });
        assert_gradient("dx", random, &x, &dx, 0.0, |x| dot(&dy, &forward(x, &ww, &wb, &wr)));
        let dw = added(random, w.len(), |dw| linear::cpu::backward_weight(shape, &dy, &x, dw));
        assert_gradient("dweight", random, &w, &dw, 0.0, |w| dot(&dy, &forward(&wx, w, &wb, &wr)));
        if with_bias {
            let db = added(random, b.len(), |db| linear::cpu::backward_bias(shape, &dy, db));
            assert_gradient("dbias", random, &b, &db, 0.0, |b| dot(&dy, &forward(&wx, &ww, b, &wr)));
        }
        if with_residual {
            // The caller passes dy on.
            assert_gradient("dresidual", random, &r, &dy, 0.0, |r| dot(&dy, &forward(&wx, &ww, &wb, r)));
        }
    }

    #[test]
    fn gelu_forward_and_gradient(len in select(vec![1usize, 15, 16, 33, 20_001]), seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        // Three times as wide as normal values, to reach both tails.
        let x: Vec<f32> = random.normal(len).iter().map(|v| 3.0 * v).collect();
        let dy = random.normal(len);
        let mut y = vec![f32::NAN; len];
        gelu::cpu::forward(&x, &mut y);
        // The distribution function is good to 1e-7 absolute, and is multiplied by x.
        for ((x, y), expected) in x.iter().zip(&y).zip(reference::gelu(&wide(&x))) {
            let off = (f64::from(*y) - expected).abs();
            prop_assert!(off < 3e-7 * f64::from(x.abs().max(1.0)), "gelu({x}) is {y}, not {expected}");
        }
        let dx = written(random, len, |dx, accumulate| gelu::cpu::backward(&x, &dy, dx, accumulate));
        // One by one, each by its own scale; the last argument is the size of the derivative's terms.
        for _ in 0..64.min(len) {
            let i = random.below(len);
            assert_gradient("dx", random, &x[i..=i], &dx[i..=i], f64::from(dy[i]), |x| {
                dot(&dy[i..=i], &reference::gelu(x))
            });
        }
    }

    #[test]
    fn sums_and_their_gradients(len in select(vec![1usize, 5, 16, 8193]), count in 1usize..5, seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        let inputs: Vec<Vec<f32>> = (0..count).map(|_| random.normal(len)).collect();
        let (a, b) = (&inputs[0], &inputs[count - 1]);
        let mut y = vec![f32::NAN; len];
        elementwise::cpu::add(a, b, &mut y);
        prop_assert!((0..len).all(|i| y[i] == a[i] + b[i]));
        elementwise::cpu::accumulate(a, &mut y);
        prop_assert!((0..len).all(|i| y[i] == a[i] + b[i] + a[i]));

        let slices: Vec<&[f32]> = inputs.iter().map(|x| &x[..]).collect();
        elementwise::cpu::average(&slices, &mut y);
        let average = |first: &[f64]| -> Vec<f64> {
            let rest = |i: usize| inputs[1..].iter().map(|x| f64::from(x[i])).sum::<f64>();
            (0..len).map(|i| (first[i] + rest(i)) / count as f64).collect()
        };
        assert_close("average", &y, &average(&wide(a)));
        let dy = random.normal(len);
        let dx = written(random, len, |dx, accumulate| {
            elementwise::cpu::scale(&dy, 1.0 / count as f32, dx, accumulate);
        });
        assert_gradient("daverage", random, a, &dx, 0.0, |x| dot(&dy, &average(x)));
    }
}
