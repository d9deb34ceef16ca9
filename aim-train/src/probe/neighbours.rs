//! k nearest neighbours: a classifier without training.

use aim_kernels::linear::{Linear, cpu};

use super::features::FeatureSet;
use super::training::{Accuracy, rank};
use crate::error::TrainError;

/// How neighbours are found and vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Neighbours {
    /// The nearest one by Euclidean distance decides.
    Nearest,
    /// The `k` most similar by cosine vote with weight `exp(similarity / temperature)` (DINO's protocol).
    Cosine {
        /// Voters.
        k: usize,
        /// Temperature of the votes; 0.07 is usual.
        temperature: f64,
    },
}

/// Rows of the test set compared with the whole training set at a time.
const BLOCK: usize = 64;

/// Accuracy of neighbours from `train` on `test`, both `[images, 1, dim]`.
///
/// # Errors
/// When the sets differ in width or the training set is empty.
pub fn nearest(
    train: &FeatureSet,
    test: &FeatureSet,
    rule: Neighbours,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Accuracy, TrainError> {
    if train.is_empty() || train.stride() != test.stride() {
        return Err(TrainError::TooFewImages { found: train.len(), expected: 1 });
    }
    let dim = train.stride();
    let classes = train.labels.iter().max().map_or(1, |&most| most.max(0) as usize + 1);
    let (train_values, test_values) = match rule {
        Neighbours::Nearest => (train.values.clone(), test.values.clone()),
        Neighbours::Cosine { .. } => (unit_rows(&train.values, dim), unit_rows(&test.values, dim)),
    };
    // |a - b|^2 / 2 = |b|^2 / 2 - a b + (what all b share): the nearest b has the largest a b - |b|^2 / 2.
    let offset: Option<Vec<f32>> = matches!(rule, Neighbours::Nearest).then(|| {
        train_values
            .chunks_exact(dim)
            .map(|row| -0.5 * row.iter().map(|v| v * v).sum::<f32>())
            .collect()
    });
    let mut similarity = vec![0.0; BLOCK.min(test.len()) * train.len()];
    let mut ranks = Vec::with_capacity(test.len());
    for first in (0..test.len()).step_by(BLOCK) {
        let rows = BLOCK.min(test.len() - first);
        let shape = Linear { rows, inputs: dim, outputs: train.len() };
        let similarity = &mut similarity[..rows * train.len()];
        cpu::forward(
            shape,
            &test_values[first * dim..][..rows * dim],
            &train_values,
            offset.as_deref(),
            None,
            similarity,
        );
        for (row, &label) in similarity.chunks_exact(train.len()).zip(&test.labels[first..]) {
            let votes = vote(row, &train.labels, classes, rule);
            ranks.push(rank(&votes, label.max(0) as usize));
        }
        progress((first + rows) as u64, test.len() as u64);
    }
    Ok(Accuracy::of_ranks(&ranks))
}

fn unit_rows(values: &[f32], dim: usize) -> Vec<f32> {
    let mut unit = values.to_vec();
    for row in unit.chunks_exact_mut(dim) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v /= norm);
    }
    unit
}

/// Score of each class.
fn vote(similarity: &[f32], labels: &[i32], classes: usize, rule: Neighbours) -> Vec<f32> {
    let (k, temperature) = match rule {
        Neighbours::Nearest => (1, 1.0),
        Neighbours::Cosine { k, temperature } => {
            (k.clamp(1, similarity.len()), temperature.max(1e-6))
        }
    };
    let mut order: Vec<usize> = (0..similarity.len()).collect();
    // The earlier image wins a tie.
    let before = |&a: &usize, &b: &usize| similarity[b].total_cmp(&similarity[a]).then(a.cmp(&b));
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, before);
    }
    order.truncate(k);
    let mut votes = vec![0.0_f64; classes];
    let best = order.iter().map(|&i| similarity[i]).fold(f32::NEG_INFINITY, f32::max);
    // In the order of the training set, so that sums do not depend on how the neighbours were found.
    order.sort_unstable();
    for i in order {
        let weight = (f64::from(similarity[i] - best) / temperature).exp();
        votes[labels[i].max(0) as usize] += weight;
    }
    votes.into_iter().map(|vote| vote as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rows: &[([f32; 2], i32)]) -> FeatureSet {
        let values = rows.iter().flat_map(|(v, _)| *v).collect();
        FeatureSet {
            values,
            labels: rows.iter().map(|(_, label)| *label).collect(),
            tokens: 1,
            dim: 2,
        }
    }

    #[test]
    fn distance_and_angle_differ() {
        let train = set(&[([1.0, 0.0], 0), ([0.1, 1.0], 1), ([10.0, 1.0], 2)]);
        let test = set(&[([2.0, 0.19], 0)]);
        let euclidean = nearest(&train, &test, Neighbours::Nearest, &mut |_, _| {}).unwrap();
        assert_eq!(euclidean.top1, 1.0);
        let cosine = Neighbours::Cosine { k: 1, temperature: 0.07 };
        assert_eq!(nearest(&train, &test, cosine, &mut |_, _| {}).unwrap().top1, 0.0);
    }

    #[test]
    fn near_voters_outvote_many_far_ones() {
        let mut rows = vec![([1.0, 0.0], 0)];
        rows.extend((0..9).map(|i| ([0.0, 1.0 + i as f32], 1)));
        let test = set(&[([1.0, 0.1], 0)]);
        let rule = Neighbours::Cosine { k: 10, temperature: 0.07 };
        assert_eq!(nearest(&set(&rows), &test, rule, &mut |_, _| {}).unwrap().top1, 1.0);
    }
}
