//! [`AttentionQuery`]: where an attentive probe looks.
//!
//! ```text
//! f = batch_norm(features)                          running statistics, no affine
//! p[h, t] = softmax over t of q_h . (Wk f_t)_h / sqrt(head_dim)
//! ```
//!
//! The query is the same for every image, so that query and key matrix are one direction per head: `u_h = Wk_h^T q_h`,
//! with the norm's scale in it. Its shift adds the same to every token and falls out of the softmax.

use crate::error::ModelError;

/// Added to the variance in the probe's batch norm (ml-aim).
const BATCH_NORM_EPS: f64 = 1e-6;

/// The query of an attentive probe, ready for features.
#[derive(Clone, Debug)]
pub struct AttentionQuery {
    heads: usize,
    dim: usize,
    /// `[heads, dim]`
    directions: Vec<f32>,
}

impl AttentionQuery {
    /// From a probe's tensors: `query` (`head.cls_token`) of `dim` values, `key` (`head.k.weight`) `[dim, dim]` and the
    /// running variance of its batch norm, `dim` values.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] for tensors of other sizes, or heads that do not divide the width.
    pub fn new(
        heads: usize,
        query: &[f32],
        key: &[f32],
        running_var: &[f32],
    ) -> Result<Self, ModelError> {
        let dim = query.len();
        let fits = dim > 0 && heads > 0 && dim.is_multiple_of(heads);
        if !fits || key.len() != dim * dim || running_var.len() != dim {
            return Err(ModelError::BadConfig {
                key: "num_heads",
                value: heads.to_string(),
                expected: format!(
                    "heads that divide the query's {dim} values, a key matrix of {} and a variance of {dim}; \
                     found {} and {}",
                    dim * dim,
                    key.len(),
                    running_var.len()
                ),
            });
        }
        let head_dim = dim / heads;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut directions = Vec::with_capacity(heads * dim);
        for head in 0..heads {
            let mut direction = vec![0.0f64; dim];
            for row in head * head_dim..(head + 1) * head_dim {
                let q = f64::from(query[row]) * scale;
                let weights = &key[row * dim..(row + 1) * dim];
                direction.iter_mut().zip(weights).for_each(|(u, &w)| *u += q * f64::from(w));
            }
            directions.extend(
                direction
                    .iter()
                    .zip(running_var)
                    .map(|(u, &var)| (u / (f64::from(var) + BATCH_NORM_EPS).sqrt()) as f32),
            );
        }
        Ok(Self { heads, dim, directions })
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Attention over the tokens of one image, `[heads, tokens]`; each head's values add up to 1. `features` are
    /// `[tokens, dim]`, the mean over the probe's layers.
    pub fn map(&self, features: &[f32]) -> Vec<f32> {
        let tokens = features.len() / self.dim;
        let mut map = Vec::with_capacity(self.heads * tokens);
        for direction in self.directions.chunks_exact(self.dim) {
            let scores: Vec<f64> = features
                .chunks_exact(self.dim)
                .map(|token| {
                    token.iter().zip(direction).map(|(&f, &u)| f64::from(f) * f64::from(u)).sum()
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let parts: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = parts.iter().sum();
            map.extend(parts.iter().map(|part| (part / sum) as f32));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_looks_where_its_key_is() {
        // Two heads of two dimensions; the key matrix is the identity.
        let key: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        let query =
            AttentionQuery::new(2, &[4.0, 0.0, 0.0, 4.0], &key, &[1.0, 1.0, 1.0, 0.25]).unwrap();
        let features = [[1.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 1.0]];
        let map = query.map(features.as_flattened());
        // Scores 4/sqrt(2) and twice that, since the last dimension has half the spread.
        let expected = |score: f64| (score.exp() / (score.exp() + 2.0)) as f32;
        let one = 4.0 / 2.0f64.sqrt();
        assert!((map[0] - expected(one)).abs() < 1e-6, "{map:?}");
        assert!((map[5] - expected(2.0 * one)).abs() < 1e-4, "{map:?}");
        for head in map.chunks(3) {
            assert!((head.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        assert!(AttentionQuery::new(3, &[0.0; 4], &key, &[1.0; 4]).is_err());
        assert!(AttentionQuery::new(2, &[0.0; 4], &key[1..], &[1.0; 4]).is_err());
    }
}
