//! Measuring frozen features: attentive and linear probes, and nearest neighbours (paper 4.2 and 5).
//!
//! | module | what |
//! |---|---|
//! | [`features`] | features of a whole source, computed once |
//! | [`training`] | training and evaluating a classifier on them |
//! | [`neighbours`] | k nearest neighbours |

pub mod features;
pub mod neighbours;
pub mod training;

pub use features::{FeatureSet, extract, pixels};
pub use neighbours::{Neighbours, nearest};
pub(crate) use training::rank;
pub use training::{Accuracy, ProbeTraining, evaluate, train};
