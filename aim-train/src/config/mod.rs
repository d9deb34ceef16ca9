//! The configuration of a run: sections, presets, and where every value came from.
//!
//! A [`RunConfig`] is built in layers, defaults < preset < file < `--set` < flags, by a
//! [`ConfigBuilder`]. The result, [`Resolved`], still knows the [`Origin`] of every value and writes
//! itself as `RUN/config.toml`, whose comments carry the origins and which parses back.
//!
//! ```
//! use aim_train::config::ConfigBuilder;
//!
//! let resolved = ConfigBuilder::new()
//!     .preset("aim-nano")?
//!     .set("train.lr=5e-4")?
//!     .flag("--steps", "train.steps", 200_i64)?
//!     .build()?;
//! assert_eq!(resolved.config.train.steps, 200);
//! assert_eq!(resolved.config.model.embed_dim, 192);
//! assert_eq!(resolved.origin("train.lr").to_string(), "--set");
//!
//! let error = ConfigBuilder::new().set("train.batchsize=8").unwrap_err();
//! assert!(error.to_string().contains("did you mean train.batch_size?"));
//! # Ok::<(), aim_train::config::ConfigError>(())
//! ```

mod diff;
mod error;
mod file;
mod layers;
mod origin;
mod preset;
mod sections;
mod suggest;
mod table;
mod validate;

pub use diff::{differences, free_on_resume};
pub use error::ConfigError;
pub use file::{Entry, read_entries};
pub use layers::{ConfigBuilder, Resolved};
pub use origin::Origin;
pub use sections::{
    Attention, CheckpointConfig, DataConfig, Gelu, LogConfig, Method, ObjectiveConfig, Order,
    Precision, Prefix, Recompute, RunConfig, Target, TrainConfig, ValidationConfig,
};

#[cfg(test)]
mod tests;
