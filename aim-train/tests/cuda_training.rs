//! Pre-training through the CUDA path on the emulated device, against the same training on the CPU in fp32.
//!
//! Each test starts this binary again over the fake libraries (see `aim-kernels/emulator`); the child prints what it
//! measured, the parent judges.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../../aim-kernels/emulator/harness.rs"]
mod harness;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use aim_model::config::{AimConfig, ImageSize};
use aim_model::init::initialize;
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_tensor::{Device, GeluForm, Parameters, Philox, PlanOptions, Recompute};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};
use half::bf16;

/// The environment variable with the case that a child runs.
const CASE: &str = "AIM_TEST_CASE";
const STEPS: u64 = 20;

/// Image height and width, patch, heads of a width of 128, recomputation, GELU. Patches of 14 have 588 values, whose
/// rows are padded on the device.
const CASES: [(&str, [usize; 3], usize, Recompute, GeluForm); 6] = [
    ("49 tokens, head dim 64", [28, 28, 4], 2, Recompute::None, GeluForm::Erf),
    ("64 tokens, head dim 128", [32, 32, 4], 1, Recompute::Block, GeluForm::Erf),
    ("6 x 10 tokens, head dim 64", [24, 40, 4], 2, Recompute::NormsGelu, GeluForm::Erf),
    ("3 x 4 tokens of 588 values", [42, 56, 14], 1, Recompute::Norms, GeluForm::Erf),
    ("49 tokens, GELU in products", [28, 28, 4], 2, Recompute::NormsGelu, GeluForm::Tanh),
    ("49 tokens, GELU in products, made again", [28, 28, 4], 2, Recompute::Block, GeluForm::Tanh),
];

struct Case {
    model: PretrainModel,
    images: ImageBatch,
    recompute: Recompute,
    gelu: GeluForm,
    pixels: Vec<u8>,
}

impl Case {
    fn new(index: usize) -> Self {
        let (_, [height, width, patch_size], num_heads, recompute, gelu) = CASES[index];
        let config = AimConfig {
            img_size: ImageSize { height, width },
            patch_size,
            embed_dim: 128,
            num_blocks: 2,
            num_heads,
            head_width: 128,
            head_depth: 2,
            ..AimConfig::default()
        };
        let model = PretrainModel::new(&config, Target::NormalizedPixels).unwrap();
        let format = PixelFormat::U8 { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
        let images = ImageBatch { batch: 4, height, width, format };
        Self { model, images, recompute, gelu, pixels: smooth_images(4, height, width) }
    }

    /// The shortest and the longest prefix, and a pair that changes with the step.
    fn selection(&self, step: u64) -> Selection {
        let tokens = self.model.config().num_patches() as i32;
        let drawn = 1 + (step as i32 * 7) % (tokens - 1);
        Selection::next_patch(&[1, tokens - 1, drawn, tokens - drawn], tokens as usize)
    }

    fn params(&self, device: &Device) -> Parameters {
        let mut params = Parameters::new(Arc::clone(self.model.layout())).unwrap();
        initialize(&mut params, 3);
        params.to(device).unwrap()
    }

    /// Gradients of the first step on the CPU, from parameters rounded to bf16.
    fn rounded_gradients(&self) -> Vec<f32> {
        let mut params = self.params(&Device::Cpu);
        let layout = Arc::clone(params.layout());
        for param in layout.iter() {
            let id = layout.id(&param.spec.name).unwrap();
            params.value_mut(id).iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        let selection = self.selection(0);
        let (rows, options) =
            (selection.rows.len(), PlanOptions { backward: true, ..PlanOptions::default() });
        let mut step = PretrainStep::new(&self.model, self.images, rows, options).unwrap();
        step.forward(&params, Pixels::U8(&self.pixels), &selection).unwrap();
        step.backward(&mut params, 1.0 / rows as f32).unwrap();
        params.grads().to_vec()
    }

    /// Trains; calls `each` with the loss and the gradients of every step.
    fn train(&self, device: &Device, steps: u64, mut each: impl FnMut(u64, f64, &Parameters)) {
        let mut params = self.params(device);
        let mut optimizer = AdamW::new(params.layout()).unwrap().to(&params).unwrap();
        let mut ready: Option<PretrainStep> = None;
        for step in 0..steps {
            let selection = self.selection(step);
            let rows = selection.rows.len();
            // The CPU knows the exact GELU only: the comparison shows what the other form costs.
            let gelu = if *device == Device::Cpu { GeluForm::Erf } else { self.gelu };
            let recompute = self.recompute;
            let options = PlanOptions { backward: true, recompute, gelu, ..PlanOptions::default() };
            let mut now = match ready.take() {
                Some(before) => before.adapted(&self.model, self.images, rows, options).unwrap(),
                None => PretrainStep::on(device, &self.model, self.images, rows, options).unwrap(),
            };
            params.zero_grads().unwrap();
            let loss = now.forward(&params, Pixels::U8(&self.pixels), &selection).unwrap();
            now.backward(&mut params, 1.0 / rows as f32).unwrap();
            each(step, loss / rows as f64, &params);
            let norm = grad_norm(&params).unwrap();
            let update = Update {
                lr: 1e-3,
                betas: [0.9, 0.95],
                eps: 1e-8,
                weight_decay: 0.05,
                step: step + 1,
                grad_scale: clip_scale(norm, 1.0),
            };
            optimizer.step(&mut params, update).unwrap();
            ready = Some(now);
        }
    }
}

/// Waves with a little noise: something to learn, no flat patch.
fn smooth_images(batch: usize, height: usize, width: usize) -> Vec<u8> {
    let random = Philox::new(1, "test images");
    let mut pixels = Vec::new();
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

/// What a child measured, one a line: `kind name value value`.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (index, steps) = case.split_once(' ').unwrap();
    let (case, steps): (Case, u64) = (Case::new(index.parse().unwrap()), steps.parse().unwrap());
    let layout = Arc::clone(case.model.layout());
    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    case.train(&Device::Cpu, steps, |step, loss, params| {
        losses.push(loss);
        if step == 0 {
            grads = params.download_grads().unwrap().into_owned();
        }
    });
    // What bf16 costs at the least: the same gradients from parameters that are rounded once.
    let (rounded, exact) = (case.rounded_gradients(), &grads);
    let off: f64 = rounded.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = exact.iter().map(|v| f64::from(*v).powi(2)).sum();
    println!("rounded {}", (off / norm).sqrt());
    let device = Device::cuda(0).unwrap();
    case.train(&device, steps, |step, loss, params| {
        println!("loss {step} {loss} {}", losses[step as usize]);
        if step > 0 {
            return;
        }
        let found = params.download_grads().unwrap();
        for param in layout.iter() {
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

/// What is wrong with a child's measurements; empty when nothing is.
fn faults(folder: &Path, schedule: u32, index: usize, steps: u64) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CASE, format!("{index} {steps}"));
    harness::child_env_in(&mut command, folder, schedule);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let name = CASES[index].0;
    let mut faults = Vec::new();
    if !output.status.success() || !text.lines().any(|line| line == "end") {
        let errors = String::from_utf8_lossy(&output.stderr);
        faults.push(format!("{name}: {}\n{text}\n{errors}", output.status));
    }
    let (mut worst_loss, mut worst_grad, mut worst_cosine) = (0.0_f64, 0.0_f64, 1.0_f64);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind @ ("loss" | "grad"), _, a, b] = words[..] else { continue };
        let (a, b): (f64, f64) = (a.parse().unwrap(), b.parse().unwrap());
        let fine = if kind == "loss" {
            worst_loss = worst_loss.max((a - b).abs() / b);
            (a - b).abs() <= 5e-3 * b
        } else {
            worst_grad = worst_grad.max(a);
            worst_cosine = worst_cosine.min(b);
            a <= 2e-2 && b >= 0.999
        };
        if !fine {
            faults.push(format!("{name}: {line}"));
        }
    }
    let rounded = text.lines().find_map(|line| line.strip_prefix("rounded ")).unwrap_or("unknown");
    println!(
        "{name}: losses within {worst_loss:.1e}, gradients within {worst_grad:.1e}, cosine \
         {worst_cosine:.6}; rounded parameters alone move the gradients by {rounded:.7}"
    );
    faults
}

#[test]
fn twenty_steps_follow_the_cpu() {
    let Some(folder) = harness::libraries() else { return };
    // One of each kind of schedule: round robin, and copies at once with either greedy order.
    for (index, schedule) in [0, 4, 5, 3, 1, 2].into_iter().enumerate() {
        let faults = faults(&folder, schedule, index, STEPS);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

#[test]
fn planted_bugs_are_seen() {
    let replaced = |from: &'static str, to: &'static str| {
        move |text: &str| {
            assert!(text.contains(from), "the anchor {from:?} is gone");
            text.replace(from, to)
        }
    };
    let plants = [
        (
            "rows off by one",
            "gather_rows.cu",
            "x[(u64)index[row] * width + c]",
            "x[(u64)(index[row] > 0 ? index[row] - 1 : 0) * width + c]",
        ),
        (
            "residual gradient missing",
            "layer_norm.cu",
            "in && dx && accumulate ? vec::load(dx + here)",
            "in && dx && accumulate && false ? vec::load(dx + here)",
        ),
    ];
    for (what, file, from, to) in plants {
        let Some(folder) = harness::Build::all().edit(file, replaced(from, to)).make() else {
            return;
        };
        assert!(!faults(&folder, 0, 0, 2).is_empty(), "{what} went unseen");
    }
}
