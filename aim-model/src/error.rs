//! What can go wrong while a model is described, built or loaded.

use std::path::PathBuf;

use crate::config::PRESETS;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A preset name that does not exist.
    #[error("unknown preset {name:?}; presets: {}", PRESETS.join(", "))]
    UnknownPreset {
        /// The name asked for.
        name: String,
    },
    /// A configuration value that cannot work.
    #[error("model.{key} = {value}: expected {expected}")]
    BadConfig {
        /// Key in `[model]`.
        key: &'static str,
        /// The value found.
        value: String,
        /// What would work.
        expected: String,
    },
    /// A setting of adapters that cannot work.
    #[error("lora.{key} = {value}: expected {expected}")]
    BadLora {
        /// Which setting.
        key: &'static str,
        /// The value found.
        value: String,
        /// What would work.
        expected: String,
    },
    /// A parameter that a layer needs and the layout lacks.
    #[error("parameter {name}: not in the layout")]
    MissingParameter {
        /// Its name.
        name: String,
    },
    /// A parameter of another shape than its layer has.
    #[error("parameter {name}: expected {expected}, found {found}")]
    ParameterShape {
        /// Its name.
        name: String,
        /// The layer's shape.
        expected: aim_tensor::Shape,
        /// The layout's shape.
        found: aim_tensor::Shape,
    },
    /// A configuration file that cannot be read.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Weights that do not fit the configuration.
    #[error("{}: tensor {name}: expected {expected}, found {found}", path.display())]
    BadWeight {
        /// File or directory of the weights.
        path: PathBuf,
        /// Tensor name.
        name: String,
        /// What the configuration asks for.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// Tensors or files failed below this crate.
    #[error(transparent)]
    Tensor(#[from] aim_tensor::TensorError),
}
