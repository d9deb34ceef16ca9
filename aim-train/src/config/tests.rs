use std::path::Path;

use super::*;

fn write(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn file_error(text: &str) -> String {
    let (_dir, path) = write(text);
    match ConfigBuilder::new().file(&path).and_then(ConfigBuilder::build) {
        Ok(resolved) => panic!("accepted: {resolved:?}"),
        Err(error) => error.to_string(),
    }
}

fn set_error(text: &str) -> String {
    match ConfigBuilder::new().set(text).and_then(ConfigBuilder::build) {
        Ok(resolved) => panic!("accepted: {resolved:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn stronger_layers_win_in_any_order_of_calls() {
    let (_dir, path) = write(
        "[train]\nlr = 2e-3\nsteps = 5\nseed = 7\n\n[model]\nembed_dim = 256\nnum_heads = 4\n",
    );
    let resolved = ConfigBuilder::new()
        .flag("--steps", "train.steps", 9_i64)
        .unwrap()
        .set("train.steps=8")
        .unwrap()
        .set("train.lr=3e-3")
        .unwrap()
        .file(&path)
        .unwrap()
        .preset("aim-nano")
        .unwrap()
        .build()
        .unwrap();
    let config = &resolved.config;
    assert_eq!((config.train.steps, config.train.lr, config.train.seed), (9, 3e-3, 7));
    assert_eq!((config.model.embed_dim, config.model.patch_size), (256, 4));
    let origin = |key| resolved.origin(key).to_string();
    assert_eq!(origin("train.steps"), "--steps");
    assert_eq!(origin("train.lr"), "--set");
    assert_eq!(origin("train.seed"), format!("{}:4", path.display()));
    assert_eq!(origin("model.num_heads"), format!("{}:8", path.display()));
    assert_eq!(origin("model.patch_size"), "preset aim-nano");
    assert_eq!(origin("train.clip"), "default");
}

#[test]
fn the_last_of_equal_layers_wins() {
    let builder = ConfigBuilder::new().set("train.lr=1").unwrap().set("train.lr=2").unwrap();
    assert_eq!(builder.build().unwrap().config.train.lr, 2.0);
}

#[test]
fn every_preset_builds() {
    for name in aim_model::config::PRESETS {
        let resolved = ConfigBuilder::new().preset(name).unwrap().build().unwrap();
        assert_eq!(resolved.config.model, aim_model::config::AimConfig::preset(name).unwrap());
    }
    let paper = ConfigBuilder::new().preset("aim-7B").unwrap().build().unwrap();
    assert_eq!(paper.config.train.images_per_step(), 4096);
}

#[test]
fn set_understands_words_lists_and_exponents() {
    let config = ConfigBuilder::new()
        .set("objective.target=raw_pixels")
        .unwrap()
        .set("objective.prefix=16")
        .unwrap()
        .set("train.steps=1e5")
        .unwrap()
        .set("data.scale=[0.08, 1]")
        .unwrap()
        .set("data.train=[\"wds:a{0..3}.tar@0.8\", \"b\"]")
        .unwrap()
        .build()
        .unwrap()
        .config;
    assert_eq!(config.objective.target, Target::RawPixels);
    assert_eq!(config.objective.prefix, Prefix::Fixed(16));
    assert_eq!(config.train.steps, 100_000);
    assert_eq!(config.data.scale, [0.08, 1.0]);
    assert_eq!(config.data.train, ["wds:a{0..3}.tar@0.8", "b"]);
}

#[test]
fn values_must_fit_each_other() {
    let builder = ConfigBuilder::new().set("objective.prefix = 16").unwrap();
    let builder = builder.set("model.img_size=[28, 56]").unwrap();
    // 2 x 4 patches at this size: 16 cannot be a prefix.
    let error = builder.build().unwrap_err().to_string();
    assert!(
        error.starts_with("objective.prefix = 16 (--set): expected between 1 and 7"),
        "{error}"
    );
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    let cases = [
        (
            "train.batchsize=8",
            "unknown key train.batchsize (--set); did you mean train.batch_size?",
        ),
        ("train.learning_rate=8", "did you mean train.lr?"),
        ("train.num_heads=8", "did you mean model.num_heads?"),
        (
            "train.qqqqqqqq=8",
            "unknown key train.qqqqqqqq (--set); keys of [train]: steps, batch_size,",
        ),
        (
            "trian.lr=1",
            "unknown section \"trian\" (--set); did you mean [train]?; sections: [model],",
        ),
        ("lr=1", "did you mean train.lr?"),
    ];
    for (text, expected) in cases {
        let error = set_error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = file_error("[model]\npatch_size = 14\npatchsize = 7\n");
    assert!(error.contains("run.toml:3); did you mean model.patch_size?"), "{error}");
    let error = file_error("\nsteps = 3\n");
    assert!(error.contains("run.toml:2); did you mean train.steps?"), "{error}");
    let error = file_error("[modle]\n");
    assert!(error.contains("run.toml:1); did you mean [model]?"), "{error}");
    let error = ConfigBuilder::new().preset("aim-nanno").unwrap_err().to_string();
    assert!(error.contains("did you mean aim-nano?; presets: aim-nano, aim-micro"), "{error}");
}

#[test]
fn wrong_types_name_key_expected_and_found() {
    let cases = [
        (
            "train.steps=abc",
            "train.steps = \"abc\" (--set): invalid type: string \"abc\", expected a whole number",
        ),
        (
            "train.steps=-1",
            "train.steps = -1 (--set): invalid value: integer \"-1\", expected a whole number",
        ),
        ("train.steps=1.5", "expected a whole number"),
        ("train.lr=[1]", "train.lr = [1] (--set): invalid type: sequence, expected a number"),
        ("train.betas=[0.9]", "invalid length 1"),
        (
            "train.precision=fp8",
            "unknown variant \"fp8\", expected one of \"auto\", \"fp32\", \"bf16\"",
        ),
        ("objective.order=spiral", "unknown variant \"spiral\", expected \"raster\""),
        (
            "objective.prefix=half",
            "unknown value \"half\", expected \"uniform\" or a number of patches",
        ),
        ("objective.prefix=0.5", "expected \"uniform\" or a number of patches"),
        ("log.tensorboard=1", "expected a boolean"),
        ("nonsense", "expected section.key=value"),
        (".lr=1", "expected section.key=value"),
    ];
    for (text, expected) in cases {
        let error = set_error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = file_error("[train]\nlr = 1e-3\nsteps = \"many\"\n");
    assert!(error.contains("train.steps = \"many\"") && error.contains("run.toml:3)"), "{error}");
    let error = file_error("[train\n");
    assert!(error.contains("is not valid TOML") && error.contains("line 1"), "{error}");
    assert!(file_error("train = 3\n").contains("unknown section"), "a section that is a number");
}

#[test]
fn ranges_name_the_origin() {
    for text in [
        "train.batch_size=0",
        "train.accumulate=0",
        "train.steps=0",
        "train.betas=[0.9, 1.0]",
        "train.lr=nan",
        "train.lr=0",
        "train.clip=0",
        "train.clip=inf",
        "train.warmup_fraction=1.1",
        "train.weight_decay=-0.1",
        "data.scale=[0.5, 0.4]",
        "data.scale=[0, 1]",
        "data.scale=[0.4, 1.5]",
        "data.ratio=[1, nan]",
        "data.flip=2",
        "data.color_jitter=[0.4, 0.4, 0.4, 0.6]",
        "data.color_jitter=[-0.1, 0, 0, 0]",
        "data.mean=[123.675, 116.28, 103.53]",
        "data.std=[0, 1, 1]",
        "checkpoint.keep=0",
        "log.every_steps=0",
        "model.patch_size=13",
        "model.num_heads=5",
        "objective.prefix=0",
        "objective.prefix=256",
    ] {
        let error = set_error(text);
        let key = text.split('=').next().unwrap();
        // An image size may be blamed on the patch size that does not divide it.
        assert!(error.contains(": expected ") && error.contains('='), "{text}: {error}");
        assert!(error.contains("(--set)") || key.starts_with("model."), "{text}: {error}");
    }
}

#[test]
fn the_resolved_file_parses_back_and_keeps_the_origins() {
    let resolved = ConfigBuilder::new()
        .preset("aim-nano")
        .unwrap()
        .set("train.eps=1e-9")
        .unwrap()
        .set("data.val=folder # not a comment")
        .unwrap()
        .flag("--data", "data.train", vec!["imagefolder:/data/a#b@0.8".to_owned()])
        .unwrap()
        .build()
        .unwrap();
    let text = resolved.to_toml_with_origins().unwrap();
    assert!(text.contains("norm_eps = 1e-6 "), "{text}");
    assert!(text.contains("eps = 1e-9                               # --set"), "{text}");
    let (_dir, path) = write(&text);
    let again = ConfigBuilder::new().file(&path).unwrap().build().unwrap();
    assert_eq!(again.config, resolved.config);
    let entries = read_entries(&path, &text).unwrap();
    assert_eq!(entries, resolved.entries().unwrap());
    let of = |key: &str| entries.iter().find(|e| e.key == key).unwrap().origin.clone();
    assert_eq!(of("model.embed_dim"), "preset aim-nano");
    assert_eq!(of("data.train"), "--data");
    assert_eq!(of("data.val"), "--set");
}

#[test]
fn hostile_files_are_errors() {
    assert!(
        file_error(&format!("[train]\nlr = {}1{}", "[".repeat(5000), "]".repeat(5000)))
            .contains("TOML")
    );
    assert!(file_error(&" ".repeat((1 << 20) + 1)).contains("more than 1048576 bytes"));
    let error = ConfigBuilder::new().file(Path::new("/nonexistent/a.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/a.toml"));
    let (_dir, path) = write("");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(matches!(ConfigBuilder::new().file(&path), Err(ConfigError::Read { .. })));
}

#[test]
fn differences_list_both_values() {
    let saved = RunConfig::default();
    let mut current = saved.clone();
    assert!(differences(&saved, &current).unwrap().is_empty());
    current.train.lr = 5e-4;
    current.model.patch_size = 16;
    current.data.workers = 3;
    let found = differences(&saved, &current).unwrap();
    let keys: Vec<_> = found.iter().map(|d| d.key.as_str()).collect();
    assert_eq!(keys, ["model.patch_size", "data.workers", "train.lr"]);
    assert_eq!((found[2].saved.as_str(), found[2].current.as_str()), ("0.001", "5e-4"));
    let held: Vec<_> = keys.into_iter().filter(|key| !free_on_resume(key)).collect();
    assert_eq!(held, ["model.patch_size", "train.lr"]);
}

#[test]
fn the_cache_of_remote_shards_is_configured_or_refused() {
    for bad in ["data.cache_bytes=20GX", "data.cache_bytes=-1"] {
        let error = set_error(bad);
        assert!(error.contains("data.cache_bytes"), "{bad}: {error}");
        assert!(error.contains("such as 20GiB") || error.contains("such as \"20GiB\""), "{error}");
    }
    for (text, shown) in [
        ("data.cache_bytes=20 GiB", "cache_bytes = \"20GiB\""),
        ("data.cache_dir=/fast/shards", "cache_dir = \"/fast/shards\""),
    ] {
        let builder = ConfigBuilder::new().set(text).unwrap();
        if aim_data::remote::AVAILABLE {
            let resolved = builder.build().unwrap();
            let toml = resolved.to_toml_with_origins().unwrap();
            let line = toml.lines().find(|line| line.starts_with(shown)).unwrap();
            assert!(line.ends_with("# --set"), "{line}");
        } else {
            let error = builder.build().unwrap_err().to_string();
            assert!(
                error.contains("--features object-store") && error.contains("(--set)"),
                "{error}"
            );
        }
    }
}
