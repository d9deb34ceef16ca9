//! The command line. Doc comments here are the help texts, completions and man pages.

pub(crate) mod finetune;
mod inference;
mod probe;
mod shared;
mod suite;
mod weights;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use inference::{Classify, Dtype, Features, Pool, Reconstruct, Statistics};
pub(crate) use probe::{Learning, LearningRecipe, Probe, ProbeKind, ProbeOptions, Select};
pub(crate) use shared::{ConfigArgs, DeviceArgs};
pub(crate) use suite::SuiteArgs;
pub(crate) use weights::{Weights, WeightsDtype, WeightsExport, WeightsImport, WeightsVerify};

/// The forms of a data specification, for the end of a help text.
fn spec_help() -> String {
    format!("Data (SPEC), {}", aim_data::spec::SPEC_FORMS)
}

const EXIT: &str = "\
Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped by a signal (run the same command to resume).";

/// Pre-train AIM image models by next-patch prediction, probe them and use them.
#[derive(Debug, Parser)]
#[command(name = "aim-cli", version, max_term_width = 100, after_help = EXIT)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Print nothing but warnings, errors and the results asked for
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pack the example images, pre-train, probe and report: the whole thing in one command
    Quickstart(Quickstart),
    /// Pre-train a model; the same command resumes an interrupted run
    Pretrain(Pretrain),
    /// Measure frozen features with classifiers on top
    Probe(Probe),
    /// Adapt a frozen trunk to labelled images with low-rank adapters (LoRA)
    Finetune(Box<finetune::Finetune>),
    /// Write the features of images to a file
    Features(Features),
    /// Name what is in images, with a trained probe; and show where it looks
    Classify(Classify),
    /// Show what the model predicts: image, visible prefix and predicted patches as a PNG
    Reconstruct(Reconstruct),
    /// Write a run as one self-contained HTML file
    Report(Report),
    /// Parameters, arithmetic and memory of a configuration, without running it
    Plan(Plan),
    /// List the named sizes
    Presets(Json),
    /// Show configurations
    #[command(subcommand)]
    Config(Config),
    /// Released weights in, ours out, and a look at either
    #[command(subcommand)]
    Weights(Weights),
    /// Look at data
    #[command(subcommand)]
    Data(Data),
    /// Measure how fast this machine does parts of the work
    #[command(subcommand)]
    Bench(Bench),
    /// Describe this machine as far as it matters here
    Doctor(Json),
    /// Compile the CUDA kernels ahead of a run, and see what they need
    #[command(subcommand)]
    Kernels(Kernels),
    /// Check the CUDA kernels on this machine's GPU, train on it against the CPU, and measure
    GpuCheck(GpuCheck),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page, or write one page per command
    Man(Man),
}

/// Where a run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// From the newest checkpoint of the run that verifies, if there is one.
    Auto,
    /// From the beginning; a run that has checkpoints is refused.
    Never,
    /// From this checkpoint.
    From(PathBuf),
}

fn parse_resume(text: &str) -> Result<Resume, String> {
    Ok(match text {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(path.into()),
    })
}

#[derive(Args, Debug)]
#[command(after_help = spec_help())]
pub(crate) struct Pretrain {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Directory of the run: configuration, metrics, checkpoints
    #[arg(long, value_name = "RUN")]
    pub(crate) out: PathBuf,
    /// auto: from the newest good checkpoint in RUN; never; or a checkpoint's directory
    #[arg(long, value_name = "WHAT", default_value = "auto", value_parser = parse_resume)]
    pub(crate) resume: Resume,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Print a summary as JSON on standard output when done
    #[arg(long)]
    pub(crate) json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0).ok_or("not above 0".into())
}

fn not_negative(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0).ok_or("not 0 or above".into())
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Directory of the run
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// HTML file to write; RUN/report.html when not given
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Plan for a GPU: a name such as H200, or its memory in GiB
    #[arg(long, value_name = "CARD", value_parser = crate::card::parse)]
    pub(crate) card: Option<crate::card::Card>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Json {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print every value and where it came from, as TOML that --config reads
    Show(ConfigShow),
    /// Print a file for probe --suite with the paper's 15 benchmarks, to be adapted
    Suite,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigShow {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print JSON instead of TOML
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Decode every image and list the ones that fail
    #[command(after_help = spec_help())]
    Check(DataCheck),
    /// Sizes, formats, classes, and the mean and standard deviation of pixels
    #[command(after_help = spec_help())]
    Stats(DataScan),
    /// Write images as WebDataset tar shards
    #[command(after_help = spec_help())]
    Pack(DataPack),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Images a second from files to training crops, by stage
    #[command(after_help = spec_help())]
    Data(BenchData),
}

#[derive(Args, Debug)]
pub(crate) struct BenchData {
    /// Images to load
    #[arg(value_name = "SPEC")]
    pub(crate) data: String,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Loading threads; 0 takes one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) workers: usize,
    /// Side of the crops, in pixels
    #[arg(long, value_name = "N", default_value_t = 224)]
    pub(crate) size: u32,
    /// Also normalise to f32, as training on a CPU does
    #[arg(long)]
    pub(crate) normalise: bool,
    /// Size whose training would take the images: says whether it would wait for them
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Card that it would run on: a name
    #[arg(long, value_name = "CARD", default_value = "H200", value_parser = crate::card::parse)]
    pub(crate) card: crate::card::Card,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DataScan {
    /// Images to look at
    #[arg(value_name = "SPEC")]
    pub(crate) data: String,
    /// Decoding threads; 0 takes one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) workers: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DataCheck {
    #[command(flatten)]
    pub(crate) scan: DataScan,
    /// Also draw samples as the model sees them (training crop and flip) into a PNG
    #[arg(long, value_name = "PNG")]
    pub(crate) sheet: Option<PathBuf>,
    /// Samples on the sheet
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) sheet_samples: u32,
    /// Side of an image on the sheet in pixels: the size that the model gets
    #[arg(long, value_name = "PIXELS", default_value_t = 112, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) sheet_size: u32,
}

#[derive(Args, Debug)]
pub(crate) struct DataPack {
    /// Images to pack
    #[arg(value_name = "SPEC")]
    pub(crate) data: String,
    /// Directory for the shards
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Shards are named NAME-000000.tar and on
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub(crate) name: String,
    /// Images in one shard
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) shard_size: u32,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kernels {
    /// Compile for an architecture and write a file; needs NVRTC, no GPU and no driver
    Build(KernelsBuild),
    /// List the kernels with the registers and the memory that they need
    List(KernelsList),
}

/// The architectures that are tested, for a help text.
fn arch_help() -> String {
    format!("Architecture: {}", aim_kernels::cuda::compile::ARCHS.join(", "))
}

#[derive(Args, Debug)]
pub(crate) struct KernelsBuild {
    #[arg(long, value_name = "ARCH", help = format!("{}, or all", arch_help()))]
    pub(crate) arch: String,
    /// File to write, a folder with --arch all; AIM_CUBIN=FILE makes a run load it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KernelsList {
    #[arg(long, value_name = "ARCH",
        help = format!("{}; that of the first GPU when not given, sm_90a without one", arch_help()))]
    pub(crate) arch: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// What of a GPU is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GpuPart {
    /// The machine's instructions that kernels are made of
    Seam,
    /// Every kernel against double precision
    Kernels,
    /// Short trainings against the CPU's, the same bits twice, a resumed run
    Training,
    /// Times of kernels, matrix products and whole training steps
    Bench,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct GpuCheck {
    /// Directory for gpu_check.json, and for the tensors that benches/gpu/compare.py reads
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Parts to run; all when not given
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub(crate) only: Vec<GpuPart>,
    /// Seed of the random inputs; another one every time when not given
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// One size, small batches and few repetitions: whether everything works, not how fast
    #[arg(long)]
    pub(crate) quick: bool,
    /// Size to measure; may be repeated; the paper's four when not given
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Vec<String>,
    /// Images in a batch of the measurements; 64 when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub(crate) batch: Option<u32>,
    /// The units that this process does for the one that started it
    #[arg(long, hide = true)]
    pub(crate) worker: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Directory for a page per command; without it the main page is printed
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Quickstart {
    /// Directory for everything it makes
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub(crate) out: PathBuf,
    /// All 60,000 Fashion-MNIST images instead of the 12,000 that come along; up to an hour
    #[arg(long)]
    pub(crate) full: bool,
    /// Folder of the IDX files; found by itself when not given
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
