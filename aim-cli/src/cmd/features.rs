//! `aim-cli features`: block outputs of images, in the order of the data.

use std::path::Path;
use std::time::Duration;

use aim_data::source::{SampleFormat, Source};
use aim_tensor::Device;
use aim_train::features::{self, ElementType, Event, Format, Request};
use aim_train::probe::features::ImageOptions;
use aim_train::signals::Stop;
use anyhow::Result;

use super::{Outcome, Usage};
use crate::args::{Dtype, Features, Pool};
use crate::progress::{Pace, Progress, note};
use crate::weights::{Weights, open_device, parse_layers};

pub(crate) fn run(args: &Features, quiet: bool) -> Result<Outcome> {
    let request = request(args)?;
    let device = open_device(args.device.device, quiet)?;
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
    let layers = parse_layers(&args.layers, weights.config.num_blocks)?;
    if request.format == Format::Npy && layers.len() != 1 && !args.average {
        return Err(Usage(
            "a .npy file holds one array: choose a layer with --layers, or --average, or .safetensors".into(),
        )
        .into());
    }
    let source = aim_data::spec::open(&args.data)?;
    let options = image_options(&weights, source.as_ref(), args.batch_size, &device);
    let mut extractor = weights.extractor(&layers, None, &device)?;
    let fingerprint = features::fingerprint(extractor.params())?;
    let stop = Stop::install()?;
    let mut progress =
        Progress::new(quiet, "features", source.len(), Pace::Every(Duration::from_secs(10)));
    let written = features::write(
        &mut extractor,
        &fingerprint,
        &source,
        &options,
        &request,
        &stop,
        &mut |event| match event {
            Event::Resumed(images) => progress.note(&format!("going on behind {images} images")),
            Event::Progress(done, _) => progress.update(done, String::new),
            Event::Skipped(defect) => progress.warn(&format!("left out: {defect}")),
            Event::Warning(text) => progress.warn(&text),
        },
    );
    progress.finish();
    let summary = match written? {
        features::Outcome::Written(summary) => summary,
        features::Outcome::Stopped(done) => {
            note(false, &format!("stopped behind {done} images; the same command goes on there"));
            return Ok(Outcome::Stopped);
        }
    };
    let files: Vec<String> = summary.files.iter().map(|path| path.display().to_string()).collect();
    let left_out = match summary.skipped {
        0 => String::new(),
        skipped => format!(", {skipped} left out"),
    };
    note(
        quiet,
        &format!(
            "{} images{left_out}: {} of shape {:?} in {}",
            summary.images,
            summary.columns.join(", "),
            summary.shape,
            files.join(", ")
        ),
    );
    Ok(Outcome::Done)
}

fn request(args: &Features) -> Result<Request, Usage> {
    let format = match args.out.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => Format::Safetensors,
        Some("npy") => Format::Npy,
        Some("parquet") => Format::Parquet,
        _ => {
            let out = args.out.display();
            return Err(Usage(format!("--out {out}: expected .safetensors, .npy or .parquet")));
        }
    };
    if args.dtype == Dtype::Bf16 && format != Format::Safetensors {
        return Err(Usage(
            "--dtype bf16: only .safetensors has this type; take fp16 or fp32 for .npy and .parquet".into(),
        ));
    }
    if format == Format::Parquet && cfg!(not(feature = "parquet")) {
        return Err(Usage(
            "this build writes no .parquet: build with `--features parquet`, or write .safetensors or .npy"
                .into(),
        ));
    }
    Ok(Request {
        out: args.out.clone(),
        format,
        average: args.average,
        pool: match args.pool {
            Pool::None => features::Pool::None,
            Pool::Mean => features::Pool::Mean,
        },
        dtype: match args.dtype {
            Dtype::Fp32 => ElementType::Fp32,
            Dtype::Fp16 => ElementType::Fp16,
            Dtype::Bf16 => ElementType::Bf16,
        },
        // A day is as good as never, and what is no time at all must not panic.
        sync_every: Duration::from_secs_f64(args.sync_seconds.min(86_400.0)),
        restart: args.restart,
    })
}

/// How images are brought to the model. Tensors keep their size, since positions follow the grid.
pub(crate) fn image_options(
    weights: &Weights,
    source: &dyn Source,
    batch_size: Option<u32>,
    device: &Device,
) -> ImageOptions {
    let mut options = weights.image_options(1);
    if let SampleFormat::Tensor { height, width } = source.format() {
        (options.height, options.width) = (height as usize, width as usize);
    }
    let patch = weights.config.patch_size.max(1);
    let tokens = (options.height / patch * (options.width / patch)).max(1);
    // Enough rows for full speed; more would only take memory.
    let wanted = if *device == Device::Cpu { 2048 } else { 16_384 };
    let chosen = batch_size.map(|n| n as usize);
    options.batch_size = chosen.unwrap_or_else(|| (wanted / tokens).clamp(1, 256));
    options
}

/// Creates the directory that a file is to be in.
pub(crate) fn create_parent(out: &Path) -> Result<()> {
    use anyhow::Context as _;
    match out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display())),
        None => Ok(()),
    }
}
