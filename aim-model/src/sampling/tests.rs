use super::*;
use crate::config::{AimConfig, ImageSize};
use crate::init;
use aim_tensor::Philox;

const OPEN: [(f32, f32); 3] = [(f32::NEG_INFINITY, f32::INFINITY); 3];

/// 3 rows and 4 columns of patches.
fn model(target: Target) -> (PretrainModel, Parameters) {
    let config = AimConfig {
        img_size: ImageSize { height: 12, width: 16 },
        patch_size: 4,
        embed_dim: 32,
        num_blocks: 2,
        num_heads: 2,
        head_width: 32,
        head_depth: 1,
        ..AimConfig::default()
    };
    let model = PretrainModel::new(&config, target).unwrap();
    let mut params = Parameters::without_gradients(model.layout().clone()).unwrap();
    init::initialize(&mut params, 3);
    (model, params)
}

fn images(batch: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; batch * 3 * 12 * 16];
    Philox::new(seed, "images").fill_normal(1.0, &mut values);
    values
}

/// What the model predicts for every patch behind the prefix from the patches that stand before it.
fn teacher_forced(
    model: &PretrainModel,
    params: &Parameters,
    images: &[f32],
    batch: usize,
    prefix: usize,
) -> Vec<f32> {
    let kind = ImageBatch { batch, height: 12, width: 16, format: PixelFormat::F32 };
    let selection = Selection::next_patch(&vec![prefix as i32; batch], 12);
    let rows = selection.rows.len();
    let mut step = PretrainStep::new(model, kind, rows, PlanOptions::default()).unwrap();
    step.forward(params, Pixels::F32(images), &selection).unwrap();
    step.predictions().unwrap().into_owned()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_sampled_image_predicts_itself() {
    // Whoever runs the model on the finished image gets, for every patch, what was sampled: each was predicted from
    // the patches before it, the sampled ones among them, and from nothing else.
    for (target, statistics, prefix) in [
        (Target::NormalizedPixels, Statistics::Neighbour, 5),
        (Target::NormalizedPixels, Statistics::True, 1),
        (Target::RawPixels, Statistics::True, 8),
    ] {
        let (model, params) = model(target);
        let truth = images(2, 1);
        let sampling = Sampling { prefix, statistics, bounds: OPEN };
        let sampled = sample(&model, &params, &truth, sampling, &mut |_| {}).unwrap();
        let again = teacher_forced(&model, &params, &sampled.images, 2, prefix);
        let off = difference(&again, &sampled.predictions);
        assert!(off < 1e-5, "{target:?} {statistics:?}: {off}");
        // The first patch is predicted from true ones only.
        let forced = teacher_forced(&model, &params, &truth, 2, prefix);
        let (stride, len) = ((12 - prefix) * 48, 48);
        for image in 0..2 {
            let first = image * stride..image * stride + len;
            assert!(difference(&forced[first.clone()], &sampled.predictions[first]) < 1e-6);
        }
        assert!(difference(&forced, &sampled.predictions) > 1e-3, "later ones are not");
        let same = sample(&model, &params, &truth, sampling, &mut |_| {}).unwrap();
        assert_eq!(same, sampled);
    }
}

#[test]
fn nothing_behind_the_prefix_is_looked_at() {
    let (model, params) = model(Target::NormalizedPixels);
    let truth = images(1, 1);
    let grid = Grid::new(12, 16, 4);
    let mut other = images(1, 2);
    for patch in 0..5 {
        for i in 0..48 {
            other[grid.at(patch, i)] = truth[grid.at(patch, i)];
        }
    }
    let run = |images: &[f32], statistics| {
        let sampling = Sampling { prefix: 5, statistics, bounds: OPEN };
        sample(&model, &params, images, sampling, &mut |_| {}).unwrap()
    };
    assert_eq!(run(&truth, Statistics::Neighbour), run(&other, Statistics::Neighbour));
    // The true patches' statistics are looked at when they are asked for.
    assert_ne!(run(&truth, Statistics::True).images, run(&other, Statistics::True).images);
}

#[test]
fn statistics_are_those_asked_for_and_pixels_stay_in_bounds() {
    let (model, params) = model(Target::NormalizedPixels);
    let truth = images(1, 4);
    let grid = Grid::new(12, 16, 4);
    let bounds = [(-0.5, 0.5), (-1.0, 1.0), (0.0, 2.0)];
    let sampling = Sampling { prefix: 6, statistics: Statistics::True, bounds: OPEN };
    let free = sample(&model, &params, &truth, sampling, &mut |_| {}).unwrap();
    for patch in 6..12 {
        let (mean, std) = grid.statistics(&truth, patch);
        let values = &free.predictions[(patch - 6) * 48..][..48];
        for (i, &value) in values.iter().enumerate() {
            let expected = f64::from(value) * std + mean;
            assert!((f64::from(free.images[grid.at(patch, i)]) - expected).abs() < 1e-5);
        }
    }
    let held = sample(&model, &params, &truth, Sampling { bounds, ..sampling }, &mut |_| {});
    let held = held.unwrap();
    for patch in 6..12 {
        for i in 0..48 {
            let (low, high) = bounds[i % 3];
            assert!((low..=high).contains(&held.images[grid.at(patch, i)]));
        }
    }
    let mut calls = Vec::new();
    sample(&model, &params, &truth, sampling, &mut |done| calls.push(done)).unwrap();
    assert_eq!(calls, [1, 2, 3, 4, 5, 6]);
    for prefix in [0, 12] {
        let wrong = Sampling { prefix, ..sampling };
        assert!(sample(&model, &params, &truth, wrong, &mut |_| {}).is_err());
    }
    assert!(sample(&model, &params, &truth[1..], sampling, &mut |_| {}).is_err());
}
