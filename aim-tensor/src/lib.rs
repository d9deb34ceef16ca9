//! A minimal tensor and autograd crate: a linear tape of coarse ops, planned before it runs.
//!
//! A [`Tape`] is recorded from shapes alone, a [`Plan`] gives every value a place in one arena, a [`Session`] runs it,
//! again and again, without allocating. Tensors are contiguous and row-major.
//!
//! | module | what |
//! |---|---|
//! | [`shape`] | shapes and dtypes |
//! | [`tape`] | the record of ops; recording methods are in `ops` |
//! | [`plan`] | order of work, recomputation, memory |
//! | [`session`] | running a plan; each op's kernel call is in `forward` and `backward` |
//! | [`device`] | where parameters live and tapes run |
//! | `precision` | which values are f32 and which bf16 |
//! | `fused` | GELUs inside products |
//! | [`cuda`] | the same plan on a GPU |
//! | [`parameters`] | weights and gradients in flat arenas |
//! | [`count`] | FLOPs of a tape |
//! | [`rng`] | counter-based random numbers |
//! | [`io`] | safetensors, PyTorch and npy files |
//!
//! ```
//! use std::sync::Arc;
//! use aim_tensor::{DType, ParamLayout, ParamSpec, Parameters, PlanOptions, Session, Tape};
//!
//! // A linear classifier on one image of two values: logits = x W^T, W = [[1, 0], [0, 1]].
//! let weight = ParamSpec { name: "weight".into(), shape: [2, 2].into(), decay: true, trainable: true };
//! let layout = Arc::new(ParamLayout::new(vec![weight])?);
//! let id = layout.id("weight").unwrap();
//! let mut tape = Tape::new(layout.clone());
//! let x = tape.input([1, 2], DType::F32);
//! let labels = tape.input([1], DType::I32);
//! let logits = tape.linear(x, id, None, None)?;
//! let loss = tape.cross_entropy(logits, labels)?;
//! tape.set_loss(loss);
//!
//! let mut params = Parameters::new(layout)?;
//! params.value_mut(id).copy_from_slice(&[1.0, 0.0, 0.0, 1.0]);
//! let mut session = Session::new(tape, PlanOptions { backward: true, ..Default::default() })?;
//! session.write_f32(x, &[1.0, 1.0])?;
//! session.write_i32(labels, &[0])?;
//! session.forward(&params)?;
//! assert!((session.read(loss)?[0] - 2.0_f32.ln()).abs() < 1e-6);
//! session.backward(&mut params, 1.0)?;
//! assert_eq!(params.grad(id), Some([-0.5, -0.5, 0.5, 0.5].as_slice()));
//! # Ok::<(), aim_tensor::TensorError>(())
//! ```
#![deny(unsafe_code)]

mod backward;
pub mod count;
pub mod cuda;
pub mod device;
mod error;
mod forward;
mod fused;
pub mod io;
mod kernel_shape;
mod ops;
pub mod parameters;
pub mod plan;
mod precision;
pub mod rng;
pub mod session;
pub mod shape;
pub mod tape;

pub use device::{Device, Storage};
pub use error::TensorError;
pub use parameters::{ParamId, ParamLayout, ParamSpec, Parameters};
pub use plan::{Category, GeluForm, Memory, Plan, PlanOptions, Recompute};
pub use rng::Philox;
pub use session::Session;
pub use shape::{DType, Shape};
pub use tape::{LowRank, Op, Tape, Var};
