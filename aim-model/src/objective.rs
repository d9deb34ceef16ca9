//! The next-patch objective (paper 4.1 and 4.2): which tokens form the prefix, which outputs predict, and what.
//!
//! With a prefix of S tokens, attention is bidirectional among them and causal after; output k predicts patch k + 1,
//! and only patches after the prefix are scored: targets S..K-1 from outputs S-1..K-2. The first scored prediction
//! comes from the last prefix token, which sees exactly the prefix. S is uniform on 1..K-1, so patch 0 is never
//! predicted.
//!
//! Everything after this module sees only [`Selection`]: which rows of the trunk's output predict, and which patch
//! each is scored against.

use std::ops::Range;

use aim_tensor::Philox;

/// Rows that predict and the patches they are scored against, for a batch of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Prefix length of each image for the attention mask: i32 `[batch]`.
    pub prefix: Vec<i32>,
    /// Rows of the flattened `[batch * tokens, dim]` trunk output that predict.
    pub rows: Vec<i32>,
    /// For each of `rows`, the patch of the flattened `[batch * tokens, 3 p^2]` it is scored against.
    pub targets: Vec<i32>,
}

impl Selection {
    /// Next-patch prediction with these prefix lengths, each in 1..tokens.
    pub fn next_patch(prefix: &[i32], tokens: usize) -> Self {
        let mut selection = Self::default();
        selection.fill_next_patch(prefix, tokens);
        selection
    }

    /// As [`Selection::next_patch`], in this selection's memory.
    pub fn fill_next_patch(&mut self, prefix: &[i32], tokens: usize) {
        self.prefix.clear();
        self.rows.clear();
        self.targets.clear();
        self.prefix.extend_from_slice(prefix);
        for (image, &s) in prefix.iter().enumerate() {
            let first = (image * tokens) as i32;
            let span = first + s.clamp(1, tokens as i32)..first + tokens as i32;
            self.rows.extend(span.clone().map(|target| target - 1));
            self.targets.extend(span);
        }
    }

    /// Position in the grid of each predicting row.
    pub fn head_positions(&self, tokens: usize) -> Vec<i32> {
        self.rows.iter().map(|row| row % tokens as i32).collect()
    }
}

/// How prefix lengths are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixRule {
    /// Uniform on 1..K-1. Neighbouring images of a micro-batch get S and K - S: each is uniform by itself, and the
    /// number of scored patches is the same for every even micro-batch.
    Uniform,
    /// The same for every image. 1 with causal attention is plain autoregression.
    Fixed(usize),
}

/// Draws prefix lengths as a pure function of (seed, step, slot).
#[derive(Clone, Copy, Debug)]
pub struct PrefixSampler {
    rule: PrefixRule,
    tokens: usize,
    random: Philox,
}

impl PrefixSampler {
    /// A sampler for images of `tokens` tokens, at least two.
    pub fn new(rule: PrefixRule, tokens: usize, seed: u64) -> Self {
        Self { rule, tokens, random: Philox::new(seed, "prefix") }
    }

    /// Prefix lengths of the micro-batch that fills `slots` of the global batch of `step`.
    pub fn draw(&self, step: u64, slots: Range<usize>, prefix: &mut Vec<i32>) {
        prefix.clear();
        match self.rule {
            PrefixRule::Fixed(s) => prefix.extend(slots.map(|_| s as i32)),
            PrefixRule::Uniform => {
                for (i, slot) in slots.clone().enumerate() {
                    let s = match prefix.last() {
                        Some(partner) if i % 2 == 1 => self.tokens as i32 - partner,
                        _ => {
                            1 + self.random.below(self.tokens as u64 - 1, step, slot as u64) as i32
                        }
                    };
                    prefix.push(s);
                }
            }
        }
    }

    /// A fixed prefix length for the image of that key, for validation: the same at every step.
    pub fn for_key(tokens: usize, key: u64) -> i32 {
        1 + Philox::new(0, "validation prefix").below(tokens as u64 - 1, key, 0) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_k_predicts_patch_k_plus_1_after_the_prefix() {
        let selection = Selection::next_patch(&[3, 1], 5);
        assert_eq!(selection.rows, [2, 3, 5, 6, 7, 8]);
        assert_eq!(selection.targets, [3, 4, 6, 7, 8, 9]);
        assert_eq!(selection.head_positions(5), [2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn pairs_are_uniform_and_of_constant_size() {
        let tokens = 7;
        let sampler = PrefixSampler::new(PrefixRule::Uniform, tokens, 3);
        let mut counts = [[0u32; 7]; 2];
        let mut prefix = Vec::new();
        for step in 0..3000 {
            sampler.draw(step, 4..8, &mut prefix);
            assert_eq!(prefix[0] + prefix[1], 7);
            assert_eq!(Selection::next_patch(&prefix, tokens).rows.len(), 2 * tokens);
            counts[0][prefix[2] as usize] += 1;
            counts[1][prefix[3] as usize] += 1;
        }
        for counts in counts {
            // 3000 draws over 6 values: 500 each, standard deviation 20.
            assert!(
                counts[0] == 0 && counts[1..].iter().all(|&n| (400..600).contains(&n)),
                "{counts:?}"
            );
        }
        // An odd micro-batch draws its last one independently.
        sampler.draw(9, 0..3, &mut prefix);
        assert!((1..7).contains(&prefix[2]));
    }

    #[test]
    fn accumulation_draws_the_same_prefixes() {
        let sampler = PrefixSampler::new(PrefixRule::Uniform, 64, 1);
        let (mut whole, mut part, mut joined) = (Vec::new(), Vec::new(), Vec::new());
        sampler.draw(5, 0..32, &mut whole);
        for micro in 0..4 {
            sampler.draw(5, micro * 8..micro * 8 + 8, &mut part);
            joined.extend_from_slice(&part);
        }
        assert_eq!(whole, joined);
    }
}
