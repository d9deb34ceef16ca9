//! Arguments of the commands that use a model: `features`, `classify`, `reconstruct`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DeviceArgs, not_negative, spec_help};

/// What becomes of an image's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pool {
    /// Keep every token: [images, tokens, dim]
    None,
    /// Their mean: [images, dim]
    Mean,
}

/// The type of values in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floats
    Fp32,
    /// IEEE half precision: half the size, values up to 65504
    Fp16,
    /// bfloat16: half the size, three significant digits (.safetensors only)
    Bf16,
}

/// What a features file holds, for the end of the help text.
fn features_help() -> String {
    format!(
        "\
What is written:
  .safetensors  a tensor block_N per layer (or `average`), [images, dim] or [images, tokens, dim];
                `labels` (i64, -1 without one; absent when the data have none) and `indices` (i64, the
                image's number in the data), [images]; and FILE.keys.txt, a key a line
  .npy          the array of one layer or of the average; FILE.labels.npy and FILE.keys.txt beside it
  .parquet      columns key, index, label, and a fixed-size list of floats per layer (the tokens of an
                image one after the other with --pool none); needs a build with the feature `parquet`.
                It is encoded at the end, from FILE.partial: room for both is needed then
Row i is image indices[i]. Images that cannot be used have no row; FILE.skipped.jsonl names them.

While it runs there is FILE.partial, and FILE.partial.jsonl that says how much of it counts. After an
interruption of any kind the same command goes on there, and the file is the same in bits. Several
layers are copied once at the end when an image was left out: room for two copies is needed then.

{}",
        spec_help()
    )
}

#[derive(Args, Debug)]
#[command(after_help = features_help())]
pub(crate) struct Features {
    /// Run, checkpoint directory, weights (.safetensors, .pth, .bin) or BACKBONE,HEAD
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Images, in order
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// File to write: .safetensors, .npy (one layer) or .parquet; what is in them is said below
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Blocks to write: last:N or a list such as 3,4,5
    #[arg(long, value_name = "LAYERS", default_value = "last:1")]
    pub(crate) layers: String,
    /// Write the mean over the layers, the probe's input, instead of each of them
    #[arg(long)]
    pub(crate) average: bool,
    /// What becomes of an image's tokens
    #[arg(long, value_enum, default_value = "mean")]
    pub(crate) pool: Pool,
    /// Type of the values in the file
    #[arg(long, value_enum, default_value = "fp32")]
    pub(crate) dtype: Dtype,
    /// Images per forward pass; when not given, as many as make 2048 tokens on a CPU, 16384 on a GPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) batch_size: Option<u32>,
    /// Least time between two points that an interrupted run goes on from
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = not_negative)]
    pub(crate) sync_seconds: f64,
    /// Begin again, whatever an interrupted run has left
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Class names of ImageNet, for the end of the help text.
fn classify_help() -> String {
    format!(
        "\
Class names come from --classes, else from the head's file, else from the data; else classes are
numbers. ImageNet's are not shipped. Give a text file with one name a line, line 1 for class 0, or a
JSON list; ImageNet's 1000 classes are in the order of their WordNet ids (n01440764 tench first):
`sort -u LOC_synset_mapping.txt | cut -d' ' -f2-` makes the list from the file that comes with the
images at Kaggle.

Where it looks (--attention): per row an image as the model sees it, the mean attention of the
probe's heads over its patches, and each head's, over the image in grey; dark is none, bright the
largest of that map. Rows of at most 64 images.

{}",
        spec_help()
    )
}

#[derive(Args, Debug)]
#[command(after_help = classify_help())]
pub(crate) struct Classify {
    /// Run, checkpoint directory, weights (.safetensors, .pth, .bin) or BACKBONE,HEAD
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Trained head, as `probe` writes it; the checkpoint's own (ml-aim's head.*) when not given
    #[arg(long, value_name = "HEAD.safetensors")]
    pub(crate) head: Option<PathBuf>,
    /// Image files, folders of images, or other data
    #[arg(required = true, value_name = "IMAGE|SPEC")]
    pub(crate) images: Vec<String>,
    /// Names of the classes: text, one a line, or a JSON list
    #[arg(long, value_name = "FILE")]
    pub(crate) classes: Option<PathBuf>,
    /// How many classes to name for each image
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top: u32,
    /// Blocks that the head was trained on, where its file does not say: last:N or a list
    #[arg(long, value_name = "LAYERS")]
    pub(crate) layers: Option<String>,
    /// Attention heads of the head, where its file does not say; as many as the trunk has when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) heads: Option<u32>,
    /// Also draw where an attentive head looks
    #[arg(long, value_name = "PNG")]
    pub(crate) attention: Option<PathBuf>,
    /// Images per forward pass; when not given, as many as make 2048 tokens on a CPU, 16384 on a GPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) batch_size: Option<u32>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Print JSON instead of text: a list with one object for each image
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the mean and contrast of a sampled patch come from; the objective leaves them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Statistics {
    /// From the true patch, as in the other pictures
    True,
    /// From the patches left of it and above it: nothing is taken from what is to be predicted
    Neighbour,
}

#[derive(Args, Debug)]
pub(crate) struct Reconstruct {
    /// Run or checkpoint directory
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// Pictures to predict
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
    /// Patches that the model sees; half of them when not given
    #[arg(long, value_name = "N")]
    pub(crate) prefix: Option<usize>,
    /// Also sample: every predicted patch is what the model sees of it afterwards. A fourth column;
    /// costs a pass of the trunk over the rows known so far for each patch
    #[arg(long)]
    pub(crate) sample: bool,
    /// Where the mean and contrast of a sampled patch come from
    #[arg(long, value_enum, default_value = "true", requires = "sample")]
    pub(crate) statistics: Statistics,
    /// PNG to write: per row an image, its visible prefix, each patch predicted from the true ones
    /// before it, and with --sample the sampled patches
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}
