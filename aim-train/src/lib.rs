//! placeholder

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod durable;
mod error;
pub mod lock;
pub mod metrics;
pub mod optimizer;
pub mod probe;
pub mod schedule;
pub mod signals;
pub mod trainer;

pub use error::{Difference, TrainError};
