//! Adapters through the CUDA path on the emulated device, against the same on the CPU in fp32.
//!
//! Each test starts this binary again over the fake libraries (see `aim-kernels/emulator`); the child prints what it
//! measured, the parent judges. The classifier is a linear one on an image's first token: attentive ones have no CUDA
//! kernel.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../../aim-kernels/emulator/harness.rs"]
mod harness;

use std::process::Command;
use std::sync::Arc;

use aim_model::config::{AimConfig, ImageSize};
use aim_model::init::initialize;
use aim_model::lora::{Adapters, LoraConfig, LoraTarget};
use aim_model::trunk::{ImageBatch, PixelFormat, Trunk};
use aim_tensor::{
    DType, Device, ParamLayout, ParamSpec, Parameters, Philox, PlanOptions, Recompute, Session,
    Tape, Var,
};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};

/// The environment variable that makes a child of this binary.
const CASE: &str = "AIM_TEST_CASE";
const STEPS: u64 = 10;
const BATCH: usize = 4;
const CLASSES: usize = 8;

/// Targets, alpha over rank 8, recomputation.
const CASES: [(&[LoraTarget], f64, Recompute); 2] = [
    (&[LoraTarget::Q, LoraTarget::V, LoraTarget::Proj], 8.0, Recompute::None),
    (&[LoraTarget::Qkv, LoraTarget::Proj], 12.0, Recompute::Block),
];

struct Case {
    layout: Arc<ParamLayout>,
    trunk: Trunk,
    adapters: Adapters,
    recompute: Recompute,
    pixels: Vec<u8>,
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
        let (targets, alpha, recompute) = CASES[index];
        let lora = LoraConfig { alpha, targets: targets.to_vec(), ..LoraConfig::new(2) };
        let mut specs = Trunk::specs(&config(), false);
        specs.extend(lora.specs(&config()));
        let shape = [CLASSES, 128].into();
        let name = "classifier.weight".to_owned();
        specs.push(ParamSpec { name, shape, decay: true, trainable: true });
        let layout = Arc::new(ParamLayout::new(specs).unwrap());
        let random = Philox::new(1, "test images");
        let pixels = (0..BATCH as u64 * 12 * 16 * 3)
            .map(|i| (i * (1 + i / 576) % 199) as u8 + random.below(50, i, 0) as u8)
            .collect();
        Self {
            trunk: Trunk::bind(&config(), &layout).unwrap(),
            adapters: Adapters::bind(&lora, &config(), &layout).unwrap(),
            layout,
            recompute,
            pixels,
        }
    }

    fn params(&self, device: &Device) -> Parameters {
        let mut params = Parameters::new(self.layout.clone()).unwrap();
        initialize(&mut params, 3);
        self.adapters.initialize(&mut params, 4);
        // B too: from zero, A has no gradient.
        for param in self.layout.iter().filter(|p| p.spec.name.ends_with("lora_B.weight")) {
            let id = self.layout.id(&param.spec.name).unwrap();
            Philox::new(5, &param.spec.name).fill_normal(0.1, params.value_mut(id));
        }
        params.to(device).unwrap()
    }

    fn session(&self, device: &Device) -> (Session, Var) {
        let mut tape = Tape::new(self.layout.clone());
        let format = PixelFormat::U8 { mean: [0.5; 3], std: [0.25; 3] };
        let images = ImageBatch { batch: BATCH, height: 12, width: 16, format };
        let vars =
            self.trunk.record_adapted(&mut tape, images, 2, false, Some(&self.adapters)).unwrap();
        let rows = tape.input([BATCH], DType::I32);
        let picked = tape.gather_rows(vars.blocks[1], rows).unwrap();
        let weight = self.layout.id("classifier.weight").unwrap();
        let logits = tape.linear(picked, weight, None, None).unwrap();
        let labels = tape.input([BATCH], DType::I32);
        let loss = tape.cross_entropy(logits, labels).unwrap();
        tape.set_loss(loss);
        let options =
            PlanOptions { backward: true, recompute: self.recompute, ..PlanOptions::default() };
        let mut session = Session::on(device, tape, options).unwrap();
        let tokens = 12;
        let positions: Vec<i32> = (0..BATCH).flat_map(|_| 0..tokens).collect();
        session.write_u8(vars.images, &self.pixels).unwrap();
        session.write_i32(vars.positions, &positions).unwrap();
        session.write_i32(vars.prefix, &[tokens; BATCH]).unwrap();
        session.write_i32(rows, &[0, 12, 24, 36]).unwrap();
        session.write_i32(labels, &[1, 5, 0, 7]).unwrap();
        (session, loss)
    }

    /// Trains; calls `each` with the loss and the gradients of every step.
    fn train(&self, device: &Device, mut each: impl FnMut(u64, f64, &Parameters)) {
        let mut params = self.params(device);
        let before = params.download().unwrap().into_owned();
        let mut optimizer = AdamW::new(params.layout()).unwrap().to(&params).unwrap();
        let (mut session, loss) = self.session(device);
        for step in 0..STEPS {
            params.zero_grads().unwrap();
            session.forward(&params).unwrap();
            let value: f32 = session.read(loss).unwrap().iter().sum();
            session.backward(&mut params, 1.0 / BATCH as f32).unwrap();
            each(step, f64::from(value) / BATCH as f64, &params);
            let update = Update {
                lr: 1e-3,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay: 0.1,
                step: step + 1,
                grad_scale: clip_scale(grad_norm(&params).unwrap(), 3.0),
            };
            optimizer.step(&mut params, update).unwrap();
        }
        let after = params.download().unwrap();
        for param in self.layout.iter() {
            let same = before[param.range.clone()] == after[param.range.clone()];
            assert_eq!(same, !param.spec.trainable, "{} on {device}", param.spec.name);
        }
    }
}

/// What a child measured, one a line: `kind name value value`.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let case = Case::new(case.parse().unwrap());
    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    case.train(&Device::Cpu, |step, loss, params| {
        losses.push(loss);
        if step == 0 {
            grads = params.download_grads().unwrap().into_owned();
        }
    });
    case.train(&Device::cuda(0).unwrap(), |step, loss, params| {
        println!("loss {step} {loss} {}", losses[step as usize]);
        if step > 0 {
            return;
        }
        let found = params.download_grads().unwrap();
        for param in case.layout.iter().filter(|p| p.spec.trainable) {
            let (a, b) = (&found[param.range.clone()], &grads[param.range.clone()]);
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
            let off = ((aa - 2.0 * ab + bb).max(0.0) / bb).sqrt();
            println!("grad {} {off} {}", param.spec.name, ab / (aa * bb).sqrt());
        }
    });
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
        let (mut worst_loss, mut worst_grad, mut grads) = (0.0_f64, 0.0_f64, 0);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind @ ("loss" | "grad"), _, a, b] = words[..] else { continue };
            let (a, b): (f64, f64) = (a.parse().unwrap(), b.parse().unwrap());
            if kind == "loss" {
                worst_loss = worst_loss.max((a - b).abs() / b);
                assert!((a - b).abs() <= 1e-2 * b, "case {index}: {line}");
            } else {
                grads += 1;
                worst_grad = worst_grad.max(a);
                assert!(a <= 4e-2 && b >= 0.999, "case {index}: {line}");
            }
        }
        assert_eq!(grads, 9, "two adapters of A and B in two blocks, and the classifier");
        println!("case {index}: losses within {worst_loss:.1e}, gradients within {worst_grad:.1e}");
    }
}
