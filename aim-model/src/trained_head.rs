//! [`TrainedHead`]: a trained classifier from a file, with the blocks it was trained on and the names of its classes.
//!
//! Read from safetensors files that hold `head.*` (see [`crate::classifier`]): a probe's own, or a whole ml-aim model.
//! What the tensors do not say stands in the file's metadata, where `aim-cli probe` puts it: `kind` (`attentive` or
//! `linear`), `heads`, `layers` (a JSON list of block indices) and `classes` (a JSON list of names).

use std::path::Path;

use aim_tensor::Parameters;
use aim_tensor::io::TensorSource;

use crate::attention_map::AttentionQuery;
use crate::classifier::{Probe, ProbeConfig, ProbeKind};
use crate::error::ModelError;
use crate::weights;

/// A trained classifier.
pub struct TrainedHead {
    /// The classifier.
    pub probe: Probe,
    /// Its parameters, on the CPU.
    pub params: Parameters,
    /// Blocks whose outputs it takes the mean of, where the file says so.
    pub layers: Option<Vec<usize>>,
    /// Names of its classes, where the file has them.
    pub classes: Option<Vec<String>>,
}

impl TrainedHead {
    /// Whether a file holds a classifier.
    pub fn is_in(file: &dyn TensorSource) -> bool {
        file.contains("head.linear.weight")
    }

    /// Reads the classifier of a file. `heads` is the number of attention heads where the file does not say.
    ///
    /// # Errors
    /// When tensors are missing or of sizes that do not fit each other, or the metadata say something else than the
    /// tensors.
    pub fn read(file: &dyn TensorSource, path: &Path, heads: usize) -> Result<Self, ModelError> {
        let wrong = |name: &str, expected: String, found: String| ModelError::BadWeight {
            path: path.to_owned(),
            name: name.to_owned(),
            expected,
            found,
        };
        let name = "head.linear.weight";
        if !Self::is_in(file) {
            let found = "no such tensor: this file holds no classifier".to_owned();
            return Err(wrong(name, "[classes, dim]".into(), found));
        }
        let shape = file.shape(name).unwrap_or_default();
        let &[classes, dim] = shape else {
            return Err(wrong(name, "[classes, dim]".into(), format!("{shape:?}")));
        };
        let attentive = file.contains("head.k.weight");
        let kind = match file.metadata_value("kind") {
            None if attentive => ProbeKind::Attentive,
            None => ProbeKind::Linear,
            Some("attentive") => ProbeKind::Attentive,
            Some("linear") => ProbeKind::Linear,
            Some(other) => {
                let expected = "attentive or linear".to_owned();
                return Err(wrong("(metadata: kind)", expected, other.to_owned()));
            }
        };
        let heads = match file.metadata_value("heads") {
            None => heads,
            Some(text) => text.trim().parse().map_err(|_| {
                wrong("(metadata: heads)", "a number of heads".into(), text.to_owned())
            })?,
        };
        let layers = match file.metadata_value("layers") {
            None => None,
            Some(text) => Some(parse_layers(text).ok_or_else(|| {
                wrong(
                    "(metadata: layers)",
                    "block indices such as [14, 15]".into(),
                    text.to_owned(),
                )
            })?),
        };
        let names: Option<Vec<String>> = match file.metadata_value("classes") {
            None => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|error| {
                wrong("(metadata: classes)", "a JSON list of names".into(), error.to_string())
            })?),
        };
        if let Some(names) = names.as_ref().filter(|names| names.len() != classes) {
            let expected = format!("{classes} names, one for each row of head.linear.weight");
            return Err(wrong("(metadata: classes)", expected, names.len().to_string()));
        }
        let probe = Probe::new(ProbeConfig { kind, dim, heads, classes })?;
        let mut params = Parameters::without_gradients(probe.layout().clone())?;
        weights::load(&mut params, file, path)?;
        Ok(Self { probe, params, layers, classes: names })
    }

    /// Where it looks; `None` for a classifier without attention.
    ///
    /// # Errors
    /// None for a classifier that was read.
    pub fn attention(&self) -> Result<Option<AttentionQuery>, ModelError> {
        let ProbeConfig { kind, heads, .. } = self.probe.config();
        if kind != ProbeKind::Attentive {
            return Ok(None);
        }
        let value = |name: &str| {
            let id = self.probe.layout().id(name);
            id.map(|id| self.params.value(id))
                .ok_or_else(|| ModelError::MissingParameter { name: name.to_owned() })
        };
        let (query, key) = (value("head.cls_token")?, value("head.k.weight")?);
        AttentionQuery::new(heads, query, key, value("head.bn.running_var")?).map(Some)
    }
}

/// Block indices from `[14, 15]` or `14,15`.
fn parse_layers(text: &str) -> Option<Vec<usize>> {
    let text = text.trim().trim_start_matches('[').trim_end_matches(']');
    let layers: Option<Vec<usize>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    layers.filter(|layers| !layers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aim_tensor::io::safetensors::{SafeTensors, TensorRef, write_file};
    use std::collections::BTreeMap;

    fn head(kind: ProbeKind, metadata: &[(&str, &str)]) -> Result<TrainedHead, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("head.safetensors");
        let probe = Probe::new(ProbeConfig { kind, dim: 8, heads: 2, classes: 3 }).unwrap();
        let params = probe.init(1).unwrap();
        let metadata: BTreeMap<String, String> =
            metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        write_file(&path, &weights::tensors(&params), &metadata).unwrap();
        let read = TrainedHead::read(&SafeTensors::open(&path).unwrap(), &path, 4)?;
        assert_eq!(read.params.values(), params.values());
        Ok(read)
    }

    #[test]
    fn metadata_win_and_tensors_say_the_rest() {
        let plain = head(ProbeKind::Attentive, &[]).unwrap();
        assert_eq!(plain.probe.config().heads, 4);
        assert_eq!((plain.layers.clone(), plain.classes.clone()), (None, None));
        assert!(plain.attention().unwrap().is_some());
        let linear = head(ProbeKind::Linear, &[("kind", "linear")]).unwrap();
        assert!(linear.attention().unwrap().is_none());
        let said = [("heads", "2"), ("layers", "[1, 2]"), ("classes", r#"["a", "b", "c"]"#)];
        let full = head(ProbeKind::Attentive, &said).unwrap();
        assert_eq!(full.probe.config().heads, 2);
        assert_eq!(full.layers, Some(vec![1, 2]));
        assert_eq!(full.classes.unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (key, value, part) in [
            ("kind", "knn", "attentive or linear"),
            ("kind", "linear", "head.linear.bias"),
            ("heads", "x", "heads"),
            ("heads", "3", "divide"),
            ("layers", "", "block indices"),
            ("classes", r#"["a"]"#, "3 names"),
            ("classes", "a,b", "JSON"),
        ] {
            let error = head(ProbeKind::Attentive, &[(key, value)]).err().unwrap().to_string();
            assert!(error.contains(part), "{key}={value}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.safetensors");
        write_file(&path, &[TensorRef::f32("x", &[1], &[0.0])], &BTreeMap::new()).unwrap();
        let file = SafeTensors::open(&path).unwrap();
        let error = TrainedHead::read(&file, &path, 2).err().unwrap().to_string();
        assert!(error.contains("no classifier"), "{error}");
    }
}
