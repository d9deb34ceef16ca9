//! `aim-cli classify`: what is in images, and where the probe looks.

mod attention;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aim_data::decode::DecodeLimits;
use aim_data::source::{IMAGE_EXTENSIONS, ImageFiles, Source};
use aim_model::attention_map::AttentionQuery;
use aim_model::classifier::ProbeStep;
use aim_model::features::FeatureExtractor;
use aim_model::pretrain::Pixels;
use aim_model::trained_head::TrainedHead;
use aim_tensor::io::Tensors;
use aim_train::TrainError;
use aim_train::probe::features::for_each_batch;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::Usage;
use super::features::{create_parent, image_options};
use crate::args::Classify;
use crate::picture::Normalization;
use crate::progress::{note, warn};
use crate::stdout;
use crate::weights::{Weights, open_device, parse_layers};
use attention::Sheet;

/// Largest file of class names.
const MAX_NAMES_BYTES: u64 = 64 << 20;

/// What is printed of one image.
#[derive(Serialize)]
struct Answer {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<u32>,
    top: Vec<Guess>,
}

#[derive(Serialize)]
struct Guess {
    class: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    probability: f64,
}

pub(crate) fn run(args: &Classify, quiet: bool) -> Result<()> {
    let weights = Weights::open(&args.checkpoint)?;
    weights.announce(quiet);
    let (head, layers) = open_head(args, &weights)?;
    let query = head.attention()?;
    if args.attention.is_some() && query.is_none() {
        return Err(Usage("--attention: this head is linear and looks nowhere".into()).into());
    }
    let sources = sources(&args.images)?;
    let names = match &args.classes {
        Some(path) => Some(read_names(path, head.probe.config().classes)?),
        None => head.classes.clone(),
    };
    let device = open_device(args.device.device, quiet)?;
    let extractor = weights.extractor(&layers, None, &device)?;
    let mut run = Run {
        weights: &weights,
        head: &head,
        extractor,
        step: None,
        features: Vec::new(),
        names,
        top: args.top as usize,
        sheet: query.filter(|_| args.attention.is_some()).map(|query| (query, Sheet::default())),
        printer: Printer { json: args.json, any: false },
        skipped: 0,
    };
    for source in &sources {
        let options = image_options(&weights, source.as_ref(), args.batch_size, &device);
        run.source(source, &options)?;
    }
    run.printer.finish()?;
    if let (Some(path), Some((_, sheet))) = (&args.attention, &run.sheet) {
        create_parent(path)?;
        sheet.save(path)?;
        note(quiet, &format!("attention of {} images in {}", sheet.len(), path.display()));
    }
    if run.skipped > 0 {
        bail!("{} images could not be used, see the warnings", run.skipped);
    }
    Ok(())
}

/// The head, and the blocks whose outputs it takes.
fn open_head(args: &Classify, weights: &Weights) -> Result<(TrainedHead, Vec<usize>)> {
    let heads = args.heads.map_or(weights.config.num_heads, |n| n as usize);
    let head = match &args.head {
        Some(path) => {
            let file = Tensors::open(path).map_err(aim_tensor::TensorError::from)?;
            TrainedHead::read(&file, path, heads)?
        }
        None if TrainedHead::is_in(&weights.file) => {
            TrainedHead::read(&weights.file, &weights.dir, heads)?
        }
        None => {
            return Err(Usage(format!(
                "{} holds no classifier: give one with --head, as `aim-cli probe` writes it",
                args.checkpoint.display()
            ))
            .into());
        }
    };
    let dim = head.probe.config().dim;
    if dim != weights.config.embed_dim {
        bail!(
            "the head takes features of {dim} values, this trunk gives {}: it was trained on another model",
            weights.config.embed_dim
        );
    }
    let blocks = weights.config.num_blocks;
    let layers = match (&args.layers, &head.layers) {
        (Some(text), _) => parse_layers(text, blocks)?,
        (None, Some(layers)) => layers.clone(),
        // ml-aim keeps a model's own in its config.json.
        (None, None) => match (&args.head, weights.file.probe_layers()) {
            (None, Some(layers)) => layers,
            _ => {
                return Err(Usage(
                    "the head's file does not say on which blocks it was trained: give them with --layers \
                     (`aim-cli probe` takes last:6 unless told otherwise)"
                        .into(),
                )
                .into());
            }
        },
    };
    if let Some(layer) = layers.iter().find(|&&layer| layer >= blocks) {
        bail!("the head was trained on block {layer}, this trunk has {blocks}");
    }
    Ok((head, layers))
}

/// Neighbouring files as one source, everything else as what it is.
fn sources(images: &[String]) -> Result<Vec<Arc<dyn Source>>> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    let mut files = Vec::new();
    for text in images {
        if names_a_file(text) {
            files.push(PathBuf::from(text));
            continue;
        }
        take_files(&mut files, &mut sources)?;
        sources.push(aim_data::spec::open(text)?);
    }
    take_files(&mut files, &mut sources)?;
    Ok(sources)
}

fn take_files(files: &mut Vec<PathBuf>, sources: &mut Vec<Arc<dyn Source>>) -> Result<()> {
    if !files.is_empty() {
        let files = ImageFiles::new(std::mem::take(files), DecodeLimits::default())?;
        sources.push(Arc::new(files));
    }
    Ok(())
}

/// Whether an argument is an image file rather than a source: by its extension; without a known one, by being a file
/// that no source is made of.
fn names_a_file(text: &str) -> bool {
    let path = Path::new(text);
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let image = IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    if image {
        return path.is_file() || !text.contains([':', '*', '{']);
    }
    path.is_file() && text.parse::<aim_data::spec::DataSpec>().is_err()
}

/// Class names from a JSON list or from lines.
fn read_names(path: &Path, classes: usize) -> Result<Vec<String>> {
    let failed = || format!("cannot read {}", path.display());
    let length = std::fs::metadata(path).with_context(failed)?.len();
    if length > MAX_NAMES_BYTES {
        bail!("{}: expected at most {MAX_NAMES_BYTES} bytes, found {length}", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(failed)?;
    let names: Vec<String> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text)
            .with_context(|| format!("{}: expected a JSON list of names", path.display()))?
    } else {
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    if names.len() != classes {
        bail!(
            "{}: expected {classes} class names, one for each class of the head, found {}",
            path.display(),
            names.len()
        );
    }
    Ok(names)
}

/// One run of the command.
struct Run<'a> {
    weights: &'a Weights,
    head: &'a TrainedHead,
    extractor: FeatureExtractor,
    /// For batches of so many images and tokens.
    step: Option<((usize, usize), ProbeStep)>,
    features: Vec<f32>,
    names: Option<Vec<String>>,
    top: usize,
    sheet: Option<(AttentionQuery, Sheet)>,
    printer: Printer,
    skipped: usize,
}

impl Run<'_> {
    /// Classifies everything of one source.
    fn source(
        &mut self,
        source: &Arc<dyn Source>,
        options: &aim_train::probe::features::ImageOptions,
    ) -> Result<()> {
        let mut skipped = 0;
        // A closed pipe is no error of the loader's.
        let mut failed: Option<anyhow::Error> = None;
        let names = source.class_names().filter(|_| self.names.is_none());
        let names =
            names.filter(|n| n.len() == self.head.probe.config().classes).map(<[String]>::to_vec);
        let names = names.or_else(|| self.names.clone());
        let result = for_each_batch(
            source,
            options,
            &mut |_, _| {},
            &mut |bad| {
                skipped += 1;
                warn(&format!("left out: {}", bad.defect));
            },
            |batch, images, pixels| {
                self.extractor.run(images, pixels)?;
                self.extractor.average(&mut self.features)?;
                let logits = self.logits(batch.len())?;
                let classes = self.head.probe.config().classes;
                let stride = self.features.len() / batch.len().max(1);
                for (i, logits) in logits.chunks_exact(classes).enumerate() {
                    let answer = Answer {
                        image: source.location(batch.indices[i]),
                        label: batch.labels[i],
                        top: best(logits, self.top, names.as_deref()),
                    };
                    if let Err(error) = self.printer.print(&answer) {
                        failed = Some(error);
                        return Err(TrainError::Internal("standard output"));
                    }
                    if let Some((query, sheet)) = &mut self.sheet {
                        let map = query.map(&self.features[i * stride..(i + 1) * stride]);
                        let size = (images.height, images.width);
                        let image = shown(pixels, i, size, self.weights);
                        sheet.add(image, size, self.weights.config.patch_size, &map);
                    }
                }
                Ok(())
            },
        );
        if let Some(error) = failed {
            return Err(error);
        }
        self.skipped += skipped;
        Ok(result?)
    }

    /// Logits `[batch, classes]` of the features.
    fn logits(&mut self, batch: usize) -> Result<Vec<f32>, TrainError> {
        let size = (batch, self.extractor.tokens());
        let step = match self.step.take() {
            Some((same, step)) if same == size => step,
            _ => ProbeStep::new(&self.head.probe, size.0, size.1, false)?,
        };
        let (_, step) = self.step.insert((size, step));
        step.forward(&self.head.params, &self.features, &vec![-1; batch])?;
        Ok(step.logits()?.into_owned())
    }
}

/// Image `i` of a batch as u8 `[height, width, 3]`.
fn shown(
    pixels: Pixels<'_>,
    i: usize,
    (height, width): (usize, usize),
    weights: &Weights,
) -> Vec<u8> {
    let plane = height * width;
    match pixels {
        Pixels::U8(bytes) => bytes[i * 3 * plane..(i + 1) * 3 * plane].to_vec(),
        Pixels::F32(values) => {
            let normalization =
                Normalization { mean: weights.mean, std: weights.std, per_patch: false };
            normalization.to_bytes(&values[i * 3 * plane..(i + 1) * 3 * plane])
        }
    }
}

/// The classes of the largest logits, with their softmax probabilities.
fn best(logits: &[f32], top: usize, names: Option<&[String]>) -> Vec<Guess> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let part = |logit: f32| f64::from(logit - most).exp();
    let sum: f64 = logits.iter().map(|&logit| part(logit)).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Ties by class, so that the answer does not depend on how it is sorted.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(top);
    order
        .into_iter()
        .map(|class| Guess {
            class,
            name: names.and_then(|names| names.get(class)).cloned(),
            probability: part(logits[class]) / sum,
        })
        .collect()
}

/// Prints answers as they come.
struct Printer {
    json: bool,
    any: bool,
}

impl Printer {
    fn print(&mut self, answer: &Answer) -> Result<()> {
        if self.json {
            let start = if self.any { ",\n" } else { "[\n" };
            self.any = true;
            return stdout::print(&format!("{start}{}", serde_json::to_string(answer)?));
        }
        let mut text = format!("{}\n", answer.image);
        for Guess { class, name, probability } in &answer.top {
            let name = name.as_deref().unwrap_or_default();
            let line = format!("  {:6.2} %  {class:>5}  {name}", 100.0 * probability);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        stdout::print(&text)
    }

    fn finish(&self) -> Result<()> {
        match (self.json, self.any) {
            (true, true) => stdout::print("\n]\n"),
            (true, false) => stdout::print("[]\n"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_softmax_and_ties_go_by_class() {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let top = best(&[0.0, 2.0f32.ln(), 0.0, f32::NEG_INFINITY], 3, Some(&names));
        let found: Vec<_> = top.iter().map(|g| (g.class, g.name.as_deref())).collect();
        assert_eq!(found, [(1, Some("b")), (0, Some("a")), (2, Some("c"))]);
        assert!((top[0].probability - 0.5).abs() < 1e-7, "{}", top[0].probability);
        assert_eq!(best(&[1000.0, -1000.0], 9, None).len(), 2);
    }

    #[test]
    fn arguments_are_files_or_sources() {
        assert!(names_a_file("no/such/photo.JPG"));
        for source in ["synthetic:stripes", "imagefolder:x.jpg", "/", "tensors:a.safetensors"] {
            assert!(!names_a_file(source), "{source}");
        }
    }
}
