//! What the benchmarks share: sizes, a training step on synthetic images, and the yardsticks beside the times.
//!
//! `cargo bench -p benches --bench step` times whole training steps, `--bench kernels` single kernels, `--bench cuda` both
//! on a GPU, `--bench data` decoding and augmentation; a word after `--` picks cases by name (`-- nano/all_rows`). Nothing
//! here asserts a time.
//!
//! | module | what |
//! |---|---|
//! | [`sizes`] | the two model sizes that every benchmark uses |
//! | [`training`] | one training step, data loading left out |
//! | [`gpu`] | the shapes of a step and a training step on a GPU |
//! | [`fma_peak`] | multiply-adds that the cores reach at this moment |
//! | [`peak_memory`] | most memory that the process has held |
//!
//! ```
//! use benches::sizes::NANO;
//! use benches::training::{Rows, TrainingStep};
//! // A batch of 2 instead of 32: quick enough for an example.
//! let mut step = TrainingStep::new(&NANO, 2, Rows::Scored)?;
//! let first = step.run()?;
//! assert!(step.run()?.is_finite() && first > 0.0);
//! # Ok::<(), aim_model::ModelError>(())
//! ```

pub mod fma_peak;
pub mod gpu;
pub mod peak_memory;
pub mod sizes;
pub mod training;
