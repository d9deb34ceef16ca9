//! Adapters against the trunk that they stand for: gradients, merging, files.

use super::*;
use crate::config::ImageSize;
use crate::features::FeatureExtractor;
use crate::init;
use crate::lora::{LoraTarget, merged_weights, peft};
use crate::trunk::PixelFormat;
use aim_tensor::io::safetensors::{TensorRef, write_file};
use aim_tensor::{Device, Philox};

const CLASSES: usize = 3;

fn tiny() -> AimConfig {
    AimConfig {
        img_size: ImageSize { height: 12, width: 8 },
        patch_size: 4,
        embed_dim: 16,
        num_blocks: 3,
        num_heads: 2,
        head_width: 16,
        head_depth: 1,
        ..AimConfig::default()
    }
}

fn lora(targets: &[LoraTarget]) -> LoraConfig {
    LoraConfig { rank: 2, alpha: 3.0, targets: targets.to_vec(), blocks: vec![0, 1, 2] }
}

fn model(lora: LoraConfig) -> FinetuneModel {
    let layers = vec![1, 2];
    FinetuneModel::new(FinetuneConfig { model: tiny(), lora, layers, classes: CLASSES }).unwrap()
}

const BATCH: ImageBatch = ImageBatch { batch: 2, height: 12, width: 8, format: PixelFormat::F32 };

fn pixels() -> Vec<f32> {
    let mut pixels = vec![0.0; 2 * 3 * 12 * 8];
    Philox::new(5, "pixels").fill_normal(1.0, &mut pixels);
    pixels
}

/// Random values everywhere, B included.
fn fill(params: &mut Parameters, model: &FinetuneModel) {
    init::initialize(params, 1);
    model.initialize(params, 2);
    let layout = params.layout().clone();
    for param in layout.iter().filter(|p| p.spec.name.ends_with("lora_B.weight")) {
        let id = layout.id(&param.spec.name).unwrap();
        Philox::new(3, &param.spec.name).fill_normal(0.2, params.value_mut(id));
    }
}

fn logits(model: &FinetuneModel, params: &Parameters) -> Vec<f32> {
    let mut step = FinetuneStep::new(model, BATCH, None, &Device::Cpu).unwrap();
    step.forward(params, Pixels::F32(&pixels())).unwrap();
    step.logits().unwrap().into_owned()
}

fn gradients(model: &FinetuneModel, params: &mut Parameters, recompute: Recompute) -> Vec<f32> {
    let mut step = FinetuneStep::new(model, BATCH, Some(recompute), &Device::Cpu).unwrap();
    params.zero_grads().unwrap();
    let targets = [0.7, 0.2, 0.1, 0.0, 1.0, 0.0];
    step.forward_training(params, Pixels::F32(&pixels()), &targets).unwrap();
    step.backward(params, 0.5).unwrap();
    params.grads().to_vec()
}

fn assert_near(what: &str, found: &[f32], expected: &[f64], allowed: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let top = expected.iter().fold(0.0_f64, |top, v| top.max(v.abs()));
    assert!(top > 1e-6, "{what}: nothing to compare");
    for (i, (&a, b)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - b).abs() <= allowed * top, "{what}[{i}]: {a}, not {b}");
    }
}

/// The same model with a trunk that trains too: `dA` and `dB` must follow from the gradient of the whole weight.
#[test]
fn gradients_of_adapters_follow_from_those_of_the_weights() {
    let config = lora(&[LoraTarget::Q, LoraTarget::V, LoraTarget::Proj]);
    let mut model = model(config.clone());
    let mut specs = Trunk::specs(&tiny(), true);
    specs.extend(config.specs(&tiny()));
    specs.extend(Head::specs(&model.config));
    let layout = Arc::new(ParamLayout::new(specs).unwrap());
    model.trunk = Trunk::bind(&tiny(), &layout).unwrap();
    model.adapters = Adapters::bind(&config, &tiny(), &layout).unwrap();
    model.head = Head::bind(&model.config, &layout).unwrap();
    model.layout = layout.clone();
    let mut params = Parameters::new(layout.clone()).unwrap();
    fill(&mut params, &model);
    gradients(&model, &mut params, Recompute::None);
    let (dim, rank, s) = (16, 2, 1.5);
    for block in 0..3 {
        for (layer, parts) in [("qkv", vec![0, 2]), ("proj", vec![0])] {
            let get = |which: &str| {
                layout.id(&format!("trunk.blocks.{block}.attn.{layer}.{which}")).unwrap()
            };
            let (w, a, b) = (get("weight"), get("lora_A.weight"), get("lora_B.weight"));
            let dw = params.grad(w).unwrap();
            let (mut da, mut db) = (vec![0.0; params.value(a).len()], Vec::new());
            for (i, part) in parts.iter().enumerate() {
                for row in 0..dim {
                    let dw = &dw[(part * dim + row) * dim..][..dim];
                    for r in 0..rank {
                        let a = &params.value(a)[(i * rank + r) * dim..][..dim];
                        let b = f64::from(params.value(b)[(i * dim + row) * rank + r]);
                        db.push(s * dw.iter().zip(a).map(|(w, a)| f64::from(w * a)).sum::<f64>());
                        for (da, dw) in da[(i * rank + r) * dim..][..dim].iter_mut().zip(dw) {
                            *da += s * b * f64::from(*dw);
                        }
                    }
                }
            }
            let what = format!("block {block} {layer}");
            assert_near(&format!("{what} dA"), params.grad(a).unwrap(), &da, 1e-4);
            assert_near(&format!("{what} dB"), params.grad(b).unwrap(), &db, 1e-4);
        }
    }
}

#[test]
fn what_is_made_again_changes_no_bit() {
    let model = model(lora(&[LoraTarget::Q, LoraTarget::K, LoraTarget::V, LoraTarget::Proj]));
    let mut params = Parameters::new(model.layout().clone()).unwrap();
    fill(&mut params, &model);
    let expected = gradients(&model, &mut params, Recompute::None);
    assert!(expected.iter().any(|&g| g != 0.0));
    for recompute in [Recompute::Norms, Recompute::NormsGelu, Recompute::Block] {
        assert_eq!(gradients(&model, &mut params, recompute), expected, "{recompute}");
    }
}

#[test]
fn nothing_is_computed_below_the_first_adapter() {
    let flops = |blocks: Vec<usize>| {
        let model = model(LoraConfig { blocks, ..lora(&[LoraTarget::Q, LoraTarget::Proj]) });
        let (tape, _) = model.record(BATCH, true).unwrap();
        let count = model.layout().trainable_len();
        assert!(count < model.layout().total_len() / 2, "{count} values train");
        aim_tensor::count::flops(&tape)
    };
    let (all, last) = (flops(vec![0, 1, 2]), flops(vec![2]));
    assert!(last.backward < all.backward / 2, "{last:?} {all:?}");
    // The trunk's products have a gradient of their input, none of their weight, and the first ones not even that.
    assert!(all.backward < all.forward, "{all:?}");
}

#[test]
fn fresh_adapters_change_nothing_and_merged_ones_no_more_than_rounding() {
    for targets in [
        &[LoraTarget::Q, LoraTarget::V, LoraTarget::Proj][..],
        &[LoraTarget::Qkv],
        &[LoraTarget::K, LoraTarget::Proj],
    ] {
        let model = model(lora(targets));
        let mut params = Parameters::new(model.layout().clone()).unwrap();
        init::initialize(&mut params, 1);
        model.initialize(&mut params, 2);
        let fresh = logits(&model, &params);
        let mut plain = FeatureExtractor::parameters(&tiny()).unwrap();
        init::initialize(&mut plain, 1);
        let mut trunk = FeatureExtractor::new(&tiny(), plain, &[1, 2]).unwrap();
        trunk.run(BATCH, Pixels::F32(&pixels())).unwrap();

        fill(&mut params, &model);
        let adapted = logits(&model, &params);
        let moved = adapted.iter().zip(&fresh).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(moved > 1e-3, "{targets:?}: adapters do nothing");
        let frozen = params.values().to_vec();
        let merged = merged_weights(model.adapters(), &params).unwrap();
        assert_eq!(params.values(), frozen);
        for (name, values) in &merged {
            let id = params.layout().id(name).unwrap();
            params.value_mut(id).copy_from_slice(values);
        }
        let layout = params.layout().clone();
        for param in layout.iter().filter(|p| p.spec.name.ends_with("lora_B.weight")) {
            params.value_mut(layout.id(&param.spec.name).unwrap()).fill(0.0);
        }
        for (a, b) in logits(&model, &params).iter().zip(&adapted) {
            assert!((a - b).abs() < 1e-5, "{targets:?}: {a} merged, {b} with adapters");
        }
    }
}

fn write(dir: &std::path::Path, config: &serde_json::Value, tensors: &[peft::PeftTensor]) {
    std::fs::write(dir.join(peft::CONFIG_FILE), config.to_string()).unwrap();
    let refs: Vec<_> =
        tensors.iter().map(|t| TensorRef::f32(&t.name, &t.shape, &t.values)).collect();
    let path = dir.join(format!("{}.safetensors", peft::MODEL_STEM));
    write_file(&path, &refs, &Default::default()).unwrap();
}

#[test]
fn pefts_files_come_back_in_bits_and_their_zero_blocks_are_zero() {
    use LoraTarget::{K, Proj, Q, Qkv, V};
    for targets in [&[Q, V, Proj][..], &[Q, K, V], &[K], &[Qkv, Proj], &[Proj], &[K, V]] {
        let model = model(lora(targets));
        let mut params = Parameters::new(model.layout().clone()).unwrap();
        fill(&mut params, &model);
        let dir = tempfile::tempdir().unwrap();
        let tensors = peft::tensors(model.adapters(), &params);
        let config = peft::config(model.adapters(), 3, "base");
        write(dir.path(), &config, &tensors);
        let read = peft::read(dir.path(), &tiny()).unwrap();
        assert_eq!(read.config, lora(targets));
        let mut back = Parameters::new(model.layout().clone()).unwrap();
        fill(&mut back, &model);
        for param in model.layout().iter().filter(|p| FinetuneModel::is_adapter(&p.spec.name)) {
            back.value_mut(model.layout().id(&param.spec.name).unwrap()).fill(f32::NAN);
        }
        read.fill(&mut back).unwrap();
        let bits = |p: &Parameters| p.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&params), "{targets:?}");
    }
    let model = model(lora(&[Q, V, Proj]));
    let mut params = Parameters::new(model.layout().clone()).unwrap();
    fill(&mut params, &model);
    let tensors = peft::tensors(model.adapters(), &params);
    let b = tensors.iter().find(|t| t.name.ends_with("blocks.1.attn.qkv.lora_B.weight")).unwrap();
    assert_eq!(b.name, "base_model.model.trunk.blocks.1.attn.qkv.lora_B.weight");
    assert_eq!(b.shape, [48, 4]);
    for (i, v) in b.values.iter().enumerate() {
        let (row, column) = (i / 4, i % 4);
        let inside = (row < 16 && column < 2) || (row >= 32 && column >= 2);
        assert_eq!(v.to_bits() == 0, !inside, "{row} {column}");
    }
}

#[test]
fn adapters_of_other_kinds_are_refused_with_a_reason() {
    use LoraTarget::{Proj, Q, V};
    let model = model(lora(&[Q, V, Proj]));
    let mut params = Parameters::new(model.layout().clone()).unwrap();
    fill(&mut params, &model);
    let tensors = peft::tensors(model.adapters(), &params);
    let config = peft::config(model.adapters(), 3, "base");
    let refused = |config: &serde_json::Value, tensors: &[peft::PeftTensor], says: &str| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), config, tensors);
        let error = peft::read(dir.path(), &tiny()).unwrap_err().to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    };
    let with = |key: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    refused(&with("peft_type", "IA3".into()), &tensors, "IA3");
    refused(&with("use_dora", true.into()), &tensors, "use_dora");
    refused(&with("bias", "all".into()), &tensors, "bias");
    refused(&with("r", 5.into()), &tensors, "expected [5, 16], found [2, 16]");
    refused(&with("alpha_pattern", serde_json::json!({})), &tensors, "alpha / rank differs");
    let mut other = tensors.clone();
    other[0].name = other[0].name.replace("attn.qkv", "mlp.fc1");
    refused(&config, &other, "no such tensor");
    let mut more = tensors.clone();
    more.push(peft::PeftTensor { name: "base_model.model.x".into(), ..tensors[0].clone() });
    refused(&config, &more, "base_model.model.x");
    let mut nan = tensors.clone();
    nan[1].values[0] = f32::NAN;
    refused(&config, &nan, "finite");
    refused(&config, &tensors[..tensors.len() - 2], "the same layers in every block");
    let mut foreign = tensors;
    for tensor in foreign.iter_mut().filter(|t| t.name.ends_with("qkv.lora_B.weight")) {
        tensor.values.fill(0.5);
    }
    refused(&config, &foreign, "ranks that differ");
}
