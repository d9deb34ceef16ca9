//! placeholder

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod durable;
mod error;
pub mod lock;
pub mod metrics;
pub mod schedule;
pub mod signals;

pub use error::{Difference, TrainError};
