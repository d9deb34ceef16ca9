//! Multi-head softmax attention under a prefix-causal mask, on packed queries, keys and values.
//!
//! Token q sees token k when `k < prefix or k <= q` (paper 4.2, with the prefix counted as in the public code): the
//! first `prefix` tokens see each other both ways, later tokens see everything up to themselves. `prefix` is given per
//! image; 0 is plain causal attention and `tokens` is full bidirectional attention.
//!
//! - qkv, dqkv: `[batch, tokens, 3, heads, head_dim]`, as ml-aim's fused projection writes it
//! - out, dout: `[batch, tokens, heads, head_dim]`
//! - prefix: `[batch]`
//! - lse: `[batch, heads, tokens]`, the logarithm of each row's softmax denominator, kept for the backward pass
//!
//! `S = Q K^T / sqrt(head_dim)`, `P = softmax(S)` over the visible keys, `O = P V`. Backward, with
//! `D = sum over head_dim of dO O`: `dV = P^T dO`, `dS = P (dO V^T - D)`, `dQ = dS K / sqrt(head_dim)`,
//! `dK = dS^T Q / sqrt(head_dim)`.

pub mod cpu;
pub mod cuda;

/// Shape of an attention's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixAttention {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl PrefixAttention {
    /// Width of a token: `heads * head_dim`.
    pub fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Multiply-adds of one of the products `Q K^T` or `P V` when nothing is masked.
    pub fn macs(&self) -> u64 {
        (self.batch * self.heads * self.head_dim) as u64 * (self.tokens as u64 * self.tokens as u64)
    }
}
