//! k nearest neighbours: a classifier without training.

use aim_kernels::linear::{Linear, cpu};

use super::accuracy::Answers;
use super::features::FeatureSet;
use crate::error::TrainError;
use crate::signals::Stop;

/// How neighbours are found and vote.
#[derive(Clone, Debug, PartialEq)]
pub enum Neighbours {
    /// The nearest one by Euclidean distance decides.
    Nearest,
    /// The most similar by cosine vote with weight `exp(similarity / temperature)` (DINO's protocol).
    Cosine {
        /// Numbers of voters, each a classifier of its own; DINO's are 10, 20, 100 and 200.
        k: Vec<usize>,
        /// Temperature of the votes; 0.07 is usual.
        temperature: f64,
    },
}

/// Rows of the test set compared with the whole training set at a time.
const BLOCK: usize = 64;

/// Answers of neighbours from `train` on `test`, both `[images, 1, dim]`: one for each number of voters, all from the
/// same similarities. There are no more voters than training images.
///
/// # Errors
/// When the sets differ in width or the training set is empty, or a stop is requested.
pub fn nearest(
    train: &FeatureSet,
    test: &FeatureSet,
    rule: &Neighbours,
    stop: &Stop,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Answers>, TrainError> {
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
    let voters = match rule {
        Neighbours::Nearest => vec![1],
        Neighbours::Cosine { k, .. } => k.clone(),
    };
    let temperature = match rule {
        Neighbours::Nearest => 1.0,
        Neighbours::Cosine { temperature, .. } => temperature.max(1e-6),
    };
    let mut answers = vec![Answers::default(); voters.len()];
    for first in (0..test.len()).step_by(BLOCK) {
        stop.check()?;
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
            let votes = votes(row, &train.labels, classes, &voters, temperature);
            for (answers, votes) in answers.iter_mut().zip(votes) {
                answers.push(&votes, label);
            }
        }
        progress((first + rows) as u64, test.len() as u64);
    }
    Ok(answers)
}

fn unit_rows(values: &[f32], dim: usize) -> Vec<f32> {
    let mut unit = values.to_vec();
    for row in unit.chunks_exact_mut(dim) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v /= norm);
    }
    unit
}

/// Score of each class, for each number of voters.
fn votes(
    similarity: &[f32],
    labels: &[i32],
    classes: usize,
    voters: &[usize],
    temperature: f64,
) -> Vec<Vec<f32>> {
    let most = voters.iter().max().map_or(1, |&k| k.clamp(1, similarity.len()));
    let mut order: Vec<usize> = (0..similarity.len()).collect();
    // The earlier image wins a tie.
    let before = |&a: &usize, &b: &usize| similarity[b].total_cmp(&similarity[a]).then(a.cmp(&b));
    if most < order.len() {
        order.select_nth_unstable_by(most - 1, before);
        order.truncate(most);
    }
    order.sort_unstable_by(before);
    let best = order.first().map_or(0.0, |&i| similarity[i]);
    voters
        .iter()
        .map(|&k| {
            let mut chosen = order[..k.clamp(1, order.len())].to_vec();
            // In the order of the training set, so that sums do not depend on how the neighbours were found.
            chosen.sort_unstable();
            let mut votes = vec![0.0_f64; classes];
            for i in chosen {
                let weight = (f64::from(similarity[i] - best) / temperature).exp();
                votes[labels[i].max(0) as usize] += weight;
            }
            votes.into_iter().map(|vote| vote as f32).collect()
        })
        .collect()
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

    fn top1(train: &FeatureSet, test: &FeatureSet, rule: Neighbours) -> Vec<f64> {
        let answers = nearest(train, test, &rule, &Stop::detached(), &mut |_, _| {}).unwrap();
        answers.iter().map(|answers| answers.accuracy().top1).collect()
    }

    fn cosine(k: &[usize]) -> Neighbours {
        Neighbours::Cosine { k: k.to_vec(), temperature: 0.07 }
    }

    #[test]
    fn distance_and_angle_differ() {
        let train = set(&[([1.0, 0.0], 0), ([0.1, 1.0], 1), ([10.0, 1.0], 2)]);
        let test = set(&[([2.0, 0.19], 0)]);
        assert_eq!(top1(&train, &test, Neighbours::Nearest), [1.0]);
        assert_eq!(top1(&train, &test, cosine(&[1])), [0.0]);
    }

    #[test]
    fn near_voters_outvote_many_far_ones() {
        let mut rows = vec![([1.0, 0.0], 0)];
        rows.extend((0..9).map(|i| ([0.0, 1.0 + i as f32], 1)));
        let test = set(&[([1.0, 0.1], 0)]);
        assert_eq!(top1(&set(&rows), &test, cosine(&[10])), [1.0]);
    }

    #[test]
    fn every_number_of_voters_is_as_alone() {
        let random = aim_tensor::Philox::new(4, "neighbours");
        let points = |n: u64, salt: u64| {
            let value = |i, d| random.below(9, 2 * i + d, salt) as f32 - 4.0;
            let rows: Vec<_> = (0..n)
                .map(|i| ([value(i, 0), value(i, 1)], random.below(3, i, salt + 9) as i32))
                .collect();
            set(&rows)
        };
        let (train, test) = (points(90, 1), points(70, 2));
        let ks = [1, 7, 20, 500];
        let together = top1(&train, &test, cosine(&ks));
        for (k, found) in ks.iter().zip(together) {
            assert_eq!(top1(&train, &test, cosine(&[*k])), [found], "{k} voters");
        }
    }
}
