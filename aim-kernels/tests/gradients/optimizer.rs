//! AdamW against its formula in f64.

use aim_kernels::adamw::{self, AdamW};

use crate::check::{Random, assert_close, wide};
use crate::reference;

#[test]
fn adamw_follows_its_formula_over_steps() {
    for (len, weight_decay, eps) in [(1, 0.05, 1e-8), (40_001, 0.0, 1e-8), (40_001, 0.05, 1e-3)] {
        let random = &mut Random::new(6);
        let mut params = random.normal(len);
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let (mut p64, mut m64, mut v64) = (wide(&params), wide(&m), wide(&v));
        let start = params.clone();
        for step in 1..=8 {
            let grads: Vec<f32> = random.normal(len).iter().map(|g| 1e-3 * g).collect();
            let settings = AdamW {
                lr: 1e-2 / step as f64,
                beta1: 0.9,
                beta2: 0.95,
                eps,
                weight_decay,
                step,
                grad_scale: 0.3,
            };
            adamw::cpu::step(settings, &mut params, &grads, &mut m, &mut v);
            reference::adamw(settings, &mut p64, &wide(&grads), &mut m64, &mut v64);
            assert_close("m", &m, &m64);
            assert_close("v", &v, &v64);
            // The way gone and not the place, which would hide a wrong step behind the parameter's size. Eight steps
            // of f32 parameters of size 1 to 4 round by up to 8 * 2.4e-7.
            for i in 0..len {
                let (found, expected) = (params[i] - start[i], p64[i] - f64::from(start[i]));
                let off = (f64::from(found) - expected).abs();
                assert!(off < 2.5e-6, "step {step}: parameter {i} went {found}, not {expected}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "steps count from 1")]
fn adamw_refuses_step_zero() {
    let settings = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 0,
        grad_scale: 1.0,
    };
    adamw::cpu::step(settings, &mut [0.0], &[0.0], &mut [0.0], &mut [0.0]);
}
