//! What a probe found: `results.json`, the table, and the files beside it.

use std::path::Path;

use aim_train::durable;
use aim_train::probe::{Accuracy, Answers, Point};
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::figure::{self, Line};
use crate::stdout;
use crate::table::Table;

/// `results.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) checkpoint: String,
    pub(crate) train: String,
    pub(crate) val: String,
    pub(crate) train_images: usize,
    pub(crate) val_images: usize,
    pub(crate) num_classes: usize,
    /// Names of the classes in the order of labels, where the data have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) classes: Option<Vec<String>>,
    pub(crate) results: Vec<Row>,
    /// With `--layers sweep`: every window and every block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) depth: Vec<Depth>,
    #[serde(skip)]
    pub(crate) blocks: usize,
}

/// One classifier on one kind of features.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) probe: String,
    pub(crate) features: String,
    pub(crate) layers: Vec<usize>,
    /// Type that the features were kept in; "fp32" too where the trunk ran on fresh crops.
    pub(crate) feature_dtype: String,
    /// Whether the training images were augmented.
    pub(crate) augment: bool,
    /// Seeds of the trainings, in the order of what follows.
    pub(crate) seeds: Vec<u64>,
    /// Top-1 accuracy of each seed at the selected point, in 0..1.
    pub(crate) accuracy: Vec<f64>,
    /// Top-5 accuracy of each seed at the selected point, in 0..1.
    pub(crate) top5: Vec<f64>,
    /// Mean over classes of the top-1 accuracy within each, in 0..1.
    pub(crate) mean_per_class: Vec<f64>,
    /// What selected the point of the grid: `val` or `holdout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) selected_by: Option<&'static str>,
    /// Selected point of each seed, as an index into `grid`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) selected: Vec<usize>,
    /// Best top-1 accuracy over the grid of each seed, where another rule selected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) best_on_val: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) grid: Vec<GridRow>,
    /// Settings that all points share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) training: Option<serde_json::Value>,
    /// Top-1 accuracy within each class of the first seed; null for a class without images.
    pub(crate) per_class: Vec<Option<f64>>,
    /// The first seed's answers.
    #[serde(skip)]
    pub(crate) answers: Answers,
}

/// A point of the grid.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GridRow {
    #[serde(flatten)]
    pub(crate) point: Point,
    /// Of each seed, on the validation images, in 0..1.
    pub(crate) accuracy: Vec<f64>,
    pub(crate) top5: Vec<f64>,
    /// Of each seed, on the images that were held out, in 0..1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) holdout_accuracy: Vec<f64>,
    /// The update at which a seed's loss was no number, if it was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) diverged_at: Vec<Option<u64>>,
}

/// A window of blocks, or a single one, of a sweep.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Depth {
    pub(crate) probe: String,
    pub(crate) features: String,
    pub(crate) layers: Vec<usize>,
    pub(crate) accuracy: f64,
    pub(crate) top5: f64,
    /// On the images that were held out, where those select.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holdout_accuracy: Option<f64>,
}

impl Row {
    /// Mean of the seeds' accuracies, and their standard deviation.
    pub(crate) fn mean_std(&self) -> (f64, f64) {
        let n = self.accuracy.len().max(1) as f64;
        let mean = mean(&self.accuracy);
        let squares: f64 = self.accuracy.iter().map(|a| (a - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0)).sqrt())
    }

    /// Adds a seed's answers at the selected point.
    pub(super) fn add(&mut self, seed: u64, answers: Answers, classes: usize) {
        let Accuracy { top1, top5, .. } = answers.accuracy();
        self.accuracy.push(top1);
        self.top5.push(top5);
        self.mean_per_class.push(answers.mean_per_class(classes));
        if self.seeds.is_empty() {
            self.per_class = answers.per_class(classes);
            self.answers = answers;
        }
        self.seeds.push(seed);
    }

    /// Mean accuracy on the held-out images at the selected points.
    fn holdout(&self) -> Option<f64> {
        let of = |(seed, &point): (usize, &usize)| {
            self.grid.get(point)?.holdout_accuracy.get(seed).copied()
        };
        let values: Option<Vec<f64>> = self.selected.iter().enumerate().map(of).collect();
        values.filter(|values| !values.is_empty()).map(|values| mean(&values))
    }

    /// What a sweep keeps of it.
    pub(super) fn depth(&self) -> Depth {
        Depth {
            probe: self.probe.clone(),
            features: self.features.clone(),
            layers: self.layers.clone(),
            accuracy: mean(&self.accuracy),
            top5: mean(&self.top5),
            holdout_accuracy: self.holdout(),
        }
    }
}

impl Depth {
    /// What a sweep selects by.
    pub(super) fn score(&self) -> f64 {
        self.holdout_accuracy.unwrap_or(self.accuracy)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Most classes whose confusion matrix is written in full; beyond, only pairs that occurred.
const DENSE: usize = 1000;

impl Results {
    /// Writes `results.json`, and for each classifier on trained features the confusion matrix, as JSON and as a
    /// picture; of a sweep also accuracy by depth.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        durable::create_dir(out)?;
        for row in self.results.iter().filter(|row| row.features == "pre-trained") {
            self.write_confusion(row, out)?;
        }
        self.draw_depth(out)?;
        let text = serde_json::to_vec_pretty(self)?;
        let path = out.join("results.json");
        durable::replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_confusion(&self, row: &Row, out: &Path) -> Result<()> {
        let counts = row.answers.confusion();
        let name = format!("confusion-{}", row.probe);
        figure::write(
            &figure::confusion(self.num_classes, &counts),
            &out.join(format!("{name}.png")),
        )?;
        let mut json = serde_json::json!({
            "probe": row.probe, "features": row.features, "layers": row.layers,
            "num_classes": self.num_classes, "classes": self.classes,
        });
        if self.num_classes <= DENSE {
            let mut matrix = vec![vec![0_u64; self.num_classes]; self.num_classes];
            for &(label, predicted, count) in &counts {
                let row = matrix.get_mut(label as usize);
                if let Some(cell) = row.and_then(|row| row.get_mut(predicted as usize)) {
                    *cell += count;
                }
            }
            json["counts"] = serde_json::json!(matrix);
        } else {
            json["pairs"] = serde_json::json!(counts);
        }
        Ok(durable::replace(&out.join(format!("{name}.json")), &serde_json::to_vec(&json)?)?)
    }

    fn draw_depth(&self, out: &Path) -> Result<()> {
        let mut lines: Vec<Line> = Vec::new();
        for depth in &self.depth {
            let blocks = match depth.layers.len() {
                1 => "single blocks".to_owned(),
                n => format!("windows of {n}"),
            };
            let name = format!("{} on {} {blocks}", depth.probe, depth.features);
            let (first, last) = (depth.layers.first(), depth.layers.last());
            let sum = first.zip(last).map_or(0, |(first, last)| first + last);
            let point = (sum as f64 / 2.0, depth.accuracy);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        figure::write(&figure::depth(self.blocks, &lines), &out.join("depth.png"))
    }

    /// Prints the table, or JSON.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            return stdout::print_json(self);
        }
        let mut columns =
            vec!["classifier", "features", "layers", ">top-1 %", ">top-5 %", ">per class %"];
        let grid = self.results.iter().any(|row| row.grid.len() > 1);
        let holdout = self.results.iter().any(|row| !row.best_on_val.is_empty());
        if grid {
            columns.push("lr, decay");
        }
        if holdout {
            columns.push(">best on val %");
        }
        let mut table = Table::new(&columns);
        for row in &self.results {
            let (mean_top1, std) = row.mean_std();
            let spread = if row.accuracy.len() > 1 {
                format!(" +- {:.2}", 100.0 * std)
            } else {
                String::new()
            };
            let mut cells = vec![
                row.probe.clone(),
                row.features.clone(),
                ranges(&row.layers),
                format!("{:.2}{spread}", 100.0 * mean_top1),
                format!("{:.2}", 100.0 * mean(&row.top5)),
                format!("{:.2}", 100.0 * mean(&row.mean_per_class)),
            ];
            if grid {
                let point = row.selected.first().and_then(|&at| row.grid.get(at));
                cells.push(point.map_or_else(String::new, |row| {
                    format!("{:e}, {}", row.point.lr, row.point.weight_decay)
                }));
            }
            if holdout {
                let best = (!row.best_on_val.is_empty()).then(|| 100.0 * mean(&row.best_on_val));
                cells.push(best.map_or_else(String::new, |best| format!("{best:.2}")));
            }
            table.row(cells);
        }
        stdout::print(&table.to_string())
    }
}

/// `0-3, 7` for the blocks 0, 1, 2, 3 and 7.
fn ranges(layers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => parts.push((layer, layer)),
        }
    }
    let part = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn ranges() {
        assert_eq!(super::ranges(&[0, 1, 2, 3, 7]), "0-3, 7");
        assert_eq!(super::ranges(&[5]), "5");
        assert_eq!(super::ranges(&[]), "");
    }
}
