//! How often a classifier is right, and what it takes for what.

use std::collections::BTreeMap;

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
    /// From the [`rank`] of each image's label.
    pub fn of_ranks(ranks: &[usize]) -> Self {
        let within =
            |n| ranks.iter().filter(|&&rank| rank < n).count() as f64 / ranks.len().max(1) as f64;
        Self { images: ranks.len(), top1: within(1), top5: within(5) }
    }
}

/// A classifier's answers on a set of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    labels: Vec<u32>,
    /// Scores above the label's; ties count against it.
    ranks: Vec<usize>,
    predicted: Vec<u32>,
}

impl Answers {
    /// Adds an image by the score of each class; a negative label is none of them.
    pub fn push(&mut self, scores: &[f32], label: i32) {
        let label = usize::try_from(label).unwrap_or(usize::MAX);
        let rank = rank(scores, label);
        let predicted = if rank == 0 {
            label
        } else {
            // The largest other one, the first of equals; a NaN is no answer.
            let mut best = 0;
            for (i, score) in scores.iter().enumerate() {
                if best == label || (i != label && *score > scores[best]) || scores[best].is_nan() {
                    best = i;
                }
            }
            best
        };
        self.labels.push(u32::try_from(label).unwrap_or(u32::MAX));
        self.ranks.push(rank);
        self.predicted.push(predicted as u32);
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// Top-1 and top-5 accuracy.
    pub fn accuracy(&self) -> Accuracy {
        Accuracy::of_ranks(&self.ranks)
    }

    /// Top-1 accuracy within each class, in 0..1; `None` for a class without images.
    pub fn per_class(&self, classes: usize) -> Vec<Option<f64>> {
        let mut counts = vec![(0_u64, 0_u64); classes];
        for (&label, &rank) in self.labels.iter().zip(&self.ranks) {
            if let Some((right, all)) = counts.get_mut(label as usize) {
                *right += u64::from(rank == 0);
                *all += 1;
            }
        }
        counts
            .into_iter()
            .map(|(right, all)| (all > 0).then(|| right as f64 / all as f64))
            .collect()
    }

    /// Mean of the accuracies of the classes that have images.
    pub fn mean_per_class(&self, classes: usize) -> f64 {
        let known: Vec<f64> = self.per_class(classes).into_iter().flatten().collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    }

    /// How often an image of a class (first) was taken for one of another (second), where that happened, in order.
    pub fn confusion(&self) -> Vec<(u32, u32, u64)> {
        let mut counts = BTreeMap::new();
        for (&label, &predicted) in self.labels.iter().zip(&self.predicted) {
            *counts.entry((label, predicted)).or_insert(0) += 1;
        }
        counts.into_iter().map(|((label, predicted), count)| (label, predicted, count)).collect()
    }
}

/// Number of scores above that of `label`; ties count against it.
pub fn rank(scores: &[f32], label: usize) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_nan_are_wrong() {
        assert_eq!(rank(&[1.0, 2.0, 0.0], 1), 0);
        assert_eq!(rank(&[2.0, 2.0, 0.0], 1), 1);
        assert_eq!(rank(&[f32::NAN, 2.0, 0.0], 1), 1);
        assert_eq!(rank(&[1.0], 3), 1);
    }

    #[test]
    fn classes_are_counted_apart() {
        let mut answers = Answers::default();
        answers.push(&[3.0, 1.0, 2.0], 0);
        answers.push(&[3.0, 1.0, 2.0], 0);
        answers.push(&[3.0, 1.0, 2.0], 2);
        answers.push(&[3.0, 3.0, 2.0], 0);
        answers.push(&[f32::NAN, 1.0, 2.0], 1);
        answers.push(&[1.0, 1.0, 1.0], -1);
        assert_eq!(
            answers.confusion(),
            [(0, 0, 2), (0, 1, 1), (1, 2, 1), (2, 0, 1), (u32::MAX, 0, 1)]
        );
        assert_eq!(answers.per_class(4), [Some(2.0 / 3.0), Some(0.0), Some(0.0), None]);
        assert!((answers.mean_per_class(4) - 2.0 / 9.0).abs() < 1e-12);
        let accuracy = answers.accuracy();
        assert_eq!((accuracy.images, accuracy.top1), (6, 2.0 / 6.0));
        assert_eq!(accuracy.top5, 1.0);
    }
}
