//! Training a grid of classifiers on frozen features, in one pass over them.

use aim_data::sampler::Permutation;
use aim_kernels::attention_pool::Tokens;
use aim_model::classifier::{GridStep, Probe};
use aim_tensor::Parameters;

use super::accuracy::{Accuracy, Answers};
use super::features::Features;
use crate::error::TrainError;
use crate::optimizer::{AdamW, Update, clip_scale, grad_norm};
use crate::schedule::WARMUP_START;
use crate::signals::Stop;

/// Settings of a probe's training. The default is a quick one with a single point; [`ProbeTraining::paper`] is the
/// published protocol.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ProbeTraining {
    /// Passes over the training set.
    pub epochs: usize,
    /// Passes over which the learning rate rises from nearly nothing.
    pub warmup_epochs: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// Peak learning rates of the grid; each falls to `min_lr` along a half cosine.
    pub lrs: Vec<f64>,
    /// Last learning rate.
    pub min_lr: f64,
    /// Decoupled weight decays of the grid, for matrices.
    pub weight_decays: Vec<f64>,
    /// Decay rates of AdamW's two moments.
    pub betas: [f64; 2],
    /// Largest gradient norm of a point.
    pub clip: f64,
    /// Decides initial values and order.
    pub seed: u64,
}

impl Default for ProbeTraining {
    fn default() -> Self {
        Self {
            epochs: 20,
            warmup_epochs: 0,
            batch_size: 256,
            lrs: vec![1e-3],
            min_lr: 1e-5,
            weight_decays: vec![0.1],
            betas: [0.9, 0.999],
            clip: 3.0,
            seed: 0,
        }
    }
}

/// From how many images on a set is taken for one of ImageNet's size, which has recipes of its own.
const IMAGENET_IMAGES: usize = 1_000_000;

impl ProbeTraining {
    /// The paper's attentive probe (its appendix, with AIMv2's published grid of decays): 14 points, 100 epochs, batch
    /// 512, or 1024 with 5 epochs of warm-up for a set of a million images or more.
    pub fn paper(train_images: usize) -> Self {
        let imagenet = train_images >= IMAGENET_IMAGES;
        Self {
            epochs: 100,
            warmup_epochs: if imagenet { 5 } else { 0 },
            batch_size: if imagenet { 1024 } else { 512 },
            lrs: vec![1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3],
            weight_decays: vec![0.05, 0.1],
            ..Self::default()
        }
    }

    /// The points of the grid: every learning rate with every weight decay.
    pub fn points(&self) -> Vec<Point> {
        self.lrs
            .iter()
            .flat_map(|&lr| {
                self.weight_decays.iter().map(move |&weight_decay| Point { lr, weight_decay })
            })
            .collect()
    }

    /// The learning rate of an update, counted from 0, of `total` ones: linear, then half a cosine.
    fn lr_at(&self, peak: f64, update: u64, total: u64) -> f64 {
        let done = update as f64 / total.max(1) as f64;
        let warmup = self.warmup_epochs.min(self.epochs) as f64 / self.epochs.max(1) as f64;
        if done < warmup {
            return WARMUP_START + (peak - WARMUP_START) * (done / warmup);
        }
        let rest = 1.0 - warmup;
        let t = if rest > 0.0 { (done - warmup) / rest } else { 1.0 };
        self.min_lr + (peak - self.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
    }
}

/// A point of the grid.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Point {
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// A classifier that came out of a grid.
pub struct Trained {
    /// Where in the grid.
    pub point: Point,
    /// Its parameters.
    pub params: Parameters,
    /// The update, counted from 1, at which its loss or gradient was no finite number: it was left as it was before.
    pub diverged_at: Option<u64>,
}

/// A grid of classifiers while they are trained, batch by batch.
///
/// All begin with the same parameters. Each has its own gradient norm, clipping and moments, and gets the same bits as
/// if it were the only one.
pub struct GridTrainer {
    settings: ProbeTraining,
    probe: Probe,
    step: GridStep,
    params: Vec<Parameters>,
    optimizers: Vec<AdamW>,
    points: Vec<Point>,
    diverged_at: Vec<Option<u64>>,
    update: u64,
    total: u64,
}

impl GridTrainer {
    /// Fresh classifiers on features of `tokens` tokens, for `total` updates.
    ///
    /// # Errors
    /// When memory is short, or the grid has no point.
    pub fn new(
        probe: &Probe,
        tokens: usize,
        settings: &ProbeTraining,
        total: u64,
    ) -> Result<Self, TrainError> {
        let points = settings.points();
        if points.is_empty() {
            return Err(TrainError::Unsupported {
                what: "a grid without points",
                instead: "give at least one learning rate and one weight decay",
            });
        }
        let params = points.iter().map(|_| probe.init(settings.seed)).collect::<Result<_, _>>()?;
        let optimizers =
            points.iter().map(|_| AdamW::new(probe.layout())).collect::<Result<_, _>>()?;
        let (step, diverged_at) = (GridStep::new(probe, tokens)?, vec![None; points.len()]);
        let (settings, probe) = (settings.clone(), probe.clone());
        Ok(Self {
            settings,
            probe,
            step,
            params,
            optimizers,
            points,
            diverged_at,
            update: 0,
            total,
        })
    }

    /// One update of every point; returns the smallest mean loss.
    ///
    /// # Errors
    /// When features do not fit or a label is too large, or [`TrainError::NonFinite`] when no point is left.
    pub fn step(&mut self, x: Tokens<'_>, labels: &[i32]) -> Result<f64, TrainError> {
        let images = x.len().max(1);
        for params in &mut self.params {
            params.zero_grads()?;
        }
        let losses = self.step.train(&mut self.params, x, labels, 1.0 / images as f32)?;
        let mut best = f64::INFINITY;
        let update = self.update + 1;
        for (i, params) in self.params.iter_mut().enumerate() {
            if self.diverged_at[i].is_some() {
                continue;
            }
            let (loss, norm) = (losses[i] / images as f64, grad_norm(params)?);
            if !(loss.is_finite() && norm.is_finite()) {
                self.diverged_at[i] = Some(update);
                if self.diverged_at.iter().all(Option::is_some) {
                    let what = "the probe's loss";
                    return Err(TrainError::NonFinite { step: update, what, value: loss });
                }
                continue;
            }
            best = best.min(loss);
            let Point { lr, weight_decay } = self.points[i];
            self.optimizers[i].step(
                params,
                Update {
                    lr: self.settings.lr_at(lr, self.update, self.total),
                    betas: self.settings.betas,
                    eps: 1e-8,
                    weight_decay,
                    step: update,
                    grad_scale: clip_scale(norm, self.settings.clip),
                },
            )?;
        }
        self.update = update;
        Ok(best)
    }

    /// What the grid classifies.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The classifiers in the order of [`ProbeTraining::points`].
    pub fn finish(self) -> Vec<Trained> {
        self.params
            .into_iter()
            .zip(self.points)
            .zip(self.diverged_at)
            .map(|((params, point), diverged_at)| Trained { point, params, diverged_at })
            .collect()
    }
}

/// Trains a grid of classifiers from fresh parameters on some of the images; `progress` gets the epochs done and the
/// last epoch's mean of the smallest losses.
///
/// # Errors
/// When there are fewer than two images, a label is not below the number of classes, no point has a finite loss, or a
/// stop is requested.
pub fn train(
    probe: &Probe,
    features: &mut dyn Features,
    images: &[u32],
    settings: &ProbeTraining,
    stop: &Stop,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<Vec<Trained>, TrainError> {
    if images.len() < 2 {
        return Err(TrainError::TooFewImages { found: images.len(), expected: 2 });
    }
    let batch_size = settings.batch_size.clamp(2, images.len());
    // A last batch of another size would have other statistics: it is left out, another one in each epoch.
    let batches = images.len() / batch_size;
    let total = (batches * settings.epochs) as u64;
    let mut trainer = GridTrainer::new(probe, features.tokens(), settings, total)?;
    let (mut chosen, mut labels) = (Vec::new(), Vec::new());
    for epoch in 0..settings.epochs {
        let order = Permutation::new(images.len() as u64, settings.seed, 0, epoch as u64);
        let mut sum = 0.0;
        for batch in 0..batches {
            stop.check()?;
            let at = |i: usize| images[order.get(i as u64) as usize];
            chosen.clear();
            chosen.extend((batch * batch_size..(batch + 1) * batch_size).map(at));
            labels.clear();
            labels.extend(chosen.iter().map(|&image| features.labels()[image as usize]));
            features.batch(&chosen, &mut |x| {
                sum += trainer.step(x, &labels)?;
                Ok(())
            })?;
        }
        progress(epoch + 1, sum / batches as f64);
    }
    Ok(trainer.finish())
}

/// Images that are evaluated at a time.
const BATCH: usize = 256;

/// Answers of trained classifiers on some of the images. Classifiers that were trained on the same batches share their
/// running statistics, and are evaluated in one pass.
///
/// # Errors
/// When features are of another size than the classifiers', or a stop is requested.
pub fn evaluate(
    probe: &Probe,
    params: &[&Parameters],
    features: &mut dyn Features,
    images: &[u32],
    stop: &Stop,
) -> Result<Vec<Answers>, TrainError> {
    let classes = probe.config().classes;
    let mut answers = vec![Answers::default(); params.len()];
    let mut step = GridStep::new(probe, features.tokens())?;
    let mut logits = Vec::new();
    for images in images.chunks(BATCH) {
        stop.check()?;
        features.batch(images, &mut |x| Ok(step.logits(params, x, &mut logits)?))?;
        for (answers, logits) in answers.iter_mut().zip(logits.chunks_exact(images.len() * classes))
        {
            for (scores, &image) in logits.chunks_exact(classes).zip(images) {
                // Labels beyond the classes are wrong, not an error.
                answers.push(scores, features.labels()[image as usize]);
            }
        }
    }
    Ok(answers)
}

/// The point with the best top-1 accuracy; the first of equals, and none that diverged unless all did.
pub fn best(accuracies: &[Accuracy], diverged: &[bool]) -> usize {
    let key = |i: &usize| {
        (!diverged.get(*i).copied().unwrap_or(false), accuracies[*i].top1, std::cmp::Reverse(*i))
    };
    (0..accuracies.len())
        .max_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::features::FeatureSet;
    use aim_model::classifier::{ProbeConfig, ProbeKind};

    /// Two tokens, of which the second says the class in one of its values.
    fn toy(images: usize, seed: u64) -> FeatureSet {
        let random = aim_tensor::Philox::new(seed, "toy");
        let (tokens, dim, classes) = (2, 16, 4);
        let mut values = vec![0.0; images * tokens * dim];
        random.fill_normal(0.3, &mut values);
        let labels: Vec<i32> =
            (0..images).map(|i| random.below(classes, i as u64, 1) as i32).collect();
        for (i, &label) in labels.iter().enumerate() {
            values[(i * tokens + 1) * dim + label as usize] += 2.0;
        }
        FeatureSet { values, labels, tokens, dim }
    }

    fn all(set: &FeatureSet) -> Vec<u32> {
        (0..set.len() as u32).collect()
    }

    #[test]
    fn both_probes_learn_what_is_there_and_points_do_not_touch() {
        let (mut train_set, mut test_set) = (toy(400, 1), toy(200, 2));
        let images = all(&train_set);
        for kind in [ProbeKind::Attentive, ProbeKind::Linear] {
            let probe = Probe::new(ProbeConfig { kind, dim: 16, heads: 2, classes: 4 }).unwrap();
            let settings = ProbeTraining {
                batch_size: 50,
                lrs: vec![1e-2, 1e-6, 3e-3],
                weight_decays: vec![0.0, 0.1],
                epochs: 12,
                warmup_epochs: 1,
                ..Default::default()
            };
            let stop = Stop::detached();
            let mut run = |settings: &ProbeTraining| {
                train(&probe, &mut train_set, &images, settings, &stop, &mut |_, _| {}).unwrap()
            };
            let grid = run(&settings);
            let params: Vec<_> = grid.iter().map(|trained| &trained.params).collect();
            let images = all(&test_set);
            let answers = evaluate(&probe, &params, &mut test_set, &images, &stop).unwrap();
            let accuracies: Vec<_> = answers.iter().map(Answers::accuracy).collect();
            let chosen = best(&accuracies, &[false; 6]);
            assert!(accuracies[chosen].top1 > 0.9 && accuracies[chosen].top5 == 1.0, "{kind:?}");
            assert!(accuracies[chosen].top1 > accuracies[2].top1, "{kind:?} {accuracies:?}");
            // Every point is, in bits, what it is alone.
            for trained in &grid {
                let Point { lr, weight_decay } = trained.point;
                let alone = ProbeTraining {
                    lrs: vec![lr],
                    weight_decays: vec![weight_decay],
                    ..settings.clone()
                };
                let alone = run(&alone);
                assert_eq!(trained.params.values(), alone[0].params.values(), "{kind:?} {lr}");
            }
        }
    }

    #[test]
    fn a_point_that_diverges_does_not_take_the_others_along() {
        let mut set = toy(60, 3);
        let images = all(&set);
        let config = ProbeConfig { kind: ProbeKind::Linear, dim: 16, heads: 1, classes: 4 };
        let probe = Probe::new(config).unwrap();
        let settings = ProbeTraining {
            lrs: vec![1e38, 1e-2],
            batch_size: 20,
            epochs: 3,
            ..Default::default()
        };
        let stop = Stop::detached();
        let grid = train(&probe, &mut set, &images, &settings, &stop, &mut |_, _| {}).unwrap();
        assert!(grid[0].diverged_at.is_some() && grid[1].diverged_at.is_none());
        let alone = ProbeTraining { lrs: vec![1e-2], ..settings.clone() };
        let alone = train(&probe, &mut set, &images, &alone, &stop, &mut |_, _| {}).unwrap();
        assert_eq!(grid[1].params.values(), alone[0].params.values());
        let hopeless = ProbeTraining { lrs: vec![1e38], ..settings };
        assert!(train(&probe, &mut set, &images, &hopeless, &stop, &mut |_, _| {}).is_err());
        stop.request(crate::signals::Signal::Terminate);
        let stopped = train(&probe, &mut set, &images, &hopeless, &stop, &mut |_, _| {});
        assert!(matches!(stopped, Err(TrainError::Stopped { .. })));
    }

    #[test]
    fn the_rate_rises_over_the_warmup_and_falls_to_the_last() {
        let settings = ProbeTraining { epochs: 10, warmup_epochs: 2, ..Default::default() };
        assert_eq!(settings.lr_at(1e-3, 0, 100), 1e-6);
        assert!((settings.lr_at(1e-3, 20, 100) - 1e-3).abs() < 1e-15);
        assert!((settings.lr_at(1e-3, 60, 100) - (1e-3 + 1e-5) / 2.0).abs() < 1e-15);
        assert!((settings.lr_at(1e-3, 100, 100) - 1e-5).abs() < 1e-15);
        let paper = ProbeTraining::paper(50_000);
        assert_eq!((paper.points().len(), paper.batch_size, paper.epochs), (14, 512, 100));
        assert_eq!(ProbeTraining::paper(1_281_167).batch_size, 1024);
    }
}
