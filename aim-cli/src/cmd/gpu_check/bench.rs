//! Copying, kernels and products, timed at the shapes of a training step.

use aim_kernels::cuda::timing::{self, Case, Sizes, median, share};
use aim_kernels::cuda::{CudaError, gemm};
use aim_model::AimConfig;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{PretrainModel, Target};
use anyhow::Result;

use super::Context;
use super::record::{Record, Timing};

/// Runs before the first that counts.
const WARMUP: usize = 3;
/// Side of the square product that is the yardstick for all products.
const CUBE: usize = 8192;
const QUICK_CUBE: usize = 512;
/// Bytes that are copied to measure the memory.
const COPY: usize = 1 << 30;
const QUICK_COPY: usize = 1 << 24;
/// Most parameters that a measurement of the optimizer takes; more take proportionally longer.
const MOST_PARAMETERS: usize = 1 << 28;
const QUICK_PARAMETERS: usize = 1 << 18;

/// The shapes of a step of a preset.
pub(super) fn sizes(preset: &str, images: usize) -> Result<Sizes> {
    let config = AimConfig::preset(preset)?;
    let tokens = config.num_patches();
    let mut prefix = Vec::new();
    PrefixSampler::new(PrefixRule::Uniform, tokens, 0).draw(0, 0..images, &mut prefix);
    let Selection { prefix, rows, targets } = Selection::next_patch(&prefix, tokens);
    Ok(Sizes {
        images,
        side: config.img_size.height,
        patch: config.patch_size,
        dim: config.embed_dim,
        heads: config.num_heads,
        head_width: config.head_width,
        mlp_ratio: config.mlp_ratio,
        prefix,
        rows,
        targets,
    })
}

/// What memory and matrix units reach on this card today.
pub(super) fn rates(context: &Context) -> Result<()> {
    let chip = timing::chip(&context.gpu)?;
    let text = format!(
        "{} multiprocessors, {} MiB of L2, kernels for {}",
        chip.processors,
        chip.l2_bytes >> 20,
        context.gpu.arch()
    );
    context.emit(Record::Note { text })?;
    for note in context.gpu.notes() {
        context.emit(Record::Note { text: note.clone() })?;
    }
    gemm::tune(&context.gpu, true);
    let (copy, side) = if context.quick { (QUICK_COPY, QUICK_CUBE) } else { (COPY, CUBE) };
    time(context, "rates", "", timing::copy(copy))?;
    time(context, "rates", "", timing::cube(side))
}

/// Kernels that run at a preset's width, or those that are the same for all.
pub(super) fn kernels(context: &Context, of: &str) -> Result<()> {
    let own = |preset: &str| sizes(preset, context.batch);
    let cases = match of {
        "optimizer" => {
            let model =
                PretrainModel::new(&AimConfig::preset(&context.preset)?, Target::NormalizedPixels)?;
            let most = if context.quick { QUICK_PARAMETERS } else { MOST_PARAMETERS };
            timing::optimizer_kernels(model.layout().count().min(most))
        }
        "head" => timing::head_kernels(&own(&context.preset)?),
        "probes" => timing::probe_kernels(&own(&context.preset)?),
        preset => timing::trunk_kernels(&own(preset)?),
    };
    cases.into_iter().try_for_each(|case| time(context, "kernels", of, case))
}

/// Products at a preset's width, or those of the pixel head.
pub(super) fn products(context: &Context, of: &str) -> Result<()> {
    gemm::tune(&context.gpu, true);
    let cases = match of {
        "head" => timing::head_products(&sizes(&context.preset, context.batch)?),
        preset => timing::trunk_products(&sizes(preset, context.batch)?),
    };
    cases.into_iter().try_for_each(|case| time(context, "products", of, case))?;
    for text in gemm::notes(&context.gpu) {
        context.emit(Record::Note { text })?;
    }
    Ok(())
}

/// Times a case. One that does not fit, or that cuBLASLt cannot fuse, is a note and no failure.
fn time(context: &Context, group: &str, size: &str, case: Case) -> Result<()> {
    let (name, shape) = (case.name.clone(), case.shape.clone());
    let (bytes, flops, dense_flops) = (case.bytes, case.flops, case.dense_flops);
    let times = case.ready(&context.gpu).and_then(|ready| ready.measure(WARMUP, context.runs));
    let times = match times {
        Ok(times) => times,
        Err(error @ CudaError::OutOfMemory { .. }) => return unmeasured(context, &name, &error),
        Err(error @ CudaError::Blas { .. }) if name.ends_with("_gelu") => {
            return unmeasured(context, &name, &error);
        }
        Err(error) => return Err(anyhow::Error::new(error).context(format!("{name} {shape}"))),
    };
    context.emit(Record::Timing(Timing {
        group: group.to_owned(),
        size: size.to_owned(),
        name,
        shape,
        median_s: median(&times),
        p10_s: share(&times, 0.1),
        p90_s: share(&times, 0.9),
        samples: times.len(),
        bytes,
        flops,
        dense_flops,
    }))
}

fn unmeasured(context: &Context, name: &str, error: &CudaError) -> Result<()> {
    context.emit(Record::Note { text: format!("{name} was not measured: {error}") })
}
