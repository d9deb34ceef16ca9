//! Weights in every format through the commands: what is read, what is written, what is refused.
// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aim_model::classifier::{Probe, ProbeConfig, ProbeKind, ProbeStep};
use aim_model::features::FeatureExtractor;
use aim_model::pretrain::Pixels;
use aim_model::trunk::{ImageBatch, PixelFormat};
use aim_model::weights::{self, Checkpoint};
use aim_tensor::Parameters;
use aim_tensor::io::safetensors::{Dtype, SafeTensors, TensorRef, write_file};
use common::*;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// The random ml-aim model that aim-model's tests hold to ml-aim's numbers.
fn ml_aim_tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-model/tests/fixtures/ml-aim-tiny")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The bytes of the features of four images.
fn features(checkpoint: &str, dir: &Path, data: &str) -> Vec<u8> {
    let out = dir.join("features.safetensors");
    let mut command = aim();
    command.args(["features", "--checkpoint", checkpoint, "--data", data, "--layers", "last:2"]);
    run(command.args(["--device", "cpu", "--quiet", "--out", text(&out)]), 0);
    fs::read(&out).unwrap()
}

const IMAGES: &str = "synthetic:stripes,n=4,size=16";

#[test]
fn every_format_gives_the_same_features() {
    let dir = tempfile::tempdir().unwrap();
    let expected = features(text(&fixtures("")), dir.path(), IMAGES);
    let list =
        format!("{},{}", text(&fixtures("backbone.pth")), text(&fixtures("head_best_layers.pth")));
    let mut sources = vec![list];
    for name in
        ["fp32.pth", "fp16.pth", "bf16.pt", "legacy.pth", "backbone.pth", "wrapped.pth", "sharded"]
    {
        sources.push(text(&fixtures(name)).to_owned());
    }
    for source in sources {
        assert!(features(&source, dir.path(), IMAGES) == expected, "{source}");
    }
    // A directory with nothing but pytorch_model.bin.
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(fixtures("fp32.pth"), bin.join("pytorch_model.bin")).unwrap();
    fs::copy(fixtures("config.json"), bin.join("config.json")).unwrap();
    assert!(features(text(&bin), dir.path(), IMAGES) == expected);
}

#[test]
fn imported_weights_are_the_same_and_the_directory_is_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let expected = features(text(&fixtures("")), dir.path(), IMAGES);
    let list =
        format!("{},{}", text(&fixtures("backbone.pth")), text(&fixtures("head_best_layers.pth")));
    for (name, dtype, stored) in [("a", "fp32", Dtype::F32), ("b", "bf16", Dtype::BF16)] {
        let out = dir.path().join("new").join(name);
        let import = || {
            let mut command = aim();
            command.args(["weights", "import", &list, "--dtype", dtype, "--out", text(&out)]);
            command
        };
        run(&mut import(), 0);
        assert_eq!(listing(&out), ["aim.json", "config.json", "model.safetensors"]);
        assert!(features(text(&out), dir.path(), IMAGES) == expected, "{dtype}");
        let file = SafeTensors::open(&out).unwrap();
        assert_eq!(file.tensor("trunk.blocks.0.attn.qkv.weight").unwrap().dtype, stored);
        assert_eq!(file.tensor("head.bn.running_var").unwrap().dtype, Dtype::F32);
        let counter = file.tensor("head.bn.num_batches_tracked").unwrap();
        assert_eq!((counter.shape, counter.to_i64().unwrap()), ([].as_slice(), vec![1234]));
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        assert!(
            config.contains("probe_layers") && config.contains("\"num_classes\": 3"),
            "{config}"
        );
        refused(&mut import(), 1, &["expected a new or empty directory"]);
    }
    let out = dir.path().join("failed");
    let twice = format!("{list},{}", text(&fixtures("fp32.pth")));
    let mut command = aim();
    command.args(["weights", "import", &twice, "--out", text(&out)]);
    refused(&mut command, 1, &["tensor `", "is there twice"]);
    let mut command = aim();
    let head = fixtures("head_best_layers.pth");
    command.args(["weights", "import", text(&head), "--out", text(&out)]);
    refused(&mut command, 1, &["tensor preprocessor.patchifier.", "found no such tensor"]);
    let left = listing(dir.path());
    assert!(left.iter().all(|name| !name.contains("failed")), "{left:?}");
}

#[test]
fn files_that_would_run_code_are_refused() {
    let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aim-tensor/tests/fixtures/torch");
    for (name, expected) in [
        ("refused_module.pth", "`torch.nn.modules.linear.Linear`"),
        ("refused_namespace.pth", "`argparse.Namespace`"),
    ] {
        let path = torch.join(name);
        let mut command = aim();
        command.args(["weights", "verify", text(&path)]);
        refused(&mut command, 1, &["is refused", expected, "save the state dict alone"]);
    }
}

#[test]
fn verify_lists_tensors_and_fails_on_what_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let verify = |path: &Path| {
        let mut command = aim();
        command.args(["weights", "verify", text(path), "--json"]);
        let output = command.output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json, stderr(&output))
    };
    let (code, json, _) = verify(&fixtures("fp16.pth"));
    assert_eq!((code, &json["ok"]), (Some(0), &true.into()));
    assert_eq!(json["tensors"].as_array().unwrap().len(), 29);
    let of = |json: &serde_json::Value, name: &str| {
        json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let fc1 = of(&json, "trunk.blocks.1.mlp.fc1.weight");
    assert_eq!((&fc1["dtype"], &fc1["shape"]), (&"F16".into(), &serde_json::json!([64, 16])));
    assert_eq!((&fc1["min"], &fc1["max"]), (&(-0.5).into(), &0.5.into()));

    let file = SafeTensors::open(fixtures("model.safetensors")).unwrap();
    let mut tensors: BTreeMap<&str, (Vec<usize>, Vec<f32>)> = file
        .tensors()
        .filter(|view| view.dtype == Dtype::F32)
        .map(|view| (view.name, (view.shape.to_vec(), view.to_f32().unwrap())))
        .collect();
    tensors.remove("trunk.blocks.0.norm_2.bias");
    tensors.get_mut("trunk.post_trunk_norm.bias").unwrap().1[3] = f32::NAN;
    let refs: Vec<_> = tensors.iter().map(|(name, (s, v))| TensorRef::f32(name, s, v)).collect();
    write_file(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    fs::copy(fixtures("config.json"), dir.path().join("config.json")).unwrap();
    let (code, json, text) = verify(dir.path());
    assert_eq!((code, &json["non_finite"]), (Some(1), &1.into()));
    assert_eq!(json["missing"], serde_json::json!(["trunk.blocks.0.norm_2.bias"]));
    assert!(
        text.contains("1 tensors missing, 0 of another shape, 1 elements not finite"),
        "{text}"
    );
}

#[test]
fn released_names_are_held_to_the_published_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let name = "aim_600m_2bimgs_attnprobe_backbone.pth";
    let path = dir.path().join(name);
    fs::copy(fixtures("backbone.pth"), &path).unwrap();
    fs::copy(fixtures("config.json"), dir.path().join("config.json")).unwrap();
    let out = dir.path().join("out");
    for command in [vec!["verify"], vec!["import", "--out", text(&out)]] {
        let mut run = aim();
        run.arg("weights").args(command).arg(&path);
        refused(&mut run, 1, &[name, "expected a SHA-256 that starts with 0d6f6b8f", ", found "]);
    }
    assert!(!out.exists());
}

/// Our logits for the images of ml-aim-tiny, by the model in an exported directory.
fn logits(dir: &Path, out: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = checkpoint.config().clone();
    let layers = checkpoint.probe_layers().unwrap();
    let mut params = FeatureExtractor::parameters(&config).unwrap();
    weights::load(&mut params, &checkpoint, dir).unwrap();
    let mut trunk = FeatureExtractor::new(&config, params, &layers).unwrap();
    let probe = Probe::new(ProbeConfig {
        kind: ProbeKind::Attentive,
        dim: config.embed_dim,
        heads: config.num_heads,
        classes: checkpoint.num_classes().unwrap(),
    })
    .unwrap();
    let mut head = Parameters::new(probe.layout().clone()).unwrap();
    weights::load(&mut head, &checkpoint, dir).unwrap();
    let inputs = SafeTensors::open(ml_aim_tiny().join("inputs.safetensors")).unwrap();
    let mut results = Vec::new();
    for view in inputs.tensors() {
        let &[batch, _, height, width] = view.shape else { panic!("{:?}", view.shape) };
        let images = ImageBatch { batch, height, width, format: PixelFormat::F32 };
        trunk.run(images, Pixels::F32(&view.to_f32().unwrap())).unwrap();
        let mut average = vec![0.0; batch * trunk.tokens() * config.embed_dim];
        for at in 0..layers.len() {
            for (sum, value) in average.iter_mut().zip(trunk.layer(at).unwrap().iter()) {
                *sum += value / layers.len() as f32;
            }
        }
        let mut step = ProbeStep::new(&probe, batch, trunk.tokens(), false).unwrap();
        step.forward(&head, &average, &vec![-1; batch]).unwrap();
        let values = step.logits().unwrap().into_owned();
        results.push((view.name, [batch, values.len() / batch], values));
    }
    let refs: Vec<_> = results.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    write_file(out, &refs, &BTreeMap::new()).unwrap();
}

fn export(checkpoint: &Path, more: &[&str], out: &Path) -> Command {
    let mut command = aim();
    command.args(["weights", "export", "--checkpoint", text(checkpoint)]);
    command.args(more).args(["--out", text(out)]);
    command
}

#[test]
fn exports_hold_ml_aims_names_and_keys_and_say_what_they_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("export");
    run(&mut export(&ml_aim_tiny(), &[], &out), 0);
    assert_eq!(listing(&out), ["config.json", "model.safetensors"]);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    let original: serde_json::Value =
        serde_json::from_slice(&fs::read(ml_aim_tiny().join("config.json")).unwrap()).unwrap();
    assert_eq!(config, original);
    let (ours, theirs) =
        (SafeTensors::open(&out).unwrap(), SafeTensors::open(ml_aim_tiny()).unwrap());
    assert_eq!(ours.metadata().get("format").map(String::as_str), Some("pt"));
    let names = |file: &SafeTensors| {
        file.names().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    for view in theirs.tensors() {
        let found = ours.tensor(view.name).unwrap();
        assert_eq!((found.dtype, found.shape), (view.dtype, view.shape), "{}", view.name);
        if view.dtype == Dtype::F32 {
            assert_eq!(found.to_f32().unwrap(), view.to_f32().unwrap(), "{}", view.name);
        }
    }
    let shards = dir.path().join("shards");
    let text = run(&mut export(&ml_aim_tiny(), &["--max-shard-size", "1MB"], &shards), 0);
    assert!(text.contains("reads model.safetensors only"), "{text}");
    let files = listing(&shards);
    assert!(
        files.len() > 3 && files.contains(&"model.safetensors.index.json".to_owned()),
        "{files:?}"
    );
    assert_eq!(names(&SafeTensors::open(&shards).unwrap()), names(&theirs));
}

/// A run, its probe's heads, and what of them can be exported.
#[test]
fn a_trained_head_is_exported_with_its_layers() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run(&mut pretrain_stripes(&run_dir, 10, &["--set", "model.norm_eps=1e-5"]), 0);
    let probe = dir.path().join("probe");
    let mut command = aim();
    command.args(["probe", "--checkpoint", text(&run_dir), "--out", text(&probe), "--epochs", "1"]);
    command.args([
        "--train",
        LABELLED,
        "--val",
        LABELLED,
        "--kind",
        "attentive,linear",
        "--layers",
        "0",
    ]);
    run(&mut command, 0);
    let head = probe.join("head-attentive.safetensors");
    let metadata = SafeTensors::open(&head).unwrap().metadata().clone();
    for (key, value) in [("heads", "2"), ("kind", "attentive"), ("layers", "0"), ("dim", "16")] {
        assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{metadata:?}");
    }
    let out = dir.path().join("export");
    let said = run(&mut export(&run_dir, &["--head", text(&head)], &out), 0);
    assert!(said.contains("norm_eps = 1e-5") && said.contains("1e-6"), "{said}");
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (&config["probe_layers"], &config["num_classes"]),
        (&serde_json::json!([0]), &4.into())
    );
    let file = SafeTensors::open(&out).unwrap();
    assert!(file.names().all(|name| !name.starts_with("pixel_head.")));
    assert_eq!(file.tensor("head.bn.num_batches_tracked").unwrap().to_i64().unwrap(), [0]);

    let again = dir.path().join("again");
    let linear = probe.join("head-linear.safetensors");
    let mut command = export(&run_dir, &["--head", text(&linear)], &again);
    refused(&mut command, 1, &["a linear head", "--kind attentive"]);
    let silent = dir.path().join("head.safetensors");
    let file = SafeTensors::open(&head).unwrap();
    let values: Vec<_> = file.tensors().map(|v| (v.name, v.shape, v.to_f32().unwrap())).collect();
    let refs: Vec<_> = values.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    write_file(&silent, &refs, &BTreeMap::new()).unwrap();
    refused(&mut export(&run_dir, &["--head", text(&silent)], &again), 2, &["--layers"]);
    run(&mut export(&run_dir, &["--head", text(&silent), "--layers", "last:1"], &again), 0);
    let bare = dir.path().join("bare");
    let said = run(&mut export(&run_dir, &[], &bare), 0);
    assert!(said.contains("no head is exported"), "{said}");
    // The run itself, with its pixel head.
    run(aim().args(["weights", "verify", text(&run_dir)]), 0);
}

/// Runs a script of `tests/python` with `AIM_PYTHON`; none, with the reason printed, where it lacks a library.
fn python(script: &str, arguments: &[&Path]) -> Option<Output> {
    let interpreter = std::env::var_os("AIM_PYTHON").unwrap_or_else(|| "python3".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = match Command::new(&interpreter).arg(path).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {}: {error}", interpreter.display());
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(3) {
        println!("skipped: {}: {said}", interpreter.display());
        return None;
    }
    assert!(output.status.success(), "{said}{}", stderr(&output));
    println!("{said}");
    Some(output)
}

#[test]
fn ml_aim_loads_our_exports_strictly_and_gives_our_logits() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in ["fp32", "bf16"] {
        let (out, ours) = (dir.path().join(dtype), dir.path().join(format!("{dtype}.safetensors")));
        run(&mut export(&ml_aim_tiny(), &["--dtype", dtype], &out), 0);
        logits(&out, &ours);
        let inputs = ml_aim_tiny().join("inputs.safetensors");
        python("ml_aim_export.py", &[&out, &inputs, &ours]);
    }
}

#[test]
fn what_pytorch_saves_gives_the_features_of_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let model = ml_aim_tiny().join("model.safetensors");
    if python("torch_formats.py", &[&model, dir.path()]).is_none() {
        return;
    }
    fs::copy(ml_aim_tiny().join("config.json"), dir.path().join("config.json")).unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    let data = format!("tensors:{}", text(&ml_aim_tiny().join("inputs.safetensors")));
    let name = SafeTensors::open(ml_aim_tiny().join("inputs.safetensors")).unwrap();
    let square =
        name.tensors().find(|view| view.shape[2] == view.shape[3]).unwrap().name.to_owned();
    let data = format!("{data}#{square}");
    let list = format!("{},{}", at("fp32_backbone.pth"), at("fp32_head.pth"));
    for (sources, expected) in [
        (vec![at("fp32.pth"), at("fp32_legacy.pth"), list], at("fp32.safetensors")),
        (vec![at("fp16.pth")], at("fp16.safetensors")),
        (vec![at("bf16.pth")], at("bf16.safetensors")),
    ] {
        let expected = features(&expected, dir.path(), &data);
        for source in sources {
            assert!(features(&source, dir.path(), &data) == expected, "{source}");
        }
    }
}
