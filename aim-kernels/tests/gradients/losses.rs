//! Patch loss and cross-entropy.

use aim_kernels::patch_loss::{self, PatchLoss};
use aim_kernels::softmax_cross_entropy::{self, SoftmaxCrossEntropy};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, assert_close, assert_gradient, cases, wide, written};
use crate::reference;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn patch_loss_forward_and_gradient(
        rows in select(vec![1usize, 2, 17, 50]),
        patch in select(vec![1usize, 2, 3, 5, 14]),
        normalize in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = PatchLoss { rows, patch, normalize };
        let dim = shape.dim();
        let random = &mut Random::new(seed);
        let (pred, patches) = (random.normal(rows * dim), random.normal((rows + 3) * dim));
        let targets = random.indices(rows, rows + 3, None);
        let wanted = reference::patch_targets(&wide(&patches), &targets, patch, normalize);
        let forward = |pred: &[f64]| reference::squared_error(pred, &wanted, dim);

        let mut found = vec![f32::NAN; wanted.len()];
        patch_loss::cpu::write_targets(shape, &patches, &targets, &mut found);
        assert_close("targets", &found, &wanted);
        let mut loss = vec![f32::NAN; rows];
        patch_loss::cpu::forward(shape, &pred, &patches, &targets, &mut loss);
        assert_close("loss", &loss, &forward(&wide(&pred)));

        let scale = 1.0 / rows as f32;
        let dpred = written(random, pred.len(), |dpred, accumulate| {
            patch_loss::cpu::backward(shape, &pred, &patches, &targets, scale, dpred, accumulate);
        });
        assert_gradient("dpred", random, &pred, &dpred, 0.0, |pred| {
            f64::from(scale) * forward(pred).iter().sum::<f64>()
        });
    }

    #[test]
    fn softmax_cross_entropy_forward_and_gradient(
        rows in select(vec![1usize, 2, 17, 50]),
        classes in select(vec![1usize, 2, 10, 37, 130]),
        label_smoothing in select(vec![0f32, 0.1]),
        seed in any::<u64>(),
    ) {
        let shape = SoftmaxCrossEntropy { rows, classes, label_smoothing };
        let random = &mut Random::new(seed);
        let logits: Vec<f32> = random.normal(rows * classes).iter().map(|v| 4.0 * v).collect();
        let labels = random.indices(rows, classes, Some(-1));
        let forward = |logits: &[f64]| {
            reference::softmax_cross_entropy(logits, &labels, classes, f64::from(label_smoothing))
        };
        let mut loss = vec![f32::NAN; rows];
        softmax_cross_entropy::cpu::forward(shape, &logits, &labels, &mut loss);
        assert_close("loss", &loss, &forward(&wide(&logits)));

        let scale = 1.0 / rows as f32;
        let dlogits = written(random, logits.len(), |dlogits, accumulate| {
            softmax_cross_entropy::cpu::backward(shape, &logits, &labels, scale, dlogits, accumulate);
        });
        assert_gradient("dlogits", random, &logits, &dlogits, 0.01, |logits| {
            f64::from(scale) * forward(logits).iter().sum::<f64>()
        });
    }

    #[test]
    fn soft_targets_forward_and_gradient(
        rows in select(vec![1usize, 2, 17, 50]),
        classes in select(vec![1usize, 2, 10, 37, 130]),
        seed in any::<u64>(),
    ) {
        let shape = SoftmaxCrossEntropy { rows, classes, label_smoothing: 0.0 };
        let random = &mut Random::new(seed);
        let logits: Vec<f32> = random.normal(rows * classes).iter().map(|v| 4.0 * v).collect();
        let mut targets: Vec<f32> =
            random.normal(rows * classes).iter().map(|v| v.abs()).collect();
        for row in targets.chunks_exact_mut(classes) {
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|t| *t /= sum);
        }
        let soft = wide(&targets);
        let forward = |logits: &[f64]| -> Vec<f64> {
            let rows = logits.chunks_exact(classes).zip(soft.chunks_exact(classes));
            rows.map(|(x, t)| {
                let top = x.iter().copied().fold(f64::MIN, f64::max);
                let log_sum = x.iter().map(|x| (x - top).exp()).sum::<f64>().ln() + top;
                x.iter().zip(t).map(|(x, t)| t * (log_sum - x)).sum()
            })
            .collect()
        };
        let mut loss = vec![f32::NAN; rows];
        softmax_cross_entropy::cpu::forward_soft(shape, &logits, &targets, &mut loss);
        assert_close("loss", &loss, &forward(&wide(&logits)));

        let scale = 1.0 / rows as f32;
        let dlogits = written(random, logits.len(), |dlogits, accumulate| {
            softmax_cross_entropy::cpu::backward_soft(shape, &logits, &targets, scale, dlogits, accumulate);
        });
        assert_gradient("dlogits", random, &logits, &dlogits, 0.01, |logits| {
            f64::from(scale) * forward(logits).iter().sum::<f64>()
        });
    }
}
