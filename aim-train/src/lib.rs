//! AIM pre-training as a loop, and everything around it that must not break.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | a run's configuration, every value with where it came from |
//! | [`trainer`] | the loop, its validation, what a checkpoint holds |
//! | [`optimizer`] | AdamW over the flat arena, clipping |
//! | [`schedule`] | learning rate over steps |
//! | [`checkpoint`] | directories that are complete or not there |
//! | [`metrics`] | `metrics.jsonl` and TensorBoard files |
//! | [`probe`] | classifiers on frozen features |
//! | [`features`] | features of a whole source as a file |
//! | [`finetune`] | low-rank adapters and a classifier, trained together |
//! | [`durable`] | writing so that it lasts |
//! | [`lock`] | one trainer per run directory |
//! | [`signals`] | stopping when asked |
//!
//! ```
//! use aim_train::config::ConfigBuilder;
//! use aim_train::signals::Stop;
//! use aim_train::trainer::{DeviceChoice, Event, Outcome, Resume, Trainer};
//!
//! # fn main() -> Result<(), aim_train::TrainError> {
//! let dir = std::env::temp_dir().join(format!("aim-doctest-{}", std::process::id()));
//! let mut builder = ConfigBuilder::new();
//! for setting in [
//!     "model.img_size=8",
//!     "model.patch_size=4",
//!     "model.embed_dim=16",
//!     "model.num_blocks=1",
//!     "model.num_heads=2",
//!     "model.head_width=16",
//!     "model.head_depth=1",
//!     "data.train=['synthetic:stripes,n=64,size=8']",
//!     "train.steps=3",
//!     "train.batch_size=4",
//!     "validation.num_images=8",
//! ] {
//!     builder = builder.set(setting)?;
//! }
//! let mut losses = Vec::new();
//! let mut observer = |event: Event<'_>| {
//!     if let Event::Step(metrics) = event {
//!         losses.push(metrics.loss);
//!     }
//! };
//! let mut trainer = Trainer::open(
//!     &builder.build()?,
//!     &dir,
//!     &Resume::Auto,
//!     DeviceChoice::Cpu,
//!     &mut observer,
//! )?;
//! let outcome = trainer.run(&Stop::detached(), &mut observer)?;
//! assert_eq!((outcome, losses.len()), (Outcome::Finished, 3));
//! # drop(trainer);
//! # std::fs::remove_dir_all(dir).unwrap();
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod durable;
mod error;
pub mod features;
pub mod finetune;
pub mod lock;
pub mod metrics;
pub mod optimizer;
pub mod probe;
pub mod schedule;
pub mod signals;
pub mod trainer;

pub use error::{Difference, TrainError};
