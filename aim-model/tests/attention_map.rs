//! The attention of a probe, held to ml-aim's logits: what its heads see, weighted by the map, gives them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::path::Path;

use aim_model::trained_head::TrainedHead;
use aim_model::weights::read_ml_aim_config;
use aim_tensor::io::safetensors::SafeTensors;

#[test]
fn values_weighted_by_the_map_give_ml_aims_logits() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ml-aim-tiny");
    let described = read_ml_aim_config(&dir).unwrap();
    let (dim, heads) = (described.embed_dim, described.num_heads);
    let file = SafeTensors::open(&dir).unwrap();
    let head = TrainedHead::read(&file, &dir, heads).unwrap();
    let query = head.attention().unwrap().unwrap();
    let tensor = |name: &str| file.tensor(name).unwrap().to_f32().unwrap();
    let (value, linear) = (tensor("head.v.weight"), tensor("head.linear.weight"));
    let (mean, var) = (tensor("head.bn.running_mean"), tensor("head.bn.running_var"));
    let expected = SafeTensors::open(dir.join("expected.safetensors")).unwrap();
    for name in ["images_56x56", "images_56x84"] {
        let layers = described.probe_layers.clone().unwrap();
        let mut features: Vec<f32> = Vec::new();
        for layer in &layers {
            let block =
                expected.tensor(&format!("{name}.block_{layer}")).unwrap().to_f32().unwrap();
            features.resize(block.len(), 0.0);
            features.iter_mut().zip(block).for_each(|(f, b)| *f += b / layers.len() as f32);
        }
        let logits = expected.tensor(&format!("{name}.logits")).unwrap();
        let (images, classes) = (logits.shape[0], logits.shape[1]);
        let logits = logits.to_f32().unwrap();
        let largest = logits.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        for (image, features) in features.chunks_exact(features.len() / images).enumerate() {
            let tokens = features.len() / dim;
            let map = query.map(features);
            assert_eq!(map.len(), heads * tokens);
            // v is linear, so the values' mean is the value of the mean.
            let mut pooled = vec![0.0f64; dim];
            for (d, pooled) in pooled.iter_mut().enumerate() {
                let weights = &map[d / (dim / heads) * tokens..][..tokens];
                for (token, p) in features.chunks_exact(dim).zip(weights) {
                    let v: f64 = (0..dim)
                        .map(|j| {
                            let f = (token[j] - mean[j]) / (var[j] + 1e-6).sqrt();
                            f64::from(f) * f64::from(value[d * dim + j])
                        })
                        .sum();
                    *pooled += f64::from(*p) * v;
                }
            }
            for class in 0..classes {
                let row = &linear[class * dim..][..dim];
                let found: f64 = row.iter().zip(&pooled).map(|(&w, p)| f64::from(w) * p).sum();
                let off = (found as f32 - logits[image * classes + class]).abs() / largest;
                assert!(off < 1e-4, "{name} image {image} class {class}: {off}");
            }
        }
    }
}
