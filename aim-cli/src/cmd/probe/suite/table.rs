//! The paper's Table 6, and this model's rows under it.

use std::fmt;

use serde::Serialize;

use super::file::Set;
use super::one::{Done, Score};
use crate::table::Table;

/// A benchmark: its name in a suite, and its heading.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Column {
    pub(super) name: &'static str,
    heading: &'static str,
}

const fn column(name: &'static str, heading: &'static str) -> Column {
    Column { name, heading }
}

/// In the paper's order.
pub(super) const COLUMNS: [Column; 15] = [
    column("in1k", "IN-1k"),
    column("inat18", "iNat18"),
    column("cifar10", "C10"),
    column("cifar100", "C100"),
    column("food101", "Food"),
    column("dtd", "DTD"),
    column("pets", "Pets"),
    column("cars", "Cars"),
    column("iwildcam", "iWild"),
    column("camelyon17", "Cam17"),
    column("pcam", "PCAM"),
    column("rxrx1", "RxRx1"),
    column("eurosat", "EuroSAT"),
    column("fmow", "fMoW"),
    column("infograph", "Info"),
];

/// A row of the paper: frozen trunk, attentive probe, top-1 in %.
#[derive(Clone, Copy, Debug, Serialize)]
struct Published {
    model: &'static str,
    arch: &'static str,
    data: &'static str,
    top1: [f64; 15],
    average: f64,
}

const fn published(
    model: &'static str,
    arch: &'static str,
    data: &'static str,
    top1: [f64; 15],
    average: f64,
) -> Published {
    Published { model, arch, data, top1, average }
}

#[rustfmt::skip]
const PAPER: [Published; 11] = [
    published("DINO", "ViT-B/8", "IN-1k", [80.1, 66.0, 97.8, 87.3, 89.5, 78.4, 92.3, 89.2, 58.5, 93.7, 90.2, 6.1, 98.2, 57.0, 41.1], 75.0),
    published("iBOT", "ViT-L/16", "IN-21k", [83.5, 70.5, 99.2, 93.3, 93.5, 81.6, 92.8, 90.8, 61.8, 94.5, 90.0, 5.9, 98.0, 60.3, 47.7], 77.6),
    published("DINOv2", "ViT-g/14 @516", "LVD", [86.4, 84.5, 99.6, 95.2, 96.3, 86.3, 96.4, 95.6, 68.2, 96.5, 90.7, 8.0, 98.6, 66.7, 58.8], 81.9),
    published("BEiT", "ViT-L/14", "IN-21k", [62.2, 44.4, 94.4, 78.7, 79.0, 64.0, 80.9, 69.5, 52.0, 92.8, 88.2, 4.2, 97.5, 47.7, 25.9], 65.4),
    published("MAE", "ViT-H/14", "IN-1k", [80.9, 64.6, 97.1, 85.8, 90.2, 78.1, 95.0, 93.7, 58.1, 94.2, 89.8, 5.4, 98.1, 56.9, 42.2], 75.3),
    published("MAE", "ViT-2B/14", "IG-3B", [82.2, 70.8, 97.5, 87.3, 93.4, 81.2, 95.1, 94.9, 57.8, 94.4, 90.3, 7.3, 98.2, 60.1, 50.2], 77.4),
    published("AIM-0.6B", "ViT-H/14", "DFN-2B+", [78.5, 64.0, 97.2, 86.8, 90.1, 80.1, 93.0, 93.0, 57.9, 94.3, 90.0, 7.8, 98.4, 58.3, 45.2], 75.6),
    published("AIM-1B", "ViT-1B/14", "DFN-2B+", [80.6, 67.2, 98.2, 88.3, 91.6, 81.8, 93.4, 93.9, 58.6, 94.5, 90.0, 9.0, 98.6, 59.8, 47.5], 76.9),
    published("AIM-3B", "ViT-3B/14", "DFN-2B+", [82.2, 69.7, 98.4, 89.9, 92.7, 81.9, 94.1, 93.8, 58.8, 94.3, 90.4, 9.7, 98.5, 60.9, 48.9], 77.6),
    published("AIM-7B", "ViT-7B/14", "DFN-2B+", [82.4, 70.9, 98.6, 90.0, 93.1, 82.3, 93.8, 92.1, 59.5, 93.6, 90.7, 10.1, 98.6, 61.7, 49.6], 77.8),
    published("AIM-7B, best layers", "ViT-7B/14", "DFN-2B+", [84.0, 75.5, 98.9, 91.8, 94.1, 85.6, 95.4, 95.0, 61.4, 94.2, 90.5, 8.4, 98.5, 63.5, 57.7], 79.6),
];

/// This model's row for one kind of probe and features.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Ours {
    probe: String,
    features: String,
    /// Top-1 in %, in the order of the columns.
    top1: Vec<Option<f64>>,
    /// Over all columns; none unless every one is there.
    average: Option<f64>,
}

/// The whole table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    columns: [Column; 15],
    paper: [Published; 11],
    ours: Vec<Ours>,
    /// Averages over the columns that were run, when those are some but not all.
    partial: Option<Partial>,
    /// Sets that are no column: name, and top-1 in % of each row.
    others: Vec<(String, Vec<Option<f64>>)>,
}

/// Averages that can be compared although sets are missing.
#[derive(Clone, Debug, Serialize)]
struct Partial {
    columns: Vec<&'static str>,
    paper: Vec<f64>,
    ours: Vec<f64>,
}

impl Comparison {
    /// Enters what was measured.
    pub(super) fn new<'a>(done: impl Iterator<Item = (&'a Set, &'a Done)>) -> Self {
        let scores: Vec<(&str, &[Score])> =
            done.map(|(set, done)| (set.name.as_str(), &done.scores[..])).collect();
        Self::from_scores(&scores)
    }

    fn from_scores(sets: &[(&str, &[Score])]) -> Self {
        let mut kinds: Vec<(&str, &str)> = Vec::new();
        for score in sets.iter().flat_map(|(_, scores)| scores.iter()) {
            let kind = (score.probe.as_str(), score.features.as_str());
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let cell = |name: &str, kind: (&str, &str)| {
            let (_, scores) = sets.iter().find(|(set, _)| *set == name)?;
            let found = scores.iter().find(|score| (&*score.probe, &*score.features) == kind)?;
            Some(100.0 * found.top1)
        };
        let ours: Vec<Ours> = kinds
            .iter()
            .map(|&kind| {
                let top1: Vec<_> = COLUMNS.iter().map(|column| cell(column.name, kind)).collect();
                let all: Option<Vec<f64>> = top1.iter().copied().collect();
                let (probe, features) = (kind.0.to_owned(), kind.1.to_owned());
                Ours { probe, features, top1, average: all.map(|all| mean(&all)) }
            })
            .collect();
        let others = sets.iter().filter(|(name, _)| !COLUMNS.iter().any(|c| c.name == *name));
        let others = others.map(|(name, _)| {
            ((*name).to_owned(), kinds.iter().map(|&kind| cell(name, kind)).collect())
        });
        let (partial, others) = (Partial::new(&ours), others.collect());
        Self { columns: COLUMNS, paper: PAPER, ours, partial, others }
    }
}

impl Partial {
    /// Over the columns that every row of ours has.
    fn new(ours: &[Ours]) -> Option<Self> {
        let run: Vec<usize> = (0..COLUMNS.len())
            .filter(|&at| !ours.is_empty() && ours.iter().all(|row| row.top1[at].is_some()))
            .collect();
        if run.is_empty() || run.len() == COLUMNS.len() {
            return None;
        }
        let over =
            |cell: &dyn Fn(usize) -> f64| mean(&run.iter().map(|&at| cell(at)).collect::<Vec<_>>());
        Some(Self {
            columns: run.iter().map(|&at| COLUMNS[at].name).collect(),
            paper: PAPER.iter().map(|row| over(&|at| row.top1[at])).collect(),
            ours: ours.iter().map(|row| over(&|at| row.top1[at].unwrap_or(f64::NAN))).collect(),
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut headings = vec!["model".to_owned(), "arch".to_owned(), "data".to_owned()];
        headings.extend(self.columns.iter().map(|column| format!(">{}", column.heading)));
        headings.push(">Avg".to_owned());
        if let Some(partial) = &self.partial {
            headings.push(format!(">Avg of {}", partial.columns.len()));
        }
        let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
        let partial = |of: fn(&Partial) -> &Vec<f64>, row: usize| {
            self.partial.as_ref().and_then(|partial| of(partial).get(row).copied())
        };
        for (at, row) in self.paper.iter().enumerate() {
            let names = [row.model, row.arch, row.data].map(str::to_owned).into_iter();
            let cells = row.top1.iter().map(|value| shown(Some(*value)));
            let last = [shown(Some(row.average)), shown(partial(|p| &p.paper, at))];
            table.row(names.chain(cells).chain(last));
        }
        for (at, row) in self.ours.iter().enumerate() {
            let names = ["this model".to_owned(), row.probe.clone(), row.features.clone()];
            let cells = row.top1.iter().map(|value| shown(*value));
            let last = [shown(row.average), shown(partial(|p| &p.ours, at))];
            table.row(names.into_iter().chain(cells).chain(last));
        }
        write!(
            f,
            "Top-1 in %, frozen trunk; the paper's Table 6 (attentive probe) above\n\n{table}"
        )?;
        if let Some(partial) = &self.partial {
            let names = partial.columns.join(", ");
            writeln!(f, "\nAvg of {}: {names}, for every row", partial.columns.len())?;
        }
        if !self.others.is_empty() {
            let mut headings = vec!["other sets".to_owned()];
            let kind = |row: &Ours| format!(">{}, {}", row.probe, row.features);
            headings.extend(self.ours.iter().map(kind));
            let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
            for (name, values) in &self.others {
                let cells = values.iter().map(|value| shown(*value));
                table.row(std::iter::once(name.clone()).chain(cells));
            }
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_averages_follow_from_its_cells() {
        for row in PAPER {
            let found = mean(&row.top1);
            // Cells are rounded to 0.1, and so is the average.
            assert!((found - row.average).abs() < 0.1, "{} {}: {found}", row.model, row.arch);
        }
    }

    fn score(probe: &str, top1: f64) -> Score {
        Score { probe: probe.into(), features: "pre-trained".into(), top1, top1_std: 0.0 }
    }

    #[test]
    fn a_part_is_averaged_over_the_same_columns_for_all() {
        let (a, b, c) =
            (score("attentive", 0.5), score("attentive", 0.9), score("attentive", 0.25));
        let (a, b, c) = ([a], [b], [c]);
        let comparison =
            Comparison::from_scores(&[("pets", &a[..]), ("dtd", &b[..]), ("mine", &c[..])]);
        let partial = comparison.partial.as_ref().unwrap();
        assert_eq!(partial.columns, ["dtd", "pets"]);
        assert!((partial.ours[0] - 70.0).abs() < 1e-9);
        // DINO: 78.4 and 92.3.
        assert!((partial.paper[0] - 85.35).abs() < 1e-9);
        assert_eq!(comparison.ours[0].average, None);
        let text = comparison.to_string();
        let last = text.lines().find(|line| line.starts_with("this model")).unwrap();
        let cells: Vec<_> = last.split_whitespace().collect();
        assert_eq!(cells.iter().filter(|cell| **cell == "-").count(), 14, "{last}");
        assert_eq!(cells.last(), Some(&"70.0"));
        assert!(text.contains("Avg of 2: dtd, pets") && text.contains("mine"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("AIM-")).count(), 5);
    }

    #[test]
    fn all_fifteen_have_an_average() {
        let scores: Vec<[Score; 1]> =
            (0..15).map(|at| [score("linear", f64::from(at) / 100.0)]).collect();
        let sets: Vec<(&str, &[Score])> =
            COLUMNS.iter().zip(&scores).map(|(column, score)| (column.name, &score[..])).collect();
        let comparison = Comparison::from_scores(&sets);
        assert!((comparison.ours[0].average.unwrap() - 7.0).abs() < 1e-9);
        assert!(comparison.partial.is_none() && comparison.others.is_empty());
        assert!(!Comparison::from_scores(&[]).to_string().contains("this model"));
    }
}
