//! A short training on the GPU against the same training on the CPU in fp32, and against itself.

use std::sync::Arc;

use aim_model::config::{AimConfig, ImageSize};
use aim_model::init::initialize;
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_tensor::{Device, Parameters, Philox, PlanOptions, Recompute};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};
use anyhow::{Result, bail};

use super::Context;
use super::record::{Check, Record};

/// Largest relative difference of a loss. bf16 rounds each value to 2e-3; a loss is a mean over many.
const LOSS: f64 = 5e-3;
/// Largest relative difference, in the L2 norm, of a parameter's gradient in the first step.
const GRADIENT: f64 = 2e-2;
/// Largest difference from 1 of the cosine between the two gradients.
const COSINE: f64 = 1e-3;

/// Name, image height and width, heads of a width of 128, recomputation.
const SMALL: [(&str, [usize; 2], usize, Recompute); 3] = [
    ("small, 49 tokens, heads of 64", [28, 28], 2, Recompute::None),
    ("small, 64 tokens, heads of 128", [32, 32], 1, Recompute::Block),
    ("small, 6 x 10 tokens, heads of 64", [24, 40], 2, Recompute::NormsGelu),
];
const REAL: &str = "aim-600M with 2 blocks";

/// The trainings there are.
pub(super) fn names(quick: bool) -> Vec<&'static str> {
    if quick {
        return vec![SMALL[0].0, "resume"];
    }
    SMALL.iter().map(|(name, ..)| *name).chain([REAL, "resume"]).collect()
}

/// A model, its images and how it is trained.
struct Case {
    name: &'static str,
    model: PretrainModel,
    images: ImageBatch,
    recompute: Recompute,
    pixels: Vec<u8>,
    seed: u64,
    lr: f64,
    steps: u64,
}

/// What a training leaves: losses, and a hash of the parameters.
struct Trained {
    losses: Vec<f64>,
    hash: u64,
}

impl Case {
    fn new(name: &str, context: &Context) -> Result<Self> {
        let small = SMALL.iter().find(|(small, ..)| *small == name);
        let (name, config, batch, recompute) = match small {
            Some(&(name, [height, width], num_heads, recompute)) => {
                let config = AimConfig {
                    img_size: ImageSize { height, width },
                    patch_size: 4,
                    embed_dim: 128,
                    num_blocks: 2,
                    num_heads,
                    head_width: 128,
                    head_depth: 2,
                    ..AimConfig::default()
                };
                (name, config, 4, recompute)
            }
            None if name == REAL => {
                let whole = AimConfig::preset("aim-600M")?;
                let config = AimConfig { num_blocks: 2, head_depth: 2, ..whole };
                (REAL, config, 8, Recompute::None)
            }
            None => bail!("there is no training {name}"),
        };
        let model = PretrainModel::new(&config, Target::NormalizedPixels)?;
        let format = PixelFormat::U8 { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
        let ImageSize { height, width } = config.img_size;
        let images = ImageBatch { batch, height, width, format };
        let pixels = smooth_images(context.seed, batch, height, width);
        // At a real width the first steps of a larger rate are so wild that roundings grow.
        let (lr, steps) = match (small, context.quick) {
            (None, _) => (1e-4, 10),
            (Some(_), true) => (1e-3, 3),
            (Some(_), false) => (1e-3, 20),
        };
        Ok(Self { name, model, images, recompute, pixels, seed: context.seed, lr, steps })
    }

    /// The shortest and the longest prefix, and pairs that change with the step.
    fn selection(&self, step: u64) -> Selection {
        let tokens = self.model.config().num_patches();
        let random = Philox::new(self.seed, "prefixes of gpu-check");
        let mut prefix = vec![1, tokens as i32 - 1];
        for pair in 0..(self.images.batch as u64 - 2) / 2 {
            let drawn = 1 + random.below(tokens as u64 - 1, step, pair) as i32;
            prefix.extend([drawn, tokens as i32 - drawn]);
        }
        Selection::next_patch(&prefix, tokens)
    }

    /// Trains; calls `first` with the gradients of the first step.
    fn train(
        &self,
        device: &Device,
        mut first: impl FnMut(&Parameters) -> Result<()>,
    ) -> Result<Trained> {
        let mut params = Parameters::new(Arc::clone(self.model.layout()))?;
        initialize(&mut params, self.seed);
        let mut params = params.to(device)?;
        let mut optimizer = AdamW::new(params.layout())?.to(&params)?;
        let mut ready: Option<PretrainStep> = None;
        let mut losses = Vec::new();
        for step in 0..self.steps {
            let selection = self.selection(step);
            let rows = selection.rows.len();
            let options =
                PlanOptions { backward: true, recompute: self.recompute, ..PlanOptions::default() };
            let mut now = match ready.take() {
                Some(before) => before.adapted(&self.model, self.images, rows, options)?,
                None => PretrainStep::on(device, &self.model, self.images, rows, options)?,
            };
            params.zero_grads()?;
            let loss = now.forward(&params, Pixels::U8(&self.pixels), &selection)?;
            now.backward(&mut params, 1.0 / rows as f32)?;
            losses.push(loss / rows as f64);
            if step == 0 {
                first(&params)?;
            }
            let norm = grad_norm(&params)?;
            let update = Update {
                lr: self.lr,
                betas: [0.9, 0.95],
                eps: 1e-8,
                weight_decay: 0.05,
                step: step + 1,
                grad_scale: clip_scale(norm, 1.0),
            };
            optimizer.step(&mut params, update)?;
            ready = Some(now);
        }
        Ok(Trained { losses, hash: hash(&params.download()?) })
    }
}

pub(super) fn run(context: &Context, name: &str) -> Result<()> {
    let case = Case::new(name, context)?;
    let mut expected = Vec::new();
    let on_cpu = case.train(&Device::Cpu, |params| {
        expected = params.download_grads()?.into_owned();
        Ok(())
    })?;
    let emit = |name: String, error, tolerance| {
        context.emit(Record::Check(Check::new(case.name, name, error, tolerance)))
    };
    let mut gradients = Vec::new();
    let trained = case.train(&context.device, |params| {
        let found = params.download_grads()?;
        for param in params.layout().iter() {
            let range = param.range.clone();
            let (off, cosine) = difference(&found[range.clone()], &expected[range]);
            gradients.push((param.spec.name.clone(), off, cosine));
        }
        Ok(())
    })?;
    for (name, off, cosine) in gradients {
        emit(format!("gradient of {name}"), off, GRADIENT)?;
        emit(format!("direction of the gradient of {name}"), 1.0 - cosine, COSINE)?;
    }
    for (step, (found, expected)) in trained.losses.iter().zip(&on_cpu.losses).enumerate() {
        emit(format!("loss of step {}", step + 1), (found - expected).abs() / expected, LOSS)?;
    }
    let again = case.train(&context.device, |_| Ok(()))?;
    let bits = |losses: &[f64]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
    let same = bits(&again.losses) == bits(&trained.losses) && again.hash == trained.hash;
    context.emit(Record::Check(Check::holds(case.name, "the same bits twice", same)))
}

/// Relative difference in the L2 norm, and cosine.
fn difference(found: &[f32], expected: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let apart: f64 =
        found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let (aa, bb) = (dot(found, found), dot(expected, expected));
    ((apart / bb).sqrt(), dot(found, expected) / (aa * bb).sqrt())
}

/// FNV-1a over whole values.
fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Waves with a little noise: something to learn, no flat patch.
fn smooth_images(seed: u64, batch: usize, height: usize, width: usize) -> Vec<u8> {
    let random = Philox::new(seed, "images of gpu-check");
    let mut pixels = Vec::with_capacity(batch * height * width * 3);
    for image in 0..batch {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for channel in 0..3 {
                let phase = (y * (image + 1) + x * (channel + 2)) as f64 * 0.21;
                let noise = random.below(9, image as u64, pixels.len() as u64) as f64;
                pixels.push((120.0 + 90.0 * phase.sin() + noise) as u8);
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative() {
        let (off, cosine) = difference(&[3.0, 4.0], &[6.0, 8.0]);
        assert!((off - 0.5).abs() < 1e-12 && (cosine - 1.0).abs() < 1e-12);
        assert!(difference(&[f32::NAN], &[1.0]).0.is_nan());
        assert_ne!(hash(&[0.0]), hash(&[-0.0]));
    }
}
