//! Several data sets in one `aim-cli probe`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Clone, Debug)]
pub(crate) struct SuiteArgs {
    /// Probe on every data set of a TOML file (`aim-cli config suite` prints one) and print the
    /// paper's Table 6 with this model under it; the same command goes on where it stopped
    #[arg(long, value_name = "FILE", conflicts_with_all = ["train", "val"])]
    pub(crate) suite: Option<PathBuf>,
}
