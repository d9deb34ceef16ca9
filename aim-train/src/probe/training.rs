//! Training a classifier on features that were computed once.

use aim_data::sampler::Permutation;
use aim_model::classifier::{Probe, ProbeStep};
use aim_tensor::Parameters;

use super::features::FeatureSet;
use crate::error::TrainError;
use crate::optimizer::{AdamW, Update, clip_scale, grad_norm};

/// Settings of one probe's training; the defaults follow the paper's recipe where it does not depend on the set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeTraining {
    /// Passes over the training set.
    pub epochs: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// Peak learning rate; it falls to `min_lr` along a half cosine.
    pub lr: f64,
    /// Last learning rate.
    pub min_lr: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decides initial values and order.
    pub seed: u64,
}

impl Default for ProbeTraining {
    fn default() -> Self {
        Self {
            epochs: 20,
            batch_size: 256,
            lr: 1e-3,
            min_lr: 1e-5,
            weight_decay: 0.1,
            clip: 3.0,
            seed: 0,
        }
    }
}

/// Trains a classifier from fresh parameters; `progress` gets the epochs done and the last epoch's mean loss.
///
/// # Errors
/// When there are fewer than two images, a label is not below the number of classes, or the loss is not finite.
pub fn train(
    probe: &Probe,
    set: &FeatureSet,
    settings: ProbeTraining,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<Parameters, TrainError> {
    if set.len() < 2 {
        return Err(TrainError::TooFewImages { found: set.len(), expected: 2 });
    }
    let batch_size = settings.batch_size.clamp(2, set.len());
    let mut params = probe.init(settings.seed)?;
    let mut optimizer = AdamW::new(probe.layout())?;
    let mut step = ProbeStep::new(probe, batch_size, set.tokens, true)?;
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    // A last batch of another size would have other statistics: it is left out, another one in each epoch.
    let batches = set.len() / batch_size;
    let total = (batches * settings.epochs) as u64;
    let mut update = 0;
    for epoch in 0..settings.epochs {
        let order = Permutation::new(set.len() as u64, settings.seed, 0, epoch as u64);
        let mut sum = 0.0;
        for batch in 0..batches {
            features.clear();
            labels.clear();
            for i in batch * batch_size..(batch + 1) * batch_size {
                let image = order.get(i as u64) as usize;
                features.extend_from_slice(set.image(image));
                labels.push(set.labels[image]);
            }
            params.zero_grads()?;
            let loss = step.forward(&params, &features, &labels)? / batch_size as f64;
            step.backward(&mut params, 1.0 / batch_size as f32)?;
            let norm = grad_norm(&params)?;
            if !(loss.is_finite() && norm.is_finite()) {
                return Err(TrainError::NonFinite {
                    step: update + 1,
                    what: "the probe's loss",
                    value: loss,
                });
            }
            let done = update as f64 / total as f64;
            let lr = settings.min_lr
                + (settings.lr - settings.min_lr)
                    * 0.5
                    * (1.0 + (std::f64::consts::PI * done).cos());
            update += 1;
            optimizer.step(
                &mut params,
                Update {
                    lr,
                    betas: [0.9, 0.999],
                    eps: 1e-8,
                    weight_decay: settings.weight_decay,
                    step: update,
                    grad_scale: clip_scale(norm, settings.clip),
                },
            )?;
            sum += loss;
        }
        progress(epoch + 1, sum / batches as f64);
    }
    Ok(params)
}

/// How often a classifier is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Accuracy {
    /// Images.
    pub images: usize,
    /// Share of images whose label has the largest score, in 0..1.
    pub top1: f64,
    /// Share of images whose label is among the five largest scores, in 0..1.
    pub top5: f64,
}

impl Accuracy {
    /// Counts the ranks of the labels' scores.
    pub(crate) fn of_ranks(ranks: &[usize]) -> Self {
        let within =
            |n| ranks.iter().filter(|&&rank| rank < n).count() as f64 / ranks.len().max(1) as f64;
        Self { images: ranks.len(), top1: within(1), top5: within(5) }
    }
}

/// Number of scores above that of `label`; ties count against it.
pub(crate) fn rank(scores: &[f32], label: usize) -> usize {
    let own = scores.get(label).copied().unwrap_or(f32::NEG_INFINITY);
    // Not `s >= own`: a score that is NaN must not make its row look right.
    scores
        .iter()
        .enumerate()
        .filter(|&(i, s)| {
            i != label && !matches!(s.partial_cmp(&own), Some(std::cmp::Ordering::Less))
        })
        .count()
}

/// Accuracy of a trained classifier.
///
/// # Errors
/// When features are of another size than the classifier's.
pub fn evaluate(
    probe: &Probe,
    params: &Parameters,
    set: &FeatureSet,
) -> Result<Accuracy, TrainError> {
    const BATCH: usize = 256;
    let mut ranks = Vec::with_capacity(set.len());
    let mut step: Option<(usize, ProbeStep)> = None;
    for first in (0..set.len()).step_by(BATCH) {
        let count = BATCH.min(set.len() - first);
        let ready = match step.take() {
            Some((same, ready)) if same == count => ready,
            _ => ProbeStep::new(probe, count, set.tokens, false)?,
        };
        let (_, ready) = step.insert((count, ready));
        let features = &set.values[first * set.stride()..][..count * set.stride()];
        // Labels play no part in the logits; those beyond the classes are wrong, not an error.
        ready.forward(params, features, &vec![-1; count])?;
        let logits = ready.logits()?;
        let logits = logits.chunks_exact(probe.config().classes);
        ranks.extend(
            logits.zip(&set.labels[first..]).map(|(row, &label)| rank(row, label.max(0) as usize)),
        );
    }
    Ok(Accuracy::of_ranks(&ranks))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn both_probes_learn_what_is_there() {
        let (train_set, test_set) = (toy(400, 1), toy(200, 2));
        for kind in [ProbeKind::Attentive, ProbeKind::Linear] {
            let probe = Probe::new(ProbeConfig { kind, dim: 16, heads: 2, classes: 4 }).unwrap();
            let settings =
                ProbeTraining { batch_size: 50, lr: 1e-2, epochs: 30, ..Default::default() };
            let params = train(&probe, &train_set, settings, &mut |_, _| {}).unwrap();
            let accuracy = evaluate(&probe, &params, &test_set).unwrap();
            assert!(accuracy.top1 > 0.9 && accuracy.top5 == 1.0, "{kind:?} {accuracy:?}");
            let again = train(&probe, &train_set, settings, &mut |_, _| {}).unwrap();
            assert_eq!(params.values(), again.values(), "{kind:?} is not reproducible");
        }
    }

    #[test]
    fn ties_and_nan_are_wrong() {
        assert_eq!(rank(&[1.0, 2.0, 0.0], 1), 0);
        assert_eq!(rank(&[2.0, 2.0, 0.0], 1), 1);
        assert_eq!(rank(&[f32::NAN, 2.0, 0.0], 1), 1);
        assert_eq!(rank(&[1.0], 3), 1);
    }
}
