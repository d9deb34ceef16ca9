//! One kind of classifier on one kind of features.

use std::collections::BTreeMap;
use std::path::Path;

use aim_data::augment::Transform;
use aim_data::sampler::Permutation;
use aim_model::classifier::{Probe as Classifier, ProbeConfig, ProbeKind as ClassifierKind};
use aim_model::features::FeatureExtractor;
use aim_model::weights as model_weights;
use aim_tensor::Parameters;
use aim_tensor::io::safetensors;
use aim_train::probe::augmented::Augmented;
use aim_train::probe::{
    self, FeatureDtype, FeatureSet, Features, GridTrainer, Neighbours, Point, ProbeTraining,
    Trained, View, best, evaluate, nearest,
};
use aim_train::{TrainError, durable};
use anyhow::{Result, bail};

use super::bench::{Bench, Sets, report_skipped};
use super::row::{GridRow, Row};
use crate::args::ProbeKind;

/// Decides which training images are held out: the same ones in every run.
const HOLDOUT_SEED: u64 = 0x401d;

/// What is measured, and how.
pub(crate) struct Measure<'a> {
    pub(crate) kind: ProbeKind,
    /// Name of the features.
    pub(crate) features: &'a str,
    pub(crate) layers: &'a [usize],
    pub(crate) seeds: u32,
    pub(crate) settings: &'a ProbeTraining,
    /// Share of the training images that is held out to select by.
    pub(crate) holdout: Option<f64>,
    pub(crate) dtype: FeatureDtype,
    pub(crate) augment: bool,
    /// Numbers of neighbours.
    pub(crate) k: Vec<usize>,
    pub(crate) temperature: f64,
}

/// What was found, with the first seed's classifier.
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) head: Option<Head>,
}

/// A trained classifier.
pub(crate) struct Head {
    config: ProbeConfig,
    params: Parameters,
    point: Point,
    seed: u64,
}

/// Images that train, and those that are held out, in the order of the source.
fn split(images: usize, share: Option<f64>) -> Result<(Vec<u32>, Vec<u32>)> {
    let Some(share) = share else { return Ok(((0..images as u32).collect(), Vec::new())) };
    let count = ((images as f64 * share).round() as usize).max(1);
    if images < count + 2 {
        return Err(TrainError::TooFewImages { found: images, expected: count + 2 }.into());
    }
    let order = Permutation::new(images as u64, HOLDOUT_SEED, 0, 0);
    let mut held = vec![false; images];
    (0..count).for_each(|i| held[order.get(i as u64) as usize] = true);
    let of = |wanted: bool| {
        (0..images as u32).filter(|&i| held[i as usize] == wanted).collect::<Vec<_>>()
    };
    Ok((of(false), of(true)))
}

impl Bench {
    /// [`Bench::measure`] on sets in memory; the first row, and its head into `save`.
    pub(crate) fn measure_sets(
        &self,
        measure: &Measure<'_>,
        sets: &Sets,
        save: Option<&Path>,
    ) -> Result<Row> {
        let (mut train, mut val) = (sets.train.view(&[0])?, sets.val.view(&[0])?);
        let first = self.measure(measure, &mut train, &mut val)?.into_iter().next();
        let Some(Measured { row, head }) = first else { bail!("nothing was measured") };
        if let (Some(head), Some(dir)) = (head, save) {
            self.save(&head, &row, dir)?;
        }
        Ok(row)
    }

    /// Trains a grid of classifiers for each seed and evaluates it; or looks for neighbours, with a row for each number
    /// of them.
    pub(crate) fn measure(
        &self,
        measure: &Measure<'_>,
        train: &mut dyn Features,
        val: &mut dyn Features,
    ) -> Result<Vec<Measured>> {
        if measure.kind == ProbeKind::Knn {
            let sets = (FeatureSet::mean_pooled(train)?, FeatureSet::mean_pooled(val)?);
            let rule =
                Neighbours::Cosine { k: measure.k.clone(), temperature: measure.temperature };
            let names = measure.k.iter().map(|k| match measure.k.len() {
                1 => "knn".to_owned(),
                _ => format!("knn-{k}"),
            });
            return self.neighbours(&sets.0, &sets.1, &rule, names.collect(), measure);
        }
        if measure.kind == ProbeKind::Linear && train.tokens() > 1 {
            // A linear classifier sees only the mean over tokens: take it once.
            let (mut train, mut val) =
                (FeatureSet::mean_pooled(train)?, FeatureSet::mean_pooled(val)?);
            return self.trained(measure, &mut train, &mut val);
        }
        self.trained(measure, train, val)
    }

    fn classifier(&self, kind: ProbeKind, dim: usize) -> Result<Classifier> {
        let classifier = match kind {
            ProbeKind::Attentive => ClassifierKind::Attentive,
            _ => ClassifierKind::Linear,
        };
        // Heads are the attentive probe's; a linear one may have any width, such as that of pixels.
        let heads = if kind == ProbeKind::Attentive { self.heads } else { 1 };
        Ok(Classifier::new(ProbeConfig { kind: classifier, dim, heads, classes: self.classes })?)
    }

    fn trained(
        &self,
        measure: &Measure<'_>,
        train: &mut dyn Features,
        val: &mut dyn Features,
    ) -> Result<Vec<Measured>> {
        let (images, held) = split(train.len(), measure.holdout)?;
        let classifier = self.classifier(measure.kind, train.dim())?;
        let mut measured = Measured { row: measure.row(name(measure.kind).into()), head: None };
        for seed in 0..u64::from(measure.seeds) {
            let settings = ProbeTraining { seed, ..measure.settings.clone() };
            let epochs = settings.epochs as u64;
            let trained = self.with_progress(&measure.label(seed), epochs, |progress| {
                probe::train(&classifier, train, &images, &settings, &self.stop, &mut |epoch, _| {
                    progress(epoch as u64, epochs);
                })
            })?;
            let on: Option<&mut dyn Features> =
                if held.is_empty() { None } else { Some(&mut *train) };
            self.score(&mut measured, &classifier, seed, trained, val, on, &held)?;
        }
        Ok(vec![measured])
    }

    /// As [`Bench::measure`] for attentive and linear classifiers, all trained together while the trunk runs on other
    /// crops in each epoch. `train` is the images as they are for evaluation, for holding out.
    pub(super) fn measure_augmented(
        &self,
        measures: &[Measure<'_>],
        extractor: &mut FeatureExtractor,
        transform: Transform,
        mut train: Option<&mut View<'_>>,
        val: &mut dyn Features,
    ) -> Result<Vec<Measured>> {
        let Some(first) = measures.first() else { return Ok(Vec::new()) };
        let config = extractor.config();
        let patch = config.patch_size;
        let tokens = self.options.height / patch * (self.options.width / patch);
        let dim = config.embed_dim;
        let held = match (&train, first.holdout) {
            (Some(train), Some(_)) => split(train.len(), first.holdout)?.1,
            _ => Vec::new(),
        };
        let held_out: Vec<u32> = match &train {
            Some(train) => held.iter().map(|&i| train.indices()[i as usize]).collect(),
            None => Vec::new(),
        };
        let mut measured: Vec<Measured> = measures
            .iter()
            .map(|measure| Measured { row: measure.row(name(measure.kind).into()), head: None })
            .collect();
        // The linear classifier is evaluated on means.
        let mut pooled_val = FeatureSet::mean_pooled(val)?;
        let mut pooled_train = match &mut train {
            Some(train) if !held.is_empty() => Some(FeatureSet::mean_pooled(&mut **train)?),
            _ => None,
        };
        for seed in 0..u64::from(first.seeds) {
            let settings = ProbeTraining { seed, ..first.settings.clone() };
            let work = Augmented {
                source: &self.train,
                options: &self.options,
                transform,
                held_out: &held_out,
                epochs: settings.epochs,
                batch_size: settings.batch_size,
                seed,
            };
            let mut grids = Vec::new();
            for measure in measures {
                let classifier = self.classifier(measure.kind, dim)?;
                grids.push(GridTrainer::new(&classifier, tokens, &settings, work.updates())?);
            }
            let total = settings.epochs as u64 * self.train.len();
            self.with_progress(&first.label(seed), total, |progress| {
                let mut position = |epochs: f64, _: f64| {
                    progress((epochs * self.train.len() as f64) as u64, total);
                };
                work.train(extractor, &mut grids, &self.stop, &mut position, &mut report_skipped)
            })?;
            for (i, grid) in grids.into_iter().enumerate() {
                let classifier = grid.probe().clone();
                let linear = measures[i].kind == ProbeKind::Linear;
                let val: &mut dyn Features = if linear { &mut pooled_val } else { &mut *val };
                let on: Option<&mut dyn Features> = match (&mut train, &mut pooled_train) {
                    (Some(_), Some(pooled)) if linear => Some(pooled),
                    (Some(train), Some(_)) => Some(&mut **train),
                    _ => None,
                };
                let trained = grid.finish();
                self.score(&mut measured[i], &classifier, seed, trained, val, on, &held)?;
            }
        }
        Ok(measured)
    }

    /// Evaluates a trained grid, selects a point and adds it to the row. Where there are training features, those of
    /// the held-out images select.
    fn score(
        &self,
        measured: &mut Measured,
        classifier: &Classifier,
        seed: u64,
        mut trained: Vec<Trained>,
        val: &mut dyn Features,
        train: Option<&mut dyn Features>,
        held: &[u32],
    ) -> Result<()> {
        let row = &mut measured.row;
        let params: Vec<&Parameters> = trained.iter().map(|trained| &trained.params).collect();
        let diverged: Vec<bool> =
            trained.iter().map(|trained| trained.diverged_at.is_some()).collect();
        let all: Vec<u32> = (0..val.len() as u32).collect();
        let mut answers = evaluate(classifier, &params, val, &all, &self.stop)?;
        let on_val: Vec<_> = answers.iter().map(|answers| answers.accuracy()).collect();
        let best_on_val = best(&on_val, &diverged);
        let on_held = match train {
            Some(train) => {
                let answers = evaluate(classifier, &params, train, held, &self.stop)?;
                Some(answers.iter().map(|answers| answers.accuracy()).collect::<Vec<_>>())
            }
            None => None,
        };
        let selected = on_held.as_ref().map_or(best_on_val, |held| best(held, &diverged));
        if row.grid.is_empty() {
            row.grid.extend(trained.iter().map(|trained| GridRow {
                point: trained.point,
                accuracy: Vec::new(),
                top5: Vec::new(),
                holdout_accuracy: Vec::new(),
                diverged_at: Vec::new(),
            }));
        }
        for (i, (point, trained)) in row.grid.iter_mut().zip(&trained).enumerate() {
            point.accuracy.push(on_val[i].top1);
            point.top5.push(on_val[i].top5);
            point.holdout_accuracy.extend(on_held.as_ref().map(|held| held[i].top1));
            if trained.diverged_at.is_some() || !point.diverged_at.is_empty() {
                point.diverged_at.resize(seed as usize, None);
                point.diverged_at.push(trained.diverged_at);
            }
        }
        row.selected.push(selected);
        row.selected_by = Some(if on_held.is_some() { "holdout" } else { "val" });
        if on_held.is_some() {
            row.best_on_val.push(on_val[best_on_val].top1);
        }
        row.add(seed, answers.swap_remove(selected), self.classes);
        if measured.head.is_none() {
            let Trained { params, point, .. } = trained.swap_remove(selected);
            measured.head = Some(Head { config: classifier.config(), params, point, seed });
        }
        Ok(())
    }

    /// Writes `head-KIND.safetensors`.
    pub(super) fn save(&self, head: &Head, row: &Row, dir: &Path) -> Result<()> {
        durable::create_dir(dir)?;
        let ProbeConfig { dim, heads, classes, .. } = head.config;
        let layers: Vec<String> = row.layers.iter().map(usize::to_string).collect();
        let mut metadata = BTreeMap::from([
            ("kind".to_owned(), row.probe.clone()),
            ("layers".to_owned(), layers.join(",")),
            ("dim".to_owned(), dim.to_string()),
            ("heads".to_owned(), heads.to_string()),
            ("num_classes".to_owned(), classes.to_string()),
            ("lr".to_owned(), head.point.lr.to_string()),
            ("weight_decay".to_owned(), head.point.weight_decay.to_string()),
            ("seed".to_owned(), head.seed.to_string()),
        ]);
        if let Some(names) = self.train.class_names() {
            metadata.insert("classes".to_owned(), serde_json::to_string(names)?);
        }
        let path = dir.join(format!("head-{}.safetensors", row.probe));
        safetensors::write_file(&path, &model_weights::tensors(&head.params), &metadata)
            .map_err(aim_tensor::TensorError::from)?;
        Ok(())
    }

    /// The nearest training image by distance between pixels.
    pub(crate) fn nearest_pixels(&self, sets: &Sets, measure: &Measure<'_>) -> Result<Row> {
        let (mut train, mut val) = (sets.train.view(&[0])?, sets.val.view(&[0])?);
        let sets = (FeatureSet::mean_pooled(&mut train)?, FeatureSet::mean_pooled(&mut val)?);
        let names = vec!["1-nn".to_owned()];
        let rows = self.neighbours(&sets.0, &sets.1, &Neighbours::Nearest, names, measure)?;
        rows.into_iter().next().map_or_else(|| bail!("nothing was measured"), |found| Ok(found.row))
    }

    fn neighbours(
        &self,
        train: &FeatureSet,
        val: &FeatureSet,
        rule: &Neighbours,
        names: Vec<String>,
        measure: &Measure<'_>,
    ) -> Result<Vec<Measured>> {
        let label = format!("neighbours on {}", measure.features);
        let answers = self.with_progress(&label, val.len() as u64, |progress| {
            nearest(train, val, rule, &self.stop, progress)
        })?;
        let rows = names.into_iter().zip(answers).map(|(name, answers)| {
            let mut row = Row { augment: false, training: None, ..measure.row(name) };
            row.add(0, answers, self.classes);
            // Nothing is drawn at random.
            row.seeds.clear();
            Measured { row, head: None }
        });
        Ok(rows.collect())
    }
}

impl Measure<'_> {
    /// An empty row.
    fn row(&self, probe: String) -> Row {
        let mut training = serde_json::to_value(self.settings).unwrap_or_default();
        // The grid has the points, and the row the seeds.
        if let Some(object) = training.as_object_mut() {
            for key in ["lrs", "weight_decays", "seed"] {
                object.shift_remove(key);
            }
        }
        Row {
            probe,
            features: self.features.to_owned(),
            layers: self.layers.to_vec(),
            feature_dtype: match self.dtype {
                FeatureDtype::Fp32 => "fp32".to_owned(),
                FeatureDtype::Bf16 => "bf16".to_owned(),
            },
            augment: self.augment,
            training: Some(training),
            ..Row::default()
        }
    }

    fn label(&self, seed: u64) -> String {
        let points = self.settings.points().len();
        let grid = if points > 1 { format!(", {points} points") } else { String::new() };
        let layers = match (self.layers.first(), self.layers.last()) {
            (Some(first), Some(last)) if first != last => format!(" blocks {first}-{last}"),
            (Some(only), _) => format!(" block {only}"),
            _ => String::new(),
        };
        format!("{} on {}{layers}, seed {seed}{grid}", name(self.kind), self.features)
    }
}

fn name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Attentive => "attentive",
        ProbeKind::Linear => "linear",
        ProbeKind::Knn => "knn",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_images_are_a_share_and_train_no_more() {
        let (train, held) = split(1000, Some(0.1)).unwrap();
        assert_eq!((train.len(), held.len()), (900, 100));
        let mut all: Vec<u32> = train.iter().chain(&held).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        assert!(held.windows(2).all(|pair| pair[0] < pair[1]) && held[50] > 200);
        assert_eq!(split(4, None).unwrap(), (vec![0, 1, 2, 3], vec![]));
        assert!(split(2, Some(0.5)).is_err());
    }
}
