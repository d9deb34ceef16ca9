//! `aim-cli quickstart`: the whole thing on Fashion-MNIST, in one command.

use std::path::{Path, PathBuf};
use std::time::Instant;

use aim_data::augment::Transform;
use aim_data::loader::{EvalLoader, LoaderOptions, Pass};
use aim_data::pack::{PackOptions, pack};
use aim_tensor::Device;
use aim_train::config::{ConfigBuilder, Resolved};
use aim_train::probe::{FeatureDtype, ProbeTraining};
use aim_train::signals::Stop;
use aim_train::trainer::{DeviceChoice, Resume};
use anyhow::{Context as _, Result, bail};

use super::Outcome;
use super::pretrain::pretrain;
use super::probe::{Bench, Measure};
use super::reconstruct::{How, reconstruct};
use crate::args::{ProbeKind, Quickstart};
use crate::progress::note;
use crate::weights::Weights;

/// Where Debian's package `dataset-fashion-mnist` puts all 70,000 images.
const DEBIAN: &str = "/usr/share/datasets/fashion-mnist";
/// The subset that comes with the source, seen from the repository's root.
const SUBSET: &str = "aim-data/datasets/fashion-mnist";
/// Images in the reconstruction picture.
const PICTURES: u64 = 8;

/// What differs between the short and the full run.
struct Recipe {
    settings: &'static [&'static str],
    /// Blocks, counted from the end, whose outputs the classifiers see.
    layers: usize,
    epochs: usize,
    seeds: u32,
}

/// Twelve thousand images in a few minutes on two cores.
const SHORT: Recipe = Recipe {
    settings: &[
        "train.steps=1300",
        "model.embed_dim=96",
        "model.num_blocks=4",
        "model.num_heads=3",
    ],
    layers: 3,
    epochs: 20,
    seeds: 5,
};
/// All images, within an hour on two cores.
const FULL: Recipe = Recipe {
    settings: &[
        "train.steps=8000",
        "model.embed_dim=128",
        "model.num_blocks=6",
        "model.num_heads=4",
    ],
    layers: 6,
    epochs: 20,
    seeds: 3,
};
/// What both share. Gray images of 28 pixels in patches of 4; the crops are milder than for photographs, since a
/// garment fills its image.
const SHARED: &[&str] = &[
    "model.img_size=28",
    "model.patch_size=4",
    "model.head_width=128",
    "model.head_depth=2",
    "train.batch_size=64",
    "train.lr=2e-3",
    "data.scale=[0.6, 1.0]",
    "data.mean=[0.286, 0.286, 0.286]",
    "data.std=[0.353, 0.353, 0.353]",
    "validation.num_images=500",
    "validation.every_steps=250",
    "checkpoint.every_steps=250",
];

pub(crate) fn run(args: &Quickstart, quiet: bool) -> Result<Outcome> {
    let started = Instant::now();
    let recipe = if args.full { FULL } else { SHORT };
    let source = find_data(args)?;
    let shards = args.out.join("data");
    let (train, val) = (
        pack_split(&source, "train", &shards, quiet)?,
        pack_split(&source, "t10k", &shards, quiet)?,
    );

    let run_dir = args.out.join("run");
    let resolved = configuration(&recipe, &train, &val)?;
    let (outcome, _) = pretrain(&resolved, &run_dir, &Resume::Auto, DeviceChoice::Cpu, quiet)?;
    if outcome == Outcome::Stopped {
        return Ok(outcome);
    }

    let weights = Weights::open(&run_dir)?;
    let picture = run_dir.join("reconstructions").join("validation.png");
    reconstruct(&weights, &some_images(&val, &weights)?, How::default(), &Device::Cpu, &picture)?;
    measure(&recipe, &weights, &train, &val, &run_dir, quiet)?;

    let report = args.out.join("report.html");
    for warning in crate::report::write(&run_dir, &report)? {
        crate::progress::warn(&warning);
    }
    let time = crate::progress::clock(started.elapsed());
    note(quiet, &format!("report: {} ({time} in all)", report.display()));
    Ok(Outcome::Done)
}

fn configuration(recipe: &Recipe, train: &str, val: &str) -> Result<Resolved> {
    let mut builder =
        ConfigBuilder::new().flag("quickstart", "data.train", vec![train.to_owned()])?;
    builder = builder.flag("quickstart", "data.val", val)?;
    for setting in SHARED.iter().chain(recipe.settings) {
        builder = builder.set(setting)?;
    }
    Ok(builder.build()?)
}

/// The folder of IDX files: the one given, the package's for `--full`, else the repository's subset.
fn find_data(args: &Quickstart) -> Result<PathBuf> {
    if let Some(dir) = &args.data {
        return Ok(dir.clone());
    }
    if args.full {
        if Path::new(DEBIAN).is_dir() {
            return Ok(DEBIAN.into());
        }
        bail!(
            "--full needs all of Fashion-MNIST: apt-get install dataset-fashion-mnist, or --data DIR with its IDX files"
        );
    }
    // From the working directory or the program's place upwards, so that it is found wherever cargo was called.
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let found =
        starts.iter().flatten().flat_map(|start| start.ancestors()).map(|dir| dir.join(SUBSET));
    found.into_iter().find(|dir| dir.is_dir()).with_context(|| {
        format!("{SUBSET} was not found from here upwards: run this in the repository, or give --data DIR with IDX files")
    })
}

/// Packs one split into tar shards, once; returns their SPEC.
fn pack_split(source: &Path, split: &str, out: &Path, quiet: bool) -> Result<String> {
    let spec = format!("idx:{}#{split}", source.display());
    let images = aim_data::spec::open(&spec)?;
    let options = PackOptions { samples_per_shard: 4000, prefix: split.to_owned() };
    let shards = images.len().div_ceil(options.samples_per_shard);
    let packed =
        format!("wds:{}/{split}-{{000000..{:06}}}.tar", out.display(), shards.saturating_sub(1));
    if let Ok(there) = aim_data::spec::open(&packed)
        && there.len() == images.len()
    {
        return Ok(packed);
    }
    let report = pack(&*images, out, &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
    note(
        quiet,
        &format!("packed {} images of {spec} into {} shards", report.samples, report.shards.len()),
    );
    Ok(packed)
}

/// A few validation images as the model sees them.
fn some_images(spec: &str, weights: &Weights) -> Result<Vec<u8>> {
    let size = weights.config.img_size;
    let options = LoaderOptions {
        height: size.height as u32,
        width: size.width as u32,
        ..LoaderOptions::new(PICTURES as usize, size.height as u32, Transform::eval())
    };
    let pass = Pass { limit: Some(PICTURES), shuffle_seed: Some(1), augment_seed: 0 };
    let batch = EvalLoader::new(aim_data::spec::open(spec)?, options, pass)?.next_batch()?;
    Ok(batch.and_then(|batch| batch.images.as_u8().map(<[u8]>::to_vec)).unwrap_or_default())
}

fn measure(
    recipe: &Recipe,
    weights: &Weights,
    train: &str,
    val: &str,
    run_dir: &Path,
    quiet: bool,
) -> Result<()> {
    let stop = Stop::install()?;
    let bench = Bench::open(train, val, weights, Device::Cpu, stop, quiet)?;
    let layers: Vec<usize> = (0..weights.config.num_blocks).collect();
    let layers = &layers[layers.len().saturating_sub(recipe.layers)..];
    let settings = ProbeTraining {
        epochs: recipe.epochs,
        lrs: vec![1e-2],
        weight_decays: vec![0.05],
        ..ProbeTraining::default()
    };
    let of = |kind, features, layers, seeds| Measure {
        kind,
        features,
        layers,
        seeds,
        settings: &settings,
        holdout: None,
        dtype: FeatureDtype::Fp32,
        augment: false,
        k: vec![20],
        temperature: 0.07,
    };
    let out = run_dir.join("probe");
    let mut rows = Vec::new();
    for (name, untrained) in [("pre-trained", None), ("untrained", Some(0))] {
        let sets = bench.features(weights, layers, untrained, name)?;
        let save = untrained.is_none().then_some(out.as_path());
        let attentive = of(ProbeKind::Attentive, name, layers, recipe.seeds);
        rows.push(bench.measure_sets(&attentive, &sets, save)?);
        if untrained.is_none() {
            let linear = of(ProbeKind::Linear, name, layers, 1);
            rows.push(bench.measure_sets(&linear, &sets, save)?);
            let neighbours = of(ProbeKind::Knn, name, layers, 1);
            rows.push(bench.measure_sets(&neighbours, &sets, None)?);
        }
    }
    let pixels = bench.pixels()?;
    let on_pixels = of(ProbeKind::Linear, "pixels", &[], 1);
    rows.push(bench.measure_sets(&on_pixels, &pixels, None)?);
    rows.push(bench.nearest_pixels(&pixels, &on_pixels)?);
    let results = bench.results(weights, rows);
    results.write(&out)?;
    results.print(false)
}
