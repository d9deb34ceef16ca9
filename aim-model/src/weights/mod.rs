//! Weights in and out under ml-aim's names.
//!
//! | module | what |
//! |---|---|
//! | [`Checkpoint`] | weights under our names from whatever holds them: safetensors, PyTorch's files, ml-l3m's names |
//! | `config` | `config.json` and `aim.json` beside them |
//! | `infer` | the model's sizes where neither is there, from the shapes |
//! | `l3m` | how ml-l3m names things |
//! | `load` | into [`aim_tensor::Parameters`], and from there to files |
//! | [`released`] | the files that Apple published: names, hashes, probed layers |
//! | [`transfer`] | which tensors an import or export writes |
//! | [`verify`] | what is there, what is missing, and whether its numbers are sound |

mod checkpoint;
mod config;
mod infer;
mod l3m;
mod load;
pub mod released;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod verify;

pub use checkpoint::Checkpoint;
pub(crate) use config::read_json;
pub use config::{MlAimConfig, read_config, read_ml_aim_config};
pub use load::{load, load_like, load_some, refs, tensors};
