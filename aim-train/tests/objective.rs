//! The objective has no leak: what a prediction may not see, it cannot learn from.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::sync::Arc;

use aim_model::AimConfig;
use aim_model::config::ImageSize;
use aim_model::init::initialize;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_tensor::{Parameters, Philox, PlanOptions, Session};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};

const PATCH: usize = 4;
const SIDE: usize = 16;
const TOKENS: usize = (SIDE / PATCH) * (SIDE / PATCH);
const BATCH: usize = 16;

fn config() -> AimConfig {
    AimConfig {
        img_size: ImageSize::square(SIDE),
        patch_size: PATCH,
        embed_dim: 48,
        num_blocks: 2,
        num_heads: 3,
        head_width: 48,
        head_depth: 2,
        ..AimConfig::default()
    }
}

fn images(batch: usize) -> ImageBatch {
    ImageBatch { batch, height: SIDE, width: SIDE, format: PixelFormat::F32 }
}

fn parameters(model: &PretrainModel) -> Parameters {
    let mut params = Parameters::new(model.layout().clone()).unwrap();
    initialize(&mut params, 7);
    params
}

/// Mean loss of the last 20 of 200 steps on noise drawn afresh for each step. `shift` is what the objective does; with
/// 0 instead of 1 each output is scored against its own patch.
fn loss_on_noise(shift: i32) -> f64 {
    let model = PretrainModel::new(&config(), Target::NormalizedPixels).unwrap();
    let mut params = parameters(&model);
    let mut optimizer = AdamW::new(params.layout()).unwrap();
    let sampler = PrefixSampler::new(PrefixRule::Uniform, TOKENS, 0);
    let options = PlanOptions { backward: true, ..Default::default() };
    let mut step = PretrainStep::new(&model, images(BATCH), BATCH / 2 * TOKENS, options).unwrap();
    let mut pixels = vec![0.0; BATCH * 3 * SIDE * SIDE];
    let mut prefix = Vec::new();
    let mut tail = 0.0;
    for number in 0..200 {
        Philox::new(number, "noise").fill_normal(1.0, &mut pixels);
        sampler.draw(number, 0..BATCH, &mut prefix);
        let mut selection = Selection::next_patch(&prefix, TOKENS);
        selection.targets.iter_mut().for_each(|target| *target += shift - 1);
        params.zero_grads().unwrap();
        let loss =
            step.forward(&params, Pixels::F32(&pixels), &selection).unwrap() / step.rows() as f64;
        step.backward(&mut params, 1.0 / step.rows() as f32).unwrap();
        let update = Update {
            lr: 2e-3,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            step: number + 1,
            grad_scale: clip_scale(grad_norm(&params).unwrap(), 1.0),
        };
        optimizer.step(&mut params, update).unwrap();
        if number >= 180 {
            tail += loss / 20.0;
        }
    }
    tail
}

#[test]
fn noise_cannot_be_predicted() {
    // Predicting the mean scores (n - 1) / n, because targets have an unbiased variance of one.
    let n = (3 * PATCH * PATCH) as f64;
    let floor = (n - 1.0) / n - 0.005;
    let loss = loss_on_noise(1);
    println!("noise: loss {loss:.4}, floor {floor:.4}");
    assert!(
        loss >= floor,
        "loss {loss} on noise is below {floor}: the target leaks into the input"
    );
    // The planted bug must fail this very test.
    let leaking = loss_on_noise(0);
    println!("without the shift: {leaking:.4}");
    assert!(
        leaking < floor,
        "without the shift the loss on noise is {leaking}: this test cannot see a leak"
    );
}

#[test]
fn a_prediction_ignores_the_patches_after_it() {
    let model = PretrainModel::new(&config(), Target::RawPixels).unwrap();
    let mut params = parameters(&model);
    let mut pixels = vec![0.0; 3 * SIDE * SIDE];
    Philox::new(1, "image").fill_normal(1.0, &mut pixels);
    for (prefix, row) in [(1, 0), (1, 5), (4, 3), (4, 9), (9, 8), (15, 14), (6, 2)] {
        let (tape, vars) = model.record_with(images(1), 1, true).unwrap();
        let mut session =
            Session::new(tape, PlanOptions { backward: true, ..Default::default() }).unwrap();
        let positions: Vec<i32> = (0..TOKENS as i32).collect();
        session.write_f32(vars.trunk.images, &pixels).unwrap();
        session.write_i32(vars.trunk.prefix, &[prefix]).unwrap();
        session.write_i32(vars.trunk.positions, &positions).unwrap();
        session.write_i32(vars.head_positions, &[row]).unwrap();
        session.write_i32(vars.rows, &[row]).unwrap();
        session.write_i32(vars.targets, &[row + 1]).unwrap();
        session.forward(&params).unwrap();
        params.zero_grads().unwrap();
        session.backward(&mut params, 1.0).unwrap();
        let grad = session.read_grad(vars.trunk.images).unwrap();
        let visible = (row + 1).max(prefix) as usize;
        let mut seen = vec![false; TOKENS];
        for (i, &g) in grad.iter().enumerate() {
            let (y, x) = (i / SIDE % SIDE, i % SIDE);
            seen[y / PATCH * (SIDE / PATCH) + x / PATCH] |= g != 0.0;
        }
        let expected: Vec<bool> = (0..TOKENS).map(|patch| patch < visible).collect();
        assert_eq!(seen, expected, "prefix {prefix}, prediction {row}");
    }
}

#[test]
fn accumulation_equals_one_batch() {
    let model = PretrainModel::new(&config(), Target::NormalizedPixels).unwrap();
    let mut params = parameters(&model);
    let mut pixels = vec![0.0; 32 * 3 * SIDE * SIDE];
    Philox::new(2, "images").fill_normal(1.0, &mut pixels);
    let sampler = PrefixSampler::new(PrefixRule::Uniform, TOKENS, 3);
    let options = PlanOptions { backward: true, ..Default::default() };
    let mut run = |micro: usize| {
        let batch = 32 / micro;
        params.zero_grads().unwrap();
        let mut step =
            PretrainStep::new(&model, images(batch), batch / 2 * TOKENS, options).unwrap();
        let mut prefix = Vec::new();
        let mut loss = 0.0;
        for (i, pixels) in pixels.chunks_exact(batch * 3 * SIDE * SIDE).enumerate() {
            sampler.draw(0, i * batch..(i + 1) * batch, &mut prefix);
            let selection = Selection::next_patch(&prefix, TOKENS);
            loss += step.forward(&params, Pixels::F32(pixels), &selection).unwrap();
            step.backward(&mut params, 1.0 / (16 * TOKENS) as f32).unwrap();
        }
        (loss, params.grads().to_vec())
    };
    let ((whole, whole_grads), (parts, parts_grads)) = (run(1), run(4));
    assert!((whole - parts).abs() < 1e-6 * whole, "{whole} {parts}");
    let largest = whole_grads.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
    let off =
        whole_grads.iter().zip(&parts_grads).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    println!(
        "4 x 8 against 1 x 32: loss {:.1e}, gradients {:.1e}",
        (whole - parts).abs() / whole,
        off / largest
    );
    assert!(off < 1e-6 * largest, "gradients differ by {} of the largest", off / largest);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let model = PretrainModel::new(&config(), Target::NormalizedPixels).unwrap();
    let mut params = parameters(&model);
    let mut pixels = vec![0.0; BATCH * 3 * SIDE * SIDE];
    Philox::new(4, "images").fill_normal(1.0, &mut pixels);
    let prefix: Vec<i32> = (0..BATCH as i32).map(|i| 1 + i % (TOKENS as i32 - 1)).collect();
    let selection = Selection::next_patch(&prefix, TOKENS);
    let options = PlanOptions { backward: true, ..Default::default() };
    let mut first: Option<(f64, Arc<[f32]>)> = None;
    for threads in [1, 2, 3, 5, 8] {
        aim_kernels::cpu::pool::set_num_threads(threads);
        let mut step =
            PretrainStep::new(&model, images(BATCH), selection.rows.len(), options).unwrap();
        params.zero_grads().unwrap();
        let loss = step.forward(&params, Pixels::F32(&pixels), &selection).unwrap();
        step.backward(&mut params, 1.0).unwrap();
        let found = (loss, Arc::from(params.grads()));
        let expected = first.get_or_insert_with(|| found.clone());
        assert_eq!(&found, expected, "{threads} threads");
    }
    aim_kernels::cpu::pool::set_num_threads(2);
}
