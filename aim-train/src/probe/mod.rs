//! Measuring frozen features: attentive and linear probes, and nearest neighbours (paper 4.2 and 5).
//!
//! | module | what |
//! |---|---|
//! | [`features`] | going over a source's images; features in memory |
//! | [`store`] | features of every image, computed once, in memory or on disk |
//! | [`training`] | training and evaluating a grid of classifiers on them |
//! | [`augmented`] | training where the trunk runs on fresh crops in each epoch |
//! | [`neighbours`] | k nearest neighbours |
//! | [`accuracy`] | what was right, and what was taken for what |

pub mod accuracy;
pub mod augmented;
pub mod features;
pub mod neighbours;
pub mod store;
pub mod training;

pub use accuracy::{Accuracy, Answers, rank};
pub use features::{FeatureSet, Features, pixels};
pub use neighbours::{Neighbours, nearest};
pub use store::{FeatureDtype, FeatureStore, View};
pub use training::{GridTrainer, Point, ProbeTraining, Trained, best, evaluate, train};
