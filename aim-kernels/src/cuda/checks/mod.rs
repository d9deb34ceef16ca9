//! Every kernel against double precision, with fresh random inputs and poisoned outputs.
//!
//! The same checks run in the tests, where the device is an emulator, and on a card. A check computes its reference in
//! f64 from exactly the values that the device gets, so that the error it reports is the kernel's own.

mod adamw;
mod attention_pool;
mod batch_norm;
mod bias;
mod cast;
mod elementwise;
mod gather_rows;
mod gelu;
mod global_norm;
mod lab;
mod layer_norm;
mod linear;
mod low_rank;
mod masters;
mod matrix;
mod mean_pool;
mod patch_embed;
mod patch_loss;
mod positions;
mod prefix_attention;
mod seam;
mod shifted;
mod softmax_cross_entropy;
mod staging;

pub use lab::{Check, Lab};

/// Runs the checks of all kernels whose name contains `filter`.
///
/// # Errors
/// When the device fails; a wrong result is no error here but a [`Check`] that did not pass.
pub fn run(lab: &mut Lab, filter: &str) -> Result<Vec<Check>, super::CudaError> {
    type Run = fn(&mut Lab, &mut Vec<Check>) -> Result<(), super::CudaError>;
    let all: &[(&str, Run)] = &[
        ("adamw", adamw::run),
        ("attention_pool", attention_pool::run),
        ("batch_norm", batch_norm::run),
        ("bias", bias::run),
        ("cast", cast::run),
        ("elementwise", elementwise::run),
        ("gather_rows", gather_rows::run),
        ("gelu", gelu::run),
        ("global_norm", global_norm::run),
        ("layer_norm", layer_norm::run),
        ("linear", linear::run),
        ("low_rank", low_rank::run),
        ("mean_pool", mean_pool::run),
        ("patch_embed", patch_embed::run),
        ("patch_loss", patch_loss::run),
        ("positions", positions::run),
        ("prefix_attention", prefix_attention::run),
        ("seam", seam::run),
        ("softmax_cross_entropy", softmax_cross_entropy::run),
        ("staging", staging::run),
    ];
    let mut checks = Vec::new();
    for &(name, run) in all {
        if name.contains(filter) {
            run(lab, &mut checks)?;
        }
    }
    Ok(checks)
}
