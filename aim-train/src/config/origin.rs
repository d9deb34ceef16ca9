//! Where a value came from.

use std::path::PathBuf;

/// Where a configuration value came from, weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A named preset.
    Preset(String),
    /// A TOML file.
    File {
        /// Path as it was given.
        path: PathBuf,
        /// Line of the value, from 1.
        line: usize,
    },
    /// `--set section.key=value`.
    Set,
    /// A flag of its own, such as `--steps`.
    Flag(String),
}

impl Origin {
    /// Layers of higher rank win; within one, the last.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Preset(_) => 1,
            Self::File { .. } => 2,
            Self::Set => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Set => f.write_str("--set"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}
