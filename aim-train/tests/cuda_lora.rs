//! Adapters and their attentive classifier through the CUDA path on the emulated device, against the same on the CPU in fp32.
//!
//! Each test starts this binary again over the fake libraries (see `aim-kernels/emulator`); the child prints what it
//! measured, the parent judges.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../../aim-kernels/emulator/harness.rs"]
mod harness;

use std::process::Command;

use aim_model::config::{AimConfig, ImageSize};
use aim_model::finetune::{FinetuneConfig, FinetuneModel, FinetuneStep};
use aim_model::init::initialize;
use aim_model::lora::{LoraConfig, LoraTarget};
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_tensor::{Device, Parameters, Philox, Recompute};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};

/// The environment variable that makes a child of this binary.
const CASE: &str = "AIM_TEST_CASE";
const STEPS: u64 = 10;
const CLASSES: usize = 7;
const IMAGES: ImageBatch = ImageBatch {
    batch: 4,
    height: 12,
    width: 16,
    format: PixelFormat::U8 { mean: [0.5; 3], std: [0.25; 3] },
};

/// Targets, alpha over rank 8, blocks that the classifier sees, recomputation.
const CASES: [(&[LoraTarget], f64, &[usize], Recompute); 2] = [
    (&[LoraTarget::Q, LoraTarget::V, LoraTarget::Proj], 8.0, &[0, 1], Recompute::None),
    (&[LoraTarget::Qkv, LoraTarget::Proj], 12.0, &[1], Recompute::Block),
];

struct Case {
    model: FinetuneModel,
    recompute: Recompute,
    pixels: Vec<u8>,
    /// Shares of the classes, as of mixed images.
    targets: Vec<f32>,
}

fn config() -> AimConfig {
    AimConfig {
        img_size: ImageSize { height: 12, width: 16 },
        patch_size: 4,
        embed_dim: 128,
        num_blocks: 2,
        num_heads: 2,
        head_width: 128,
        head_depth: 1,
        ..AimConfig::default()
    }
}

impl Case {
    fn new(index: usize) -> Self {
        let (targets, alpha, layers, recompute) = CASES[index];
        let lora = LoraConfig { alpha, targets: targets.to_vec(), ..LoraConfig::new(2) };
        let layers = layers.to_vec();
        let config = FinetuneConfig { model: config(), lora, layers, classes: CLASSES };
        let random = Philox::new(1, "test images");
        let pixels = (0..IMAGES.batch as u64 * 12 * 16 * 3)
            .map(|i| (i * (1 + i / 576) % 199) as u8 + random.below(50, i, 0) as u8)
            .collect();
        let mut targets = vec![0.02; IMAGES.batch * CLASSES];
        for (image, row) in targets.chunks_mut(CLASSES).enumerate() {
            row[image] += 0.6;
            row[(image + 3) % CLASSES] += 0.4 - 0.02 * CLASSES as f32;
        }
        Self { model: FinetuneModel::new(config).unwrap(), recompute, pixels, targets }
    }

    fn params(&self, device: &Device) -> Parameters {
        let mut params = Parameters::new(self.model.layout().clone()).unwrap();
        initialize(&mut params, 3);
        self.model.initialize(&mut params, 4);
        for param in self.model.layout().iter() {
            let id = self.model.layout().id(&param.spec.name).unwrap();
            // B too, since from zero A has no gradient; queries that tell tokens apart.
            let std = match &param.spec.name {
                name if name.ends_with("lora_B.weight") => 0.1,
                name if name == "head.cls_token" => 1.0,
                _ => continue,
            };
            Philox::new(5, &param.spec.name).fill_normal(std, params.value_mut(id));
        }
        params.to(device).unwrap()
    }

    /// Trains; calls `each` with the loss and the gradients of every step. Returns the adapted parameters and the
    /// logits that they then give.
    fn train(
        &self,
        device: &Device,
        mut each: impl FnMut(u64, f64, &Parameters),
    ) -> (Vec<f32>, Vec<f32>) {
        let mut params = self.params(device);
        let before = params.download().unwrap().into_owned();
        let mut optimizer = AdamW::new(params.layout()).unwrap().to(&params).unwrap();
        let mut step =
            FinetuneStep::new(&self.model, IMAGES, Some(self.recompute), device).unwrap();
        let pixels = Pixels::U8(&self.pixels);
        for done in 0..STEPS {
            params.zero_grads().unwrap();
            let loss = step.forward_training(&params, pixels, &self.targets).unwrap();
            step.backward(&mut params, 1.0 / IMAGES.batch as f32).unwrap();
            each(done, loss / IMAGES.batch as f64, &params);
            let update = Update {
                lr: 1e-3,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay: 0.1,
                step: done + 1,
                grad_scale: clip_scale(grad_norm(&params).unwrap(), 3.0),
            };
            optimizer.step(&mut params, update).unwrap();
        }
        let after = params.download().unwrap().into_owned();
        for param in self.model.layout().iter() {
            let same = before[param.range.clone()] == after[param.range.clone()];
            let name = &param.spec.name;
            assert_eq!(same, !FinetuneModel::is_adapted(name), "{name} on {device}");
        }
        let copy = params.fetch(FinetuneModel::is_adapted).unwrap();
        for (param, values) in copy.iter().flat_map(Parameters::iter) {
            if FinetuneModel::is_adapted(&param.spec.name) {
                assert_eq!(values, &after[param.range.clone()], "{}", param.spec.name);
            }
        }
        let mut step = FinetuneStep::new(&self.model, IMAGES, None, device).unwrap();
        step.forward(&params, pixels).unwrap();
        (after, step.logits().unwrap().into_owned())
    }
}

/// How far two vectors are apart, relative to the second, and the cosine of their angle.
fn differ(a: &[f32], b: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    (((aa - 2.0 * ab + bb).max(0.0) / bb).sqrt(), ab / (aa * bb).sqrt())
}

/// What a child measured, one a line: `kind name value value`.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let case = Case::new(case.parse().unwrap());
    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    let (expected, logits) = case.train(&Device::Cpu, |step, loss, params| {
        losses.push(loss);
        if step == 0 {
            grads = params.download_grads().unwrap().into_owned();
        }
    });
    let (found, found_logits) = case.train(&Device::cuda(0).unwrap(), |step, loss, params| {
        println!("loss {step} {loss} {}", losses[step as usize]);
        if step > 0 {
            return;
        }
        let found = params.download_grads().unwrap();
        for param in case.model.layout().iter().filter(|p| p.spec.trainable) {
            let range = param.range.clone();
            let (off, cosine) = differ(&found[range.clone()], &grads[range]);
            println!("grad {} {off} {cosine}", param.spec.name);
        }
    });
    for param in case.model.layout().iter().filter(|p| p.spec.name.contains("running")) {
        let range = param.range.clone();
        let (off, cosine) = differ(&found[range.clone()], &expected[range]);
        println!("statistics {} {off} {cosine}", param.spec.name);
    }
    let (off, cosine) = differ(&found_logits, &logits);
    println!("logits - {off} {cosine}");
    println!("end");
}

#[test]
fn adapters_follow_the_cpu() {
    let Some(folder) = harness::libraries() else { return };
    for (index, schedule) in [0, 4].into_iter().enumerate() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(CASE, index.to_string());
        harness::child_env_in(&mut command, &folder, schedule);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{errors}");
        assert!(text.lines().any(|line| line == "end"), "{text}\n{errors}");
        let (mut worst_loss, mut worst_grad, mut grads, mut others) = (0.0_f64, 0.0_f64, 0, 0);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, _, a, b] = words[..] else { continue };
            let (Ok(a), Ok(b)) = (a.parse::<f64>(), b.parse::<f64>()) else { continue };
            match kind {
                "loss" => {
                    worst_loss = worst_loss.max((a - b).abs() / b);
                    assert!((a - b).abs() <= 1e-2 * b, "case {index}: {line}");
                }
                "grad" => {
                    grads += 1;
                    worst_grad = worst_grad.max(a);
                    assert!(a <= 4e-2 && b >= 0.999, "case {index}: {line}");
                }
                _ => {
                    others += 1;
                    assert!(a <= 4e-2 && b >= 0.999, "case {index}: {line}");
                }
            }
        }
        assert_eq!(grads, 12, "two adapters of A and B in two blocks, and the classifier's four");
        assert_eq!(others, 3, "mean, variance and logits");
        println!("case {index}: losses within {worst_loss:.1e}, gradients within {worst_grad:.1e}");
    }
}
