//! Block outputs and logits of a random ml-aim model, against the numbers that ml-aim computes for it.
//!
//! `AIM_FIXTURES` names another folder of fixtures of the same layout.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::path::{Path, PathBuf};

use aim_model::classifier::{Probe, ProbeConfig, ProbeKind, ProbeStep};
use aim_model::features::FeatureExtractor;
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights;
use aim_tensor::Parameters;
use aim_tensor::io::safetensors::SafeTensors;

fn fixtures(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("AIM_FIXTURES").map_or(own, PathBuf::from).join(name)
}

/// Largest difference over the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

#[test]
fn blocks_and_logits_are_ml_aims() {
    let dir = fixtures("ml-aim-tiny");
    let described = weights::read_ml_aim_config(&dir).unwrap();
    let config = described.to_config().unwrap();
    let file = SafeTensors::open(&dir).unwrap();
    let layers: Vec<usize> = (0..config.num_blocks).collect();

    let mut params = FeatureExtractor::parameters(&config).unwrap();
    let extra = weights::load(&mut params, &file, &dir).unwrap();
    assert!(extra.iter().all(|name| name.starts_with("head.")), "{extra:?}");
    let mut trunk = FeatureExtractor::new(&config, params, &layers).unwrap();

    let probe = Probe::new(ProbeConfig {
        kind: ProbeKind::Attentive,
        dim: config.embed_dim,
        heads: config.num_heads,
        classes: described.num_classes.unwrap_or(1000),
    })
    .unwrap();
    let mut head = Parameters::new(probe.layout().clone()).unwrap();
    weights::load(&mut head, &file, &dir).unwrap();

    let inputs = SafeTensors::open(dir.join("inputs.safetensors")).unwrap();
    let expected = SafeTensors::open(dir.join("expected.safetensors")).unwrap();
    for name in inputs.names() {
        let view = inputs.tensor(name).unwrap();
        let &[batch, _, height, width] = view.shape else { panic!("{name}: {:?}", view.shape) };
        let images = ImageBatch { batch, height, width, format: PixelFormat::F32 };
        trunk.run(images, Pixels::F32(&view.to_f32().unwrap())).unwrap();
        for layer in &layers {
            let reference =
                expected.tensor(&format!("{name}.block_{layer}")).unwrap().to_f32().unwrap();
            let off = difference(&trunk.layer(*layer).unwrap(), &reference);
            println!("{name} block {layer}: {off:.1e} of the largest value");
            assert!(off < 1e-4, "{name} block {layer}: {off}");
        }
        let picked = described.probe_layers.clone().unwrap_or_else(|| layers.clone());
        let mut average = vec![0.0; trunk.layer(0).unwrap().len()];
        for &layer in &picked {
            let values = trunk.layer(layer).unwrap();
            average
                .iter_mut()
                .zip(values.iter())
                .for_each(|(sum, v)| *sum += v / picked.len() as f32);
        }
        let mut step = ProbeStep::new(&probe, batch, trunk.tokens(), false).unwrap();
        step.forward(&head, &average, &vec![-1; batch]).unwrap();
        let reference = expected.tensor(&format!("{name}.logits")).unwrap().to_f32().unwrap();
        let off = difference(&step.logits().unwrap(), &reference);
        println!("{name} logits: {off:.1e} of the largest value");
        assert!(off < 1e-4, "{name} logits: {off}");
    }
}
