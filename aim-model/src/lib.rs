//! AIM (El-Nouby et al., "Scalable Pre-training of Large Autoregressive Image Models", 2024) on `aim-tensor`.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | sizes and presets |
//! | [`trunk`] | patch embedding and transformer blocks |
//! | [`pixel_head`] | the pre-training head that predicts patches |
//! | [`position`] | sin-cos positions for any grid |
//! | [`objective`] | prefixes, which outputs predict, and what |
//! | [`pretrain`] | trunk, head and loss on one tape |
//! | [`classifier`] | attentive and linear probes on features |
//! | [`features`] | block outputs of a frozen trunk |
//! | [`attention_map`] | where an attentive probe looks |
//! | [`trained_head`] | a classifier from a file, with what its numbers mean |
//! | [`sampling`] | images patch by patch from the model's own predictions |
//! | [`lora`] | low-rank adapters on the trunk's attention, and PEFT's files |
//! | [`finetune`] | trunk, adapters and classifier on one tape |
//! | [`init`] | initial values |
//! | [`weights`] | reading and writing weights under ml-aim's names |
//!
//! ```
//! use aim_model::AimConfig;
//! let config = AimConfig::preset("aim-600M")?;
//! assert_eq!((config.num_patches(), config.head_dim()), (256, 128));
//! # Ok::<(), aim_model::ModelError>(())
//! ```
#![forbid(unsafe_code)]

pub mod attention_map;
pub mod classifier;
pub mod config;
mod error;
pub mod features;
pub mod finetune;
pub mod init;
pub mod lora;
pub mod objective;
pub mod pixel_head;
pub mod position;
pub mod pretrain;
pub mod sampling;
pub mod trained_head;
pub mod trunk;
pub mod weights;

pub use config::{AimConfig, ImageSize};
pub use error::ModelError;
