//! Adapters added to the weights: a trunk that computes the same without them.

use aim_tensor::Parameters;

use super::Adapters;
use crate::error::ModelError;

/// The weights of every adapted layer, `W + s B A`, under ml-aim's names; the parameters hold trunk and adapters and
/// are not changed. Sums are made in f64 and rounded once.
///
/// To take the adapters out again is to put the trunk's own weights back: `(W + D) - D` is not W in floating point,
/// whatever the order of the sums.
///
/// # Errors
/// When the parameters lack a weight of the trunk.
pub fn merged_weights(
    adapters: &Adapters,
    params: &Parameters,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    let layout = params.layout();
    let (rank, scaling) = (adapters.config.rank, adapters.config.scaling());
    let mut merged = Vec::new();
    for adapter in adapters.iter() {
        let name = format!("{}.weight", adapter.layer.module(adapter.block));
        let id =
            layout.id(&name).ok_or_else(|| ModelError::MissingParameter { name: name.clone() })?;
        let mut weight = params.value(id).to_vec();
        let dim = adapters.dim;
        let (a, b) = (params.value(adapter.a), params.value(adapter.b));
        let mut sum = vec![0.0_f64; dim];
        let mut b_rows = b.chunks_exact(rank);
        for (part, segment) in adapter.segments.iter().enumerate() {
            let a = &a[part * rank * dim..][..rank * dim];
            for (row, b) in segment.clone().zip(&mut b_rows) {
                sum.fill(0.0);
                for (&b, a) in b.iter().zip(a.chunks_exact(dim)) {
                    sum.iter_mut().zip(a).for_each(|(sum, &a)| *sum += f64::from(b) * f64::from(a));
                }
                for (w, sum) in weight[row * dim..][..dim].iter_mut().zip(&sum) {
                    *w = (f64::from(*w) + scaling * sum) as f32;
                }
            }
        }
        merged.push((name, weight));
    }
    Ok(merged)
}
