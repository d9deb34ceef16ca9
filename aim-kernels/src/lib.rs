//! Every kernel of AIM pre-training, on raw slices.
//!
//! One folder per op. `mod.rs` states the formula, the shapes and the layout; `cpu` is the fast CPU version. Nothing
//! here knows a tensor, a tape or a model. All matrices are row-major without gaps unless said otherwise, all values
//! f32. In backward kernels gradients of parameters accumulate (`+=`) and gradients of activations are written, or
//! accumulated where the argument `accumulate` says so. Kernels check lengths and panic on a mismatch: shapes are
//! validated where they are recorded, a level above.
//!
//! | module | what |
//! |---|---|
//! | [`cpu`] | thread pool; inside: SIMD dispatch, GEMM |
//! | [`patch_embed`] | images cut into rows of pixels, and the gradient back |
//! | [`positions`] | fixed position vectors added to rows |
//! | [`linear`] | `y = x W^T + b + residual` |
//! | [`low_rank`] | low-rank addend of a linear layer (LoRA) |
//! | [`layer_norm`] | normalisation over the last dimension with weight and bias |
//! | [`gelu`] | exact (erf) GELU |
//! | [`prefix_attention`] | softmax attention on packed qkv under a prefix-causal mask |
//! | [`gather_rows`] | rows picked by index |
//! | [`patch_loss`] | squared error of predicted patches, targets normalised or raw |
//! | [`batch_norm`] | normalisation over rows without weight and bias |
//! | [`attention_pool`] | learned queries look at all tokens |
//! | [`mean_pool`] | mean over the tokens |
//! | [`softmax_cross_entropy`] | cross-entropy of class labels or shares of classes |
//! | [`cast`] | one number type to another |
//! | [`elementwise`] | sums, means and multiples |
//! | [`global_norm`] | L2 norm of a flat slice |
//! | [`adamw`] | the optimizer's step |
//!
//! ```
//! use aim_kernels::linear::{cpu, Linear};
//! let shape = Linear { rows: 1, inputs: 2, outputs: 2 };
//! let (x, weight) = ([1.0, 2.0], [3.0, 4.0, 5.0, 6.0]);
//! let mut y = [0.0; 2];
//! cpu::forward(shape, &x, &weight, None, None, &mut y);
//! assert_eq!(y, [11.0, 17.0]);
//! ```

pub mod adamw;
pub mod attention_pool;
pub mod batch_norm;
pub mod cast;
pub mod cpu;
pub mod cuda;
pub mod elementwise;
pub mod gather_rows;
pub mod gelu;
pub mod global_norm;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
pub mod mean_pool;
pub mod memory;
pub mod patch_embed;
pub mod patch_loss;
pub mod positions;
pub mod prefix_attention;
pub mod softmax_cross_entropy;
