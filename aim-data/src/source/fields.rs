//! [`Fields`]: which file or column of a sample is its image, its label, its text.

use crate::source::{IMAGE_EXTENSIONS, is_image_extension};

/// What can be chosen.
const NAMES: [&str; 4] = ["image", "label", "text", "metadata"];
/// Longest list of image fields, and longest name of a field in bytes.
const MAX_FIELDS: usize = 16;
const MAX_NAME: usize = 256;

/// Which parts of a sample are what, where its container names them: extensions in a tar shard
/// (`jpg`, `seg.png`), columns in parquet and MDS.
///
/// Written after a pattern as `?image=jpg,png&label=cls&text=txt&metadata=json`; what is left out
/// takes the container's usual names, and `none` leaves a part out. In tar shards `label=json:KEY`
/// takes the class number from a key of the sample's metadata, `KEY.KEY` from a key within it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Candidates for the image, the first that a sample has is taken; empty for the usual ones.
    pub image: Vec<String>,
    /// Class number.
    pub label: Field,
    /// Caption.
    pub text: Field,
    /// Metadata, in JSON.
    pub metadata: Field,
}

/// One part of a sample other than its image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Field {
    /// The container's usual name, where it is there.
    #[default]
    Usual,
    /// This name.
    Named(String),
    /// The value of this key of the sample's metadata; for labels in tar shards only.
    Json(String),
    /// Not read.
    None,
}

/// Before a key of the metadata.
const JSON: &str = "json:";

impl Field {
    /// The names to look for, given the usual ones.
    pub(crate) fn names<'a>(&'a self, usual: &[&'a str]) -> Vec<&'a str> {
        match self {
            Self::Usual => usual.to_vec(),
            Self::Named(name) => vec![name],
            Self::Json(_) | Self::None => Vec::new(),
        }
    }

    /// Whether a file or column of this name is meant.
    pub(crate) fn is(&self, name: &str, usual: &str) -> bool {
        match self {
            Self::Usual => name == usual,
            Self::Named(named) => name == named,
            Self::Json(_) | Self::None => false,
        }
    }

    /// Refuses a key of the metadata, for containers of columns.
    pub(crate) fn must_be_a_column(&self) -> Result<(), String> {
        match self {
            Self::Json(key) => Err(format!(
                "`label={JSON}{key}` is for tar shards; name a column of integers here"
            )),
            _ => Ok(()),
        }
    }
}

impl Fields {
    /// Splits a pattern from the choice of fields behind its last `?`. Without `=` behind it a `?`
    /// is a wildcard of the pattern.
    ///
    /// # Errors
    /// A text saying which part of the choice is wrong.
    pub fn split(pattern: &str) -> Result<(&str, Self), String> {
        // An address may have a query of its own, such as a signature.
        let ours = |query: &str| {
            let names = query.split('&').map(|part| part.split('=').next().unwrap_or_default());
            query.contains('=')
                && !query.contains(['/', '*'])
                && (!pattern.contains("://") || names.into_iter().all(|name| NAMES.contains(&name)))
        };
        match pattern.rsplit_once('?') {
            Some((rest, query)) if ours(query) => Ok((rest, Self::parse(query)?)),
            _ => Ok((pattern, Self::default())),
        }
    }

    fn parse(query: &str) -> Result<Self, String> {
        let mut fields = Self::default();
        let mut seen = Vec::new();
        for part in query.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if seen.contains(&name) {
                return Err(format!("`{name}=` is given twice"));
            }
            seen.push(name);
            if value.is_empty() || value.len() > MAX_NAME * MAX_FIELDS {
                return Err(format!("`{part}`: expected {name}=NAME"));
            }
            let key = value.strip_prefix(JSON);
            if key == Some("") || (key.is_some() && name != "label") {
                return Err(format!("`{part}`: expected {name}=NAME, or label={JSON}KEY"));
            }
            let field = || match value {
                "none" => Field::None,
                named => key.map_or_else(
                    || Field::Named(named.to_owned()),
                    |key| Field::Json(key.to_owned()),
                ),
            };
            match name {
                "image" => {
                    fields.image = value.split(',').map(str::to_owned).collect();
                    let sane = |name: &String| !name.is_empty() && name.len() <= MAX_NAME;
                    if fields.image.len() > MAX_FIELDS || !fields.image.iter().all(sane) {
                        return Err(format!("`{part}`: expected 1 to {MAX_FIELDS} names"));
                    }
                }
                "label" => fields.label = field(),
                "text" => fields.text = field(),
                "metadata" => fields.metadata = field(),
                _ => {
                    return Err(format!(
                        "unknown field `{name}`: expected image=, label=, text= or metadata="
                    ));
                }
            }
        }
        Ok(fields)
    }

    /// The key of the label in a member of this extension, where labels come from the metadata.
    pub(crate) fn label_key(&self, extension: &str) -> Option<&str> {
        match (&self.label, &self.metadata) {
            (Field::Json(key), Field::None) if extension == "json" => Some(key),
            (Field::Json(key), metadata) if metadata.is(extension, "json") => Some(key),
            _ => None,
        }
    }

    /// How good a choice for the image a file of this extension is: 0 is best.
    pub(crate) fn image_rank(&self, extension: &str) -> Option<usize> {
        if self.image.is_empty() {
            return is_image_extension(extension).then_some(0);
        }
        self.image.iter().position(|name| name.eq_ignore_ascii_case(extension))
    }

    /// The image fields in words, for messages.
    pub(crate) fn image_names(&self) -> String {
        if self.image.is_empty() { IMAGE_EXTENSIONS.join(", ") } else { self.image.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_last_question_mark() {
        let (rest, fields) = Fields::split("a/p?/*.tar?image=seg.png,png&label=none").unwrap();
        assert_eq!(rest, "a/p?/*.tar");
        assert_eq!(fields.image, ["seg.png", "png"]);
        assert_eq!((&fields.label, &fields.text), (&Field::None, &Field::Usual));
        assert_eq!(fields.image_rank("PNG"), Some(1));
        assert_eq!(fields.image_rank("jpg"), None);
        for plain in ["p?/a.tar", "shard-??.tar", "a=b.tar", "x?y=z/a.tar"] {
            assert_eq!(Fields::split(plain).unwrap(), (plain, Fields::default()));
        }
        let signed = "https://host/a.tar?X-Sig=abc&Expires=3";
        assert_eq!(Fields::split(signed).unwrap(), (signed, Fields::default()));
        let (rest, fields) = Fields::split("https://host/a.tar?X-Sig=a?image=png").unwrap();
        assert_eq!((rest, &*fields.image), ("https://host/a.tar?X-Sig=a", &["png".to_owned()][..]));
        let (_, fields) = Fields::split("a.tar?text=caption").unwrap();
        assert!(fields.text.is("caption", "txt") && !fields.text.is("txt", "txt"));
        assert_eq!(fields.label.names(&["cls"]), ["cls"]);
    }

    #[test]
    fn wrong_choices_are_named() {
        for (bad, part) in [
            ("a.tar?imgae=jpg", "imgae"),
            ("a.tar?image=", "image="),
            ("a.tar?image=a,,b", "image="),
            ("a.tar?label=a&label=b", "twice"),
            ("a.tar?label=a&text", "text"),
            ("a.tar?label=json:", "json:KEY"),
            ("a.tar?text=json:caption", "text=json:caption"),
        ] {
            let text = Fields::split(bad).unwrap_err();
            assert!(text.contains(part), "{bad}: {text}");
        }
    }
}
