//! Attention pooling: learned queries look at all tokens of an image (paper 4.2, the attentive probe).
//!
//! Per head, `P = softmax(Q K^T / sqrt(head_dim))` over the tokens and `out = mean over queries of P V`; heads are
//! concatenated. The public code has the square root, the paper's equation 4 leaves it out.
//!
//! - q, dq: `[queries, heads, head_dim]`, parameters
//! - k, v, dk, dv: `[batch, tokens, heads, head_dim]`; out, dout: `[batch, heads, head_dim]`
//! - p: `[batch, heads, queries, tokens]`, kept for the backward pass
//!
//! Backward, with `g = dout V^T / queries`: `dV = mean over queries of P^T dout`, `dS = P (g - sum(P g))`,
//! `dQ += sum over batch of dS K / sqrt(head_dim)`, `dK = dS^T Q / sqrt(head_dim)`.

pub mod cpu;

/// Shape of an attention pooling's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPool {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Learned queries.
    pub queries: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionPool {
    /// Width of a token: `heads * head_dim`.
    pub fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Probabilities of an image: `heads * queries * tokens`.
    pub fn scores(&self) -> usize {
        self.heads * self.queries * self.tokens
    }
}
