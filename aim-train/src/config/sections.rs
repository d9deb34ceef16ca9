//! The sections of a configuration, their defaults and where those come from.
//!
//! "Paper" is *Scalable Pre-training of Large Autoregressive Image Models* (arXiv 2401.08541);
//! "ml-l3m" is the trainer its authors released later, which settles what the paper leaves open.

use std::path::PathBuf;

use aim_data::remote::ByteSize;
use aim_model::config::AimConfig;
use serde::{Deserialize, Serialize};

/// Everything that decides a run, one field per section of the TOML file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// `[model]`: the shape of the trunk and of the pixel head.
    pub model: AimConfig,
    /// `[objective]`: what is predicted from what.
    pub objective: ObjectiveConfig,
    /// `[data]`: sources, augmentation, normalisation, decoding.
    pub data: DataConfig,
    /// `[train]`: the optimizer and the loop.
    pub train: TrainConfig,
    /// `[validation]`: how often and on how many images.
    pub validation: ValidationConfig,
    /// `[checkpoint]`: how often to save and what to keep.
    pub checkpoint: CheckpointConfig,
    /// `[log]`: what is written while training.
    pub log: LogConfig,
}

/// `[objective]`: what is predicted from what (paper 4.1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// The family of objectives; default [`Method::Autoregressive`].
    pub method: Method,
    /// What a prediction is compared with; default [`Target::NormalizedPixels`] (paper 4.1, table 3a).
    pub target: Target,
    /// The order in which patches are predicted; default [`Order::Raster`] (paper 4.1, table 3b).
    pub order: Order,
    /// Which tokens attend to which; default [`Attention::Prefix`] (paper 4.2, table 3d).
    pub attention: Attention,
    /// How many patches the prefix has; default [`Prefix::Uniform`] (paper 4.2).
    pub prefix: Prefix,
}

/// Families of pre-training objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Predict each patch from those before it (paper eq. 1).
    #[default]
    Autoregressive,
}

/// What a predicted patch is compared with, by mean squared error (paper eq. 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Pixels standardised within their patch (unbiased variance + 1e-6), as in MAE.
    #[default]
    NormalizedPixels,
    /// Pixels normalised with the data set's mean and standard deviation only.
    RawPixels,
}

/// The order in which patches are predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Row by row from the top left.
    #[default]
    Raster,
}

/// Which tokens attend to which during pre-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// `key < S or key <= query`: the first S tokens see each other, and only patches after them
    /// are scored.
    #[default]
    Prefix,
    /// `key <= query`, every patch but the first is scored.
    Causal,
}

/// How many patches the prefix of an image has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PrefixRepr", into = "PrefixRepr")]
pub enum Prefix {
    /// S uniform on `1..=K-1`, drawn for pairs of images as (S, K - S), which keeps the number of
    /// scored patches constant.
    #[default]
    Uniform,
    /// The same S for every image; written as an integer.
    Fixed(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"uniform\" or a number of patches such as 16")]
enum PrefixRepr {
    Fixed(usize),
    Word(String),
}

impl TryFrom<PrefixRepr> for Prefix {
    type Error = String;

    fn try_from(repr: PrefixRepr) -> Result<Self, String> {
        match repr {
            PrefixRepr::Fixed(patches) => Ok(Self::Fixed(patches)),
            PrefixRepr::Word(word) if word == "uniform" => Ok(Self::Uniform),
            PrefixRepr::Word(word) => Err(format!(
                "unknown value {word:?}, expected \"uniform\" or a number of patches such as 16"
            )),
        }
    }
}

impl From<Prefix> for PrefixRepr {
    fn from(prefix: Prefix) -> Self {
        match prefix {
            Prefix::Uniform => Self::Word("uniform".to_owned()),
            Prefix::Fixed(patches) => Self::Fixed(patches),
        }
    }
}

/// `[data]`: sources, augmentation, normalisation, decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Training sources, `SPEC` or `SPEC@weight`; `--data` on the command line. No default.
    pub train: Vec<String>,
    /// Source of the validation images, `--val`. Default empty: every n-th image of the
    /// first source of `train` is held out.
    pub val: String,
    /// Least and greatest area of a random crop, as a share of the image. Default `[0.4, 1.0]`
    /// (paper 5.2, table 3c).
    pub scale: [f64; 2],
    /// Least and greatest width / height of a random crop. Default `[3/4, 4/3]` (ml-l3m).
    pub ratio: [f64; 2],
    /// Probability of a horizontal flip. Default 0.5 (ml-l3m).
    pub flip: f64,
    /// Largest random changes of brightness, contrast, saturation and hue, as torchvision's
    /// `ColorJitter` takes them. Default `[0, 0, 0, 0]`: off (paper 5.2).
    pub color_jitter: [f64; 4],
    /// Mean of each channel on a scale of 0 to 1. Default ImageNet's (ml-l3m).
    pub mean: [f64; 3],
    /// Standard deviation of each channel on a scale of 0 to 1. Default ImageNet's (ml-l3m).
    pub std: [f64; 3],
    /// Decoding threads; 0, the default, takes one per core.
    pub workers: usize,
    /// Largest share of the images tried that may be unusable; more stop the run. The first 10 are
    /// tolerated whatever their share. Each is named in `skipped.jsonl` and replaced by the next
    /// in the order. Default 0.1.
    pub max_bad_fraction: f64,
    /// Shards in a window of the shuffle: samples are shuffled among so many neighbours in the
    /// epoch's order of shards, and twice as many shards are needed at hand. 0, the default,
    /// shuffles local data as a whole and remote shards in windows of 16.
    pub window_shards: usize,
    /// Folder for whole shards of object stores and web servers on the local disk. Default empty:
    /// what `AIM_SHARD_CACHE` in the environment names, if anything. Refused by a program that was
    /// built without the feature `object-store`.
    pub cache_dir: PathBuf,
    /// Most bytes of shards in that folder, such as `"20GiB"`. 0, the default: what
    /// `AIM_SHARD_CACHE_BYTES` says, else 64 GiB.
    pub cache_bytes: ByteSize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            val: String::new(),
            scale: [0.4, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            flip: 0.5,
            color_jitter: [0.0; 4],
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            workers: 0,
            max_bad_fraction: 0.1,
            window_shards: 0,
            cache_dir: PathBuf::new(),
            cache_bytes: ByteSize(0),
        }
    }
}

/// `[train]`: the optimizer and the loop (paper table 1 and ml-l3m).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps. Default 1000; the paper takes 500,000 (0.6B) or 1,200,000 (paper 5.1).
    pub steps: u64,
    /// Images in one micro-batch. A step sees `batch_size * accumulate` images; the paper's 4096
    /// (table 1) is the preset's. Default 32.
    pub batch_size: usize,
    /// Micro-batches whose gradients make one step. Default 1.
    pub accumulate: usize,
    /// Peak learning rate, the same for all sizes. Default 1e-3 (paper table 1).
    pub lr: f64,
    /// AdamW's decay rates of the two moments. Default `[0.9, 0.95]` (ml-l3m).
    pub betas: [f64; 2],
    /// AdamW's epsilon. Default 1e-8 (ml-l3m).
    pub eps: f64,
    /// Decoupled weight decay of matrices; biases and norms have none. Default 0.05 (ml-l3m).
    pub weight_decay: f64,
    /// Share of the steps in which the learning rate rises linearly from 1e-6 to `lr`; a half
    /// cosine to 0 follows. Default 0.025 (ml-l3m).
    pub warmup_fraction: f64,
    /// Greatest global L2 norm of the gradient; longer ones are scaled down. Default 1 (ml-l3m).
    pub clip: f64,
    /// Decides initialisation, order, crops and prefixes. Default 0.
    pub seed: u64,
    /// Arithmetic of activations. Default [`Precision::Auto`]; the paper uses bf16 (4.2).
    pub precision: Precision,
    /// What the backward pass computes again instead of keeping. Default [`Recompute::Auto`].
    pub recompute: Recompute,
    /// Which GELU. Default [`Gelu::Erf`] (ml-aim).
    pub gelu: Gelu,
    /// Computing threads; 0, the default, takes one per core. Does not change any bit.
    pub threads: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 32,
            accumulate: 1,
            lr: 1e-3,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            warmup_fraction: 0.025,
            clip: 1.0,
            seed: 0,
            precision: Precision::Auto,
            recompute: Recompute::Auto,
            gelu: Gelu::Erf,
            threads: 0,
        }
    }
}

impl TrainConfig {
    /// Images one optimizer step sees: `batch_size * accumulate`.
    pub fn images_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }
}

/// Arithmetic of activations and matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 on CUDA devices, fp32 on the CPU.
    #[default]
    Auto,
    /// 32-bit floating point throughout; on the CPU.
    Fp32,
    /// bfloat16 with fp32 masters, statistics and losses; on CUDA devices.
    Bf16,
}

/// The activation's form while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// Exact: `x Phi(x)`.
    #[default]
    Erf,
    /// The tanh approximation, which cuBLASLt computes inside the products around it; on CUDA devices.
    Tanh,
}

/// What the backward pass computes again instead of keeping, each level adding to the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// On CUDA devices the least that fits their memory, on the CPU nothing.
    #[default]
    Auto,
    /// Keep every activation: fastest, most memory.
    None,
    /// Compute LayerNorm outputs again.
    Norms,
    /// Compute LayerNorm and GELU outputs again.
    NormsGelu,
    /// Keep only each block's input: least memory, one more forward pass (ml-l3m's setting).
    Block,
}

/// `[validation]`: loss on images that are never trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Validate after every so many steps and after the last; 0 only after the last. Default 250.
    pub every_steps: u64,
    /// Images in the fixed validation set; 0 switches validation off. Default 512.
    pub num_images: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every_steps: 250, num_images: 512 }
    }
}

/// `[checkpoint]`: how often to save and what to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Save after every so many steps and after the last; 0 only after the last. Default 500.
    pub every_steps: u64,
    /// Newest checkpoints that are kept. Default 2.
    pub keep: usize,
    /// Also keep every checkpoint whose step is a multiple of this; 0, the default, keeps none.
    pub keep_every_steps: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 500, keep: 2, keep_every_steps: 0 }
    }
}

/// `[log]`: what is written while training, besides `metrics.jsonl`, which always has every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Steps between plain progress lines when standard error is no terminal. Default 50.
    pub every_steps: u64,
    /// Also write TensorBoard event files. Default true.
    pub tensorboard: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every_steps: 50, tensorboard: true }
    }
}
