//! Attention pooling: learned queries look at all tokens of an image (paper 4.2, the attentive probe; ml-aim's
//! `AttentionPoolingClassifier`).
//!
//! Keys `K = x Wk^T` and values `V = x Wv^T` have heads; per head `P = softmax(Q K^T / sqrt(head_dim))` over the
//! tokens and `out = mean over queries of P V`; heads are concatenated. The public code has the square root, the
//! paper's equation 4 leaves it out.
//!
//! Neither keys nor values are ever computed. There are few queries, so the matrices move to their side of the
//! products, head by head, which costs `head_dim` times less:
//!
//! ```text
//! U = Q Wk / sqrt(head_dim)      [heads, queries, dim]
//! P = softmax(U x^T)             over the tokens
//! pooled = mean over queries of P x
//! out = pooled Wv^T
//! ```
//!
//! - x, dx: `[batch, tokens, dim]` with `dim = heads * head_dim`; out, dout: `[batch, heads, head_dim]`
//! - q: `[queries, heads, head_dim]`; Wk, Wv: `[heads * head_dim, dim]`; all three are parameters
//! - kept for the backward pass: P `[batch, heads, queries, tokens]`, pooled `[batch, heads, dim]`, U
//!
//! Backward, with `G = dout Wv` and `g = G x^T / queries`: `dWv += dout^T pooled`, `dS = P (g - sum(P g))`,
//! `dU = dS x`, `dQ += dU Wk^T / sqrt(head_dim)`, `dWk += Q^T dU / sqrt(head_dim)`,
//! `dx = dS^T U + mean over queries of P^T G`.
//!
//! [`grid`] pools the same normalised features for several independent sets of weights in one pass: a grid of probes.

pub mod cpu;
pub mod cuda;
pub mod grid;
mod products;
mod tokens;
mod vector;

pub use tokens::Tokens;

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

    /// Values of U: `heads * queries * dim`.
    pub fn folded(&self) -> usize {
        self.heads * self.queries * self.dim()
    }

    /// Values of `pooled`: `batch * heads * dim`.
    pub fn pooled(&self) -> usize {
        self.batch * self.heads * self.dim()
    }

    /// Values kept for the backward pass.
    pub fn kept(&self) -> usize {
        self.batch * self.scores() + self.pooled() + self.folded()
    }

    /// Floating-point operations of the forward pass, two for each multiplication and addition.
    pub fn flops(&self) -> u64 {
        let square = (self.dim() * self.dim()) as u64;
        let per_token = (self.heads * (self.queries + 1) * self.dim()) as u64;
        2 * (self.queries as u64 * square
            + (self.batch * self.tokens) as u64 * per_token
            + self.batch as u64 * square)
    }
}
