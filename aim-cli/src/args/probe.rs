//! `aim-cli probe`.

use std::path::PathBuf;

use aim_train::probe::FeatureDtype;
use clap::{Args, ValueEnum};

use super::{DeviceArgs, SuiteArgs, spec_help};

/// Classifiers on frozen features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ProbeKind {
    /// Attention pooling with a learned query, then a linear layer (the paper's)
    Attentive,
    /// A linear layer on mean-pooled features
    Linear,
    /// k nearest neighbours by cosine similarity of mean-pooled features
    Knn,
}

/// Settings to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LearningRecipe {
    /// 20 epochs, batch 256, one learning rate (1e-3) and weight decay (0.1), features computed once
    Quick,
    /// The paper's: 100 epochs, batch 512 (1024 and 5 epochs of warm-up from a million images on), 7 learning rates
    /// by 2 weight decays, random crops in each epoch
    Paper,
}

/// What decides between the points of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Select {
    /// The best on the validation images is reported, as the paper does
    Val,
    /// Training images that are held out decide; the best on the validation images is reported beside it
    Holdout,
}

/// In what type features are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// As the trunk gives them
    Fp32,
    /// Half the room
    Bf16,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = spec_help())]
pub(crate) struct Probe {
    /// Run, checkpoint directory, weights (.safetensors, .pth, .bin) or BACKBONE,HEAD
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Labelled images to train the classifier on
    #[arg(long, value_name = "SPEC", required_unless_present = "suite")]
    pub(crate) train: Option<String>,
    /// Labelled images to measure on
    #[arg(long, value_name = "SPEC", required_unless_present = "suite")]
    pub(crate) val: Option<String>,
    #[command(flatten)]
    pub(crate) suite: SuiteArgs,
    #[command(flatten)]
    pub(crate) options: ProbeOptions,
    /// Directory for results.json, pictures and the trained heads
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Print the results as JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// How features are measured, whatever the images.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProbeOptions {
    /// Which classifier; may be repeated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "attentive")]
    pub(crate) kind: Vec<ProbeKind>,
    /// Blocks whose outputs are averaged: last:N, a list such as 3,4,5, best (around two thirds of the depth; those
    /// that ml-aim names for the released sizes), or sweep: every window of --window blocks, and every single one
    #[arg(long, value_name = "LAYERS", default_value = "last:6")]
    pub(crate) layers: String,
    /// Blocks in a window of --layers sweep
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) window: u32,
    /// Repeat the classifier's training with this many seeds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) seeds: u32,
    /// Also probe the same model with random weights
    #[arg(long)]
    pub(crate) untrained: bool,
    #[command(flatten)]
    pub(crate) learning: Learning,
    #[command(flatten)]
    pub(crate) cache: Cache,
    /// Numbers of neighbours of --kind knn, all in one pass; DINO's by default
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "10,20,100,200",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) k: Vec<u32>,
    /// Temperature of the neighbours' votes
    #[arg(long, value_name = "T", default_value_t = 0.07, value_parser = super::positive)]
    pub(crate) temperature: f64,
}

/// How classifiers are trained.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training of attentive and linear classifiers")]
pub(crate) struct Learning {
    /// Settings that hold where none of the following is given
    #[arg(long, value_enum, default_value = "quick")]
    pub(crate) recipe: LearningRecipe,
    /// Passes over the training images
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) epochs: Option<u32>,
    /// Passes over which the learning rate rises
    #[arg(long, value_name = "N")]
    pub(crate) warmup_epochs: Option<u32>,
    /// Images in a batch of the classifier's training
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub(crate) batch_size: Option<u32>,
    /// Peak learning rates; a grid of classifiers is trained in one pass, one for each rate and weight decay
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = super::positive)]
    pub(crate) lr: Vec<f64>,
    /// Decoupled weight decays of the classifier's matrices
    #[arg(long, value_name = "DECAY", value_delimiter = ',', value_parser = super::not_negative)]
    pub(crate) weight_decay: Vec<f64>,
    /// What decides between the points of the grid
    #[arg(long, value_enum, default_value = "val")]
    pub(crate) select: Select,
    /// Share of the training images that --select holdout holds out
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub(crate) holdout: f64,
    /// Train on other random crops in each epoch, flipped, with changes of colour and RandAugment, for which the trunk
    /// runs each time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) augment: Option<bool>,
}

impl Learning {
    /// Whether training images are augmented: if not said, as the recipe has it.
    pub(crate) fn augment(&self) -> bool {
        self.augment.unwrap_or(self.recipe == LearningRecipe::Paper)
    }
}

/// Where features that are computed once are kept.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Features that are computed once")]
pub(crate) struct Cache {
    /// Type that they are kept in
    #[arg(long, value_enum, value_name = "TYPE", default_value = "fp32")]
    pub(crate) feature_dtype: Dtype,
    /// Memory for them, such as 512MiB; what does not fit goes to files under --out until the end
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_bytes)]
    pub(crate) cache_bytes: u64,
    /// Disk space for them
    #[arg(long, value_name = "SIZE", default_value = "200GiB", value_parser = parse_bytes)]
    pub(crate) cache_disk_bytes: u64,
}

impl Cache {
    /// The type that features are kept in.
    pub(crate) fn dtype(&self) -> FeatureDtype {
        match self.feature_dtype {
            Dtype::Fp32 => FeatureDtype::Fp32,
            Dtype::Bf16 => FeatureDtype::Bf16,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|v: &f64| *v > 0.0 && *v < 1.0);
    value.ok_or("expected a share between 0 and 1".into())
}

/// `1073741824`, `512MiB`, `4G`: a number of bytes; units are powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("expected bytes, or a number with KiB, MiB, GiB or TiB".into()),
    };
    let number: u64 = digits.trim().parse().map_err(|_| "expected a whole number".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        assert_eq!(parse_bytes("17"), Ok(17));
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("1KB"), Ok(1024));
        for bad in ["", "GiB", "4x", "-1", "99999999999T", "1.5G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
