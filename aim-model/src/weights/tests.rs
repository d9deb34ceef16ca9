//! Weights under the names of others, in one file or several, with and without a configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aim_tensor::io::TensorSource as _;
use aim_tensor::io::safetensors::{TensorRef, write_file};
use aim_tensor::{ParamSpec, Parameters};

use super::*;
use crate::config::{AimConfig, HeadResidual, ImageSize};
use crate::position::sin_cos_2d;
use crate::pretrain::{PretrainModel, Target};
use crate::trunk::Trunk;

type Tensor = (String, Vec<usize>, Vec<f32>);

/// A head of 128, which sizes without a configuration need; two blocks.
fn small() -> AimConfig {
    AimConfig {
        img_size: ImageSize::square(16),
        patch_size: 4,
        embed_dim: 128,
        num_blocks: 2,
        num_heads: 1,
        head_width: 16,
        head_depth: 1,
        ..AimConfig::default()
    }
}

/// Tensors whose values tell them apart.
fn filled(specs: &[ParamSpec]) -> Vec<Tensor> {
    let numbered = specs.iter().enumerate();
    numbered
        .map(|(at, spec)| {
            let values = (0..spec.shape.len()).map(|i| at as f32 + i as f32 / 1e6).collect();
            (spec.name.clone(), spec.shape.dims().to_vec(), values)
        })
        .collect()
}

fn write(path: &Path, tensors: &[Tensor]) -> PathBuf {
    let refs: Vec<_> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    write_file(path, &refs, &BTreeMap::new()).unwrap();
    path.to_owned()
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut values = vec![0.0; checkpoint.shape(name).unwrap().iter().product()];
    checkpoint.copy_to_f32(name, &mut values).unwrap();
    values
}

/// The tensors as ml-l3m would hold them, with fixed positions of a 4 x 4 grid.
fn as_l3m(tensors: &[Tensor], config: &AimConfig) -> Vec<Tensor> {
    let dim = config.embed_dim;
    let mut renamed = Vec::new();
    for (name, shape, values) in tensors {
        if let Some(stem) = name.strip_suffix("qkv.weight") {
            for (letter, rows) in ["q", "k", "v"].iter().zip(values.chunks(dim * dim)) {
                renamed.push((
                    format!("{stem}{letter}_proj.weight"),
                    vec![dim, dim],
                    rows.to_vec(),
                ));
            }
            continue;
        }
        let name = name
            .replace("preprocessor.patchifier.", "preprocessor.blocks.0.patchifier.")
            .replace("pixel_head.proj.", "head.decoder_projection.")
            .replace("pixel_head.", "head.decoder_");
        renamed.push((name, shape.clone(), values.clone()));
    }
    for (name, dim) in
        [("preprocessor.blocks.0.pos_embed", dim), ("head.decoder_pos_embed", config.head_width)]
    {
        renamed.push((name.to_owned(), vec![1, 16, dim], sin_cos_2d(4, 4, dim)));
    }
    renamed
}

#[test]
fn ml_l3ms_checkpoints_are_read_under_our_names() {
    let dir = tempfile::tempdir().unwrap();
    let config = AimConfig { head_residual: HeadResidual::L3m, norm_eps: 1e-5, ..small() };
    let model = PretrainModel::new(&config, Target::NormalizedPixels).unwrap();
    let specs: Vec<ParamSpec> = model.layout().iter().map(|p| p.spec.clone()).collect();
    let ours = filled(&specs);
    let theirs = as_l3m(&ours, &config);
    let names: Vec<&str> = theirs.iter().map(|(name, ..)| name.as_str()).collect();
    for name in [
        "preprocessor.blocks.0.patchifier.proj.bias",
        "trunk.blocks.1.attn.k_proj.weight",
        "trunk.blocks.1.attn.proj.weight",
        "head.decoder_projection.weight",
        "head.decoder_blocks.0.norm_1.bias",
        "head.decoder_blocks.0.mlp.fc2.weight",
        "head.decoder_norm.weight",
        "head.decoder_pred.bias",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let checkpoint =
        Checkpoint::open(&write(&dir.path().join("l3m.safetensors"), &theirs)).unwrap();
    assert!(checkpoint.is_l3m());
    assert_eq!(checkpoint.config(), &config, "{:?}", checkpoint.notes());
    let mut params = Parameters::without_gradients(model.layout().clone()).unwrap();
    assert_eq!(load(&mut params, &checkpoint, checkpoint.path()).unwrap(), Vec::<String>::new());
    for (name, _, values) in &ours {
        assert_eq!(params.value(model.layout().id(name).unwrap()), values.as_slice(), "{name}");
    }

    let refused = |change: &dyn Fn(&mut Vec<Tensor>), expected: &str| {
        let mut theirs = theirs.clone();
        change(&mut theirs);
        let path = write(&dir.path().join("changed.safetensors"), &theirs);
        let error = Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} in {error}");
    };
    let last = theirs.len() - 1;
    refused(&|theirs| theirs[last].2[5] += 0.01, "`head.decoder_pos_embed` is not the table");
    refused(&|theirs| theirs[last].2[5] = f32::NAN, "`head.decoder_pos_embed` is not the table");
    refused(&|theirs| theirs[last].1 = vec![1, 8, 32], "positions of a square grid");
    let k = names.iter().position(|name| name.ends_with("0.attn.k_proj.weight")).unwrap();
    refused(&|theirs| drop(theirs.remove(k)), "would need q_proj, k_proj and v_proj");
    refused(&|theirs| theirs[k].1 = vec![64, 256], "beside another shape");
}

#[test]
fn sizes_come_from_shapes_where_nothing_else_says_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = small();
    let path = write(&dir.path().join("trunk.safetensors"), &filled(&Trunk::specs(&config, false)));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let default = AimConfig::default();
    let expected = AimConfig {
        img_size: ImageSize::square(224),
        head_width: default.head_width,
        head_depth: default.head_depth,
        ..config.clone()
    };
    assert_eq!(checkpoint.config(), &expected);
    let note = checkpoint.notes().join("\n");
    assert!(note.contains("2 blocks of width 128") && note.contains("heads of 128"), "{note}");
    // Beside it, a configuration counts.
    fs::write(
        dir.path().join("config.json"),
        r#"{"img_size": 16, "patch_size": 4, "embed_dim": 128, "num_blocks": 2, "num_heads": 2, "probe_layers": [1]}"#,
    )
    .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!((checkpoint.config().num_heads, checkpoint.config().num_patches()), (2, 16));
    assert_eq!(checkpoint.probe_layers(), Some(vec![1]));

    let odd = tempfile::tempdir().unwrap();
    let narrow = AimConfig { embed_dim: 96, num_heads: 3, ..small() };
    let path = write(&odd.path().join("a.safetensors"), &filled(&Trunk::specs(&narrow, false)));
    let error = Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("96 is no multiple of 128") && error.contains("config.json"), "{error}");
    let path = write(&odd.path().join("b.safetensors"), &[("x".into(), vec![1], vec![0.0])]);
    let error = Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`preprocessor.patchifier.proj.weight`, found none"), "{error}");
}

#[test]
fn files_are_merged_and_prefixes_of_wrappers_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = small();
    let trunk = filled(&Trunk::specs(&config, false));
    let head = filled(&verify::attentive_specs(&config, 5));
    let renamed = |name: &dyn Fn(&str) -> String| -> Vec<Tensor> {
        trunk.iter().map(|(n, s, v)| (name(n), s.clone(), v.clone())).collect()
    };
    let backbone = write(&dir.path().join("backbone.safetensors"), &trunk);
    let head = write(&dir.path().join("head_last_layers.safetensors"), &head);
    let both = PathBuf::from(format!("{},{}", backbone.display(), head.display()));
    let checkpoint = Checkpoint::open(&both).unwrap();
    assert_eq!(checkpoint.num_classes(), Some(5));
    assert_eq!(checkpoint.probe_layers(), Some(vec![0, 1]), "the last six of two");
    assert_eq!(checkpoint.files().len(), 2);
    assert_eq!(verify::coverage(&checkpoint), verify::Coverage::default());

    let twice = PathBuf::from(format!("{},{}", backbone.display(), backbone.display()));
    let error = Checkpoint::open(&twice).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tensor `preprocessor.patchifier.norm.bias` is there twice"), "{error}");

    let wrappers: [&dyn Fn(&str) -> String; 3] =
        [&|name| format!("module.{name}"), &|name| format!("module._orig_mod.{name}"), &|name| {
            name.replace("blocks.", "_orig_mod.blocks.")
                .replace("attn.", "_checkpoint_wrapped_module.attn.")
        }];
    for (at, wrapper) in wrappers.iter().enumerate() {
        let path = write(&dir.path().join(format!("{at}.safetensors")), &renamed(wrapper));
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (name, _, expected) in &trunk {
            assert_eq!(&values(&checkpoint, name), expected, "{name}");
        }
        assert!(checkpoint.notes().iter().any(|note| note.contains("prefixes of wrappers")));
    }
    let error = Checkpoint::open(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected model.safetensors or pytorch_model.bin"), "{error}");
}

#[test]
fn verify_finds_what_is_missing_or_unsound() {
    let dir = tempfile::tempdir().unwrap();
    let config = small();
    let mut tensors = filled(&Trunk::specs(&config, false));
    let (gone, ..) = tensors.remove(3);
    tensors[0].2[0] = f32::NAN;
    tensors[0].2[1] = f32::INFINITY;
    let (bad, ..) = tensors[0].clone();
    tensors.push(("other".into(), vec![2], vec![1.0, 4.0]));
    let checkpoint = Checkpoint::open(&write(&dir.path().join("a.safetensors"), &tensors)).unwrap();
    let coverage = verify::coverage(&checkpoint);
    assert_eq!((coverage.missing, coverage.extra), (vec![gone], vec!["other".to_owned()]));
    let mut buffer = Vec::new();
    let of =
        |name: &str, buffer: &mut Vec<f32>| verify::statistics(&checkpoint, name, buffer).unwrap();
    assert_eq!(of(&bad, &mut buffer).non_finite, 2);
    assert!(of(&bad, &mut buffer).mean.is_finite());
    let other = of("other", &mut buffer);
    assert_eq!((other.mean, other.std, other.min, other.max), (2.5, 1.5, 1.0, 4.0));
}

#[test]
fn released_files_are_known_by_name() {
    for preset in ["aim-600M", "aim-1B", "aim-3B", "aim-7B"] {
        let config = AimConfig::preset(preset).unwrap();
        assert_eq!(released::known_size(&config), Some(preset));
        let parts: Vec<_> = released::RELEASED.iter().filter(|r| r.preset == preset).collect();
        assert_eq!(parts.len(), 3);
        let (first, best) = match preset {
            "aim-600M" | "aim-7B" => (config.num_blocks - 6, 14),
            _ => (config.num_blocks - 6, 12),
        };
        for released in parts {
            let found = released::find(&Path::new("/somewhere").join(released.file));
            assert_eq!(found, Some(released));
            let layers = released::probe_layers(Path::new(released.file), &config);
            let expected = match released.part {
                released::Part::Backbone => None,
                released::Part::HeadLast => Some((first..first + 6).collect::<Vec<_>>()),
                released::Part::HeadBest => Some((best..best + 6).collect()),
            };
            assert_eq!(layers, expected);
        }
    }
    assert_eq!(released::known_size(&AimConfig::preset("aim-nano").unwrap()), None);
}
