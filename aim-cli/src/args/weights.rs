//! `aim-cli weights`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Weights {
    /// Bring released weights, or those of another trainer, into a checkpoint directory
    #[command(after_help = SOURCES)]
    Import(WeightsImport),
    /// Write weights and a probe's head as ml-aim's AIMForImageClassification.from_pretrained reads them
    Export(WeightsExport),
    /// List every tensor with its statistics, and what is missing; exit status 1 if the weights cannot be used
    Verify(WeightsVerify),
}

/// Behind the options of what reads weights.
const SOURCES: &str = "\
Sources: .safetensors; .pth, .pt and .bin of PyTorch (no code in them is run); a directory with
model.safetensors or pytorch_model.bin, or the shards and index of either; a run; several with
commas between, such as backbone.pth,head.pth. Sizes come from config.json or aim.json beside the
first, else from the shapes: then heads are 128 wide and images 224 pixels, as in all released
models. Checkpoints of ml-l3m are known by their names.";

/// The type of floats that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsDtype {
    /// 32 bits
    Fp32,
    /// bfloat16; the statistics of a head's batch norm stay fp32
    Bf16,
}

#[derive(Args, Debug)]
pub(crate) struct WeightsImport {
    /// Weights to read; see below
    #[arg(value_name = "SRC[,SRC...]")]
    pub(crate) source: PathBuf,
    /// Directory to make, with config.json, aim.json and model.safetensors (shards above 5 GB)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Type of the written floats
    #[arg(long, value_enum, default_value = "fp32")]
    pub(crate) dtype: WeightsDtype,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct WeightsExport {
    /// Run, checkpoint directory, weights file, or BACKBONE,HEAD
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,
    /// The attentive head to export with it, such as head-attentive.safetensors of `probe`
    #[arg(long, value_name = "FILE")]
    pub(crate) head: Option<PathBuf>,
    /// Blocks that the head was trained on (last:N or a list), where the head's file does not say
    #[arg(long, value_name = "LAYERS")]
    pub(crate) layers: Option<String>,
    /// Directory to make, with config.json and model.safetensors
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Type of the written floats
    #[arg(long, value_enum, default_value = "fp32")]
    pub(crate) dtype: WeightsDtype,
    /// Split into files of at most this size, such as 5GB. One file when not given: from_pretrained of a local
    /// directory reads only model.safetensors
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_shard_size: Option<u64>,
    /// Print a summary as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = SOURCES)]
pub(crate) struct WeightsVerify {
    /// Weights to look at; see below
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// A number of bytes as Hugging Face writes it: `5GB`, `500MB`, `2GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 =
        match text.strip_prefix(digits).unwrap_or_default().to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KIB" => 1 << 10,
            "MIB" => 1 << 20,
            "GIB" => 1 << 30,
            _ => return Err("expected a size such as 5GB, 500MB or 2GiB".into()),
        };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|&size| size > 0).ok_or_else(|| "expected a size such as 5GB or 500MB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("300"), Ok(300));
        for bad in ["", "GB", "0", "-1GB", "5XB", "99999999999GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
