//! One pre-training step and a curve of twelve, against PyTorch in float64.
//!
//! `AIM_FIXTURES` names another folder of fixtures of the same layout; prefix lengths come from it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::path::{Path, PathBuf};

use aim_model::AimConfig;
use aim_model::config::{HeadKind, HeadResidual, ImageSize};
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights;
use aim_tensor::io::safetensors::SafeTensors;
use aim_tensor::{Parameters, PlanOptions, Recompute, Session};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    img_size: ImageSize,
    patch_size: usize,
    embed_dim: usize,
    num_blocks: usize,
    num_heads: usize,
    head_width: usize,
    head_depth: usize,
    norm_eps: f32,
    lr: f64,
    steps: u64,
    clip: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

struct Fixture {
    dir: PathBuf,
    config: Config,
    model: PretrainModel,
    images: ImageBatch,
    pixels: Vec<f32>,
    prefix: Vec<i32>,
    expected: SafeTensors,
}

impl Fixture {
    fn open() -> Self {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-model/tests/fixtures");
        let dir = std::env::var_os("AIM_FIXTURES").map_or(own, PathBuf::from).join("pretrain-tiny");
        let config: Config =
            serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap())
                .unwrap();
        let model = AimConfig {
            img_size: config.img_size,
            patch_size: config.patch_size,
            embed_dim: config.embed_dim,
            num_blocks: config.num_blocks,
            num_heads: config.num_heads,
            mlp_ratio: 4,
            norm_eps: config.norm_eps,
            head_kind: HeadKind::Mlp,
            head_width: config.head_width,
            head_depth: config.head_depth,
            head_residual: HeadResidual::Clean,
        };
        let inputs = SafeTensors::open(dir.join("inputs.safetensors")).unwrap();
        let view = inputs.tensor("images").unwrap();
        let &[batch, _, height, width] = view.shape else { panic!("{:?}", view.shape) };
        Self {
            model: PretrainModel::new(&model, Target::NormalizedPixels).unwrap(),
            images: ImageBatch { batch, height, width, format: PixelFormat::F32 },
            pixels: view.to_f32().unwrap(),
            prefix: inputs.tensor("prefix_lengths").unwrap().to_i32().unwrap(),
            expected: SafeTensors::open(dir.join("expected.safetensors")).unwrap(),
            config,
            dir,
        }
    }

    fn params(&self) -> Parameters {
        let mut params = Parameters::new(self.model.layout().clone()).unwrap();
        let file = SafeTensors::open(self.dir.join("model.safetensors")).unwrap();
        weights::load(&mut params, &file, &self.dir).unwrap();
        params
    }

    fn expected(&self, name: &str) -> Vec<f32> {
        self.expected.tensor(name).unwrap().to_f32().unwrap()
    }

    fn tokens(&self) -> usize {
        let patch = self.config.patch_size;
        self.images.height / patch * (self.images.width / patch)
    }

    /// Forward and backward of one batch: loss, and gradients in `params`.
    fn step(&self, params: &mut Parameters, prefix: &[i32], recompute: Recompute) -> f64 {
        let selection = Selection::next_patch(prefix, self.tokens());
        let rows = selection.rows.len();
        let options = PlanOptions { backward: true, recompute, ..PlanOptions::default() };
        let mut step = PretrainStep::new(&self.model, self.images, rows, options).unwrap();
        params.zero_grads().unwrap();
        let sum = step.forward(params, Pixels::F32(&self.pixels), &selection).unwrap();
        step.backward(params, 1.0 / rows as f32).unwrap();
        sum / rows as f64
    }
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let scale = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let off =
        found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / scale;
    println!("{name}: {off:.1e} of the largest value");
    assert!(off < tolerance, "{name}: {off} of the largest value");
}

#[test]
fn activations_are_pytorchs() {
    let fixture = Fixture::open();
    let params = fixture.params();
    let tokens = fixture.tokens();
    // Every output predicts; what it is scored against is of no interest here.
    let rows: Vec<i32> = (0..(fixture.images.batch * tokens) as i32).collect();
    let selection = Selection { prefix: fixture.prefix.clone(), targets: rows.clone(), rows };
    let (mut tape, vars) = fixture.model.record(fixture.images, selection.rows.len()).unwrap();
    let outputs = [("embed", vars.trunk.embed), ("predictions", vars.predictions)];
    let blocks = vars.trunk.blocks.iter().enumerate();
    let named: Vec<_> = outputs
        .map(|(name, var)| (name.to_owned(), var))
        .into_iter()
        .chain(blocks.map(|(i, &var)| (format!("trunk.blocks.{i}"), var)))
        .collect();
    named.iter().for_each(|(_, var)| tape.output(*var));
    let mut session = Session::new(tape, PlanOptions::default()).unwrap();
    let positions = selection.head_positions(tokens);
    session.write_f32(vars.trunk.images, &fixture.pixels).unwrap();
    session.write_i32(vars.trunk.prefix, &selection.prefix).unwrap();
    session.write_i32(vars.trunk.positions, &positions).unwrap();
    session.write_i32(vars.head_positions, &positions).unwrap();
    session.write_i32(vars.rows, &selection.rows).unwrap();
    session.write_i32(vars.targets, &selection.targets).unwrap();
    session.forward(&params).unwrap();
    for (name, var) in named {
        let expected = fixture.expected(&format!("activations.{name}"));
        assert_close(&name, &session.read(var).unwrap(), &expected, 1e-4);
    }
}

#[test]
fn loss_and_every_gradient_are_pytorchs() {
    let fixture = Fixture::open();
    let mut params = fixture.params();
    let loss = fixture.step(&mut params, &fixture.prefix, Recompute::None);
    let expected = f64::from(fixture.expected("loss")[0]);
    println!("loss {loss}, expected {expected}");
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} {expected}");
    let layout = params.layout().clone();
    for param in layout.iter() {
        let name = &param.spec.name;
        let grad = params.grad(layout.id(name).unwrap()).unwrap();
        assert_close(name, grad, &fixture.expected(&format!("gradients.{name}")), 1e-4);
    }
}

#[test]
fn recomputation_changes_no_bit() {
    let fixture = Fixture::open();
    let mut params = fixture.params();
    let loss = fixture.step(&mut params, &fixture.prefix, Recompute::None);
    let kept = params.grads().to_vec();
    for level in [Recompute::Norms, Recompute::NormsGelu, Recompute::Block] {
        assert_eq!(fixture.step(&mut params, &fixture.prefix, level), loss, "{level:?}");
        assert_eq!(params.grads(), kept, "{level:?}");
    }
}

#[test]
fn twelve_steps_are_pytorchs() {
    let fixture = Fixture::open();
    let config = &fixture.config;
    let mut params = fixture.params();
    let mut optimizer = AdamW::new(params.layout()).unwrap();
    let (losses, norms) = (fixture.expected("curve.loss"), fixture.expected("curve.grad_norm"));
    let span = fixture.tokens() as i32 - 1;
    for step in 0..config.steps {
        let prefix: Vec<i32> =
            fixture.prefix.iter().map(|s| (s + 3 * step as i32 - 1) % span + 1).collect();
        let loss = fixture.step(&mut params, &prefix, Recompute::None);
        let norm = grad_norm(&params).unwrap();
        let i = step as usize;
        println!("step {step}: loss {loss} ({}), norm {norm} ({})", losses[i], norms[i]);
        assert!((loss - f64::from(losses[i])).abs() < 1e-4 * loss, "step {step}");
        assert!((norm - f64::from(norms[i])).abs() < 1e-4 * norm, "step {step}");
        let update = Update {
            lr: config.lr,
            betas: config.betas,
            eps: config.eps,
            weight_decay: config.weight_decay,
            step: step + 1,
            grad_scale: clip_scale(norm, config.clip),
        };
        optimizer.step(&mut params, update).unwrap();
    }
    let layout = params.layout().clone();
    for name in fixture.expected.names().filter_map(|name| name.strip_prefix("curve.final.")) {
        // By norm: Adam divides a gradient by its own size, so single values whose gradient is lost in f32 rounding
        // move by up to the learning rate in either direction.
        let value = params.value(layout.id(name).unwrap());
        let expected = fixture.expected(&format!("curve.final.{name}"));
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
        };
        let off = norm(&mut value.iter().zip(&expected).map(|(a, b)| a - b))
            / norm(&mut expected.iter().copied());
        println!("{name}: {off:.1e} of the norm");
        assert!(off < 1e-4, "{name}: {off} of the norm");
    }
}
