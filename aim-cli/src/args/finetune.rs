//! Arguments of `finetune`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{DeviceArgs, not_negative, positive, spec_help};

/// What is done to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AugmentArg {
    /// As in evaluation
    None,
    /// Crops of 60 to 100 % of the area, flips
    Light,
    /// Crops of 8 to 100 % of the area, flips, colours changed by up to 30 % (the paper's for classifiers)
    Paper,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(arg_required_else_help = true)]
#[command(after_help = spec_help())]
pub(crate) struct Finetune {
    #[command(subcommand)]
    pub(crate) command: Option<FinetuneCommand>,
    #[command(flatten)]
    pub(crate) train: FinetuneTrain,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FinetuneCommand {
    /// Measure adapters and their classifier on labelled images
    Eval(FinetuneEval),
    /// Write the weights with the adapters in them, as ml-aim loads them
    Merge(FinetuneMerge),
    /// Write the weights that a merged directory was made of, the same in every bit
    Unmerge(FinetuneUnmerge),
}

/// What is required is there unless a subcommand is.
#[derive(Args, Debug)]
pub(crate) struct FinetuneTrain {
    /// Run, checkpoint directory or model.safetensors: the trunk, which stays as it is
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Labelled images to train on
    #[arg(long, value_name = "SPEC", required = true)]
    pub(crate) train: Option<String>,
    /// Labelled images to measure on after every epoch
    #[arg(long, value_name = "SPEC", required = true)]
    pub(crate) val: Option<String>,
    /// Directory of the run: metrics, checkpoints, and at the end the adapters in PEFT's files; the same command
    /// resumes
    #[arg(long, value_name = "RUN", required = true)]
    pub(crate) out: Option<PathBuf>,
    /// Blocks whose outputs the classifier sees the mean of: last:N or a list such as 3,4,5
    #[arg(long, value_name = "LAYERS", default_value = "last:6")]
    pub(crate) layers: String,
    /// Start from this classifier, such as probe's head-attentive.safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) head: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lora: LoraArgs,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Print the last evaluation as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Adapters")]
pub(crate) struct LoraArgs {
    /// Rank of every adapter
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) lora_rank: u32,
    /// Adapters are multiplied by ALPHA / R; R by default (ml-aim has 1)
    #[arg(long, value_name = "ALPHA", value_parser = positive)]
    pub(crate) lora_alpha: Option<f64>,
    /// What of the attention has adapters: some of q, k, v, proj; or qkv as one layer
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "q,v,proj")]
    pub(crate) lora_targets: Vec<String>,
    /// The blocks that have adapters, last:N or a list; all that the classifier sees by default
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) lora_blocks: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Training")]
pub(crate) struct RecipeArgs {
    /// Passes over the training images [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) epochs: Option<u32>,
    /// Images in a micro-batch [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub(crate) batch_size: Option<u32>,
    /// Micro-batches in an update [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) accumulate: Option<u32>,
    /// Peak learning rate [default: 1e-3]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub(crate) lr: Option<f64>,
    /// Last learning rate [default: 1e-5]
    #[arg(long, value_name = "RATE", value_parser = not_negative)]
    pub(crate) min_lr: Option<f64>,
    /// Epochs of linear warm-up [default: 0.5]
    #[arg(long, value_name = "N", value_parser = not_negative)]
    pub(crate) warmup_epochs: Option<f64>,
    /// Decoupled weight decay of matrices [default: 0.1]
    #[arg(long, value_name = "DECAY", value_parser = not_negative)]
    pub(crate) weight_decay: Option<f64>,
    /// Largest gradient norm [default: 3]
    #[arg(long, value_name = "NORM", value_parser = positive)]
    pub(crate) clip: Option<f64>,
    /// Alpha of mixup's Beta distribution, 0 for none [default: 0.8]
    #[arg(long, value_name = "ALPHA", value_parser = not_negative)]
    pub(crate) mixup: Option<f64>,
    /// Share of the target spread over all classes [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = not_negative)]
    pub(crate) label_smoothing: Option<f64>,
    /// What is done to training images [default: light]
    #[arg(long, value_enum)]
    pub(crate) augment: Option<AugmentArg>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Steps between checkpoints; the ends of epochs have one in any case
    #[arg(long, value_name = "N")]
    pub(crate) checkpoint_steps: Option<u64>,
    /// Threads that load images; one a core by default
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<u32>,
    /// What the backward pass computes again to save memory: none, norms, norms_gelu or block; by default none on the
    /// CPU, and as little as fits on a GPU
    #[arg(long, value_name = "LEVEL", value_parser = ["none", "norms", "norms_gelu", "block"])]
    pub(crate) recompute: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = spec_help())]
pub(crate) struct FinetuneEval {
    /// The weights that the adapters were trained on
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Run of finetune, or a directory of PEFT
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// Labelled images
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// A classifier other than the adapter's own
    #[arg(long, value_name = "FILE")]
    pub(crate) head: Option<PathBuf>,
    /// Blocks whose outputs the classifier sees; those of its training by default
    #[arg(long, value_name = "LAYERS")]
    pub(crate) layers: Option<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FinetuneMerge {
    /// The weights that the adapters were trained on
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Run of finetune, or a directory of PEFT
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// New directory: config.json, model.safetensors, and what unmerge needs
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Do not keep the weights that change, a third of the trunk: unmerge will not be possible
    #[arg(long)]
    pub(crate) no_undo: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FinetuneUnmerge {
    /// A directory that finetune merge wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// New directory for the weights of before
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}
