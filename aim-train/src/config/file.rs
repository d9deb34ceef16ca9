//! TOML files in, and `RUN/config.toml` out, with the origin of each value in a comment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::layers::Resolved;
use super::table;

/// Longer configuration files are refused: a real one has about two kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// One value of a configuration, as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `section.key`.
    pub key: String,
    /// The value as TOML.
    pub value: String,
    /// Where it came from, such as `default`, `preset aim-nano`, `run.toml:3` or `--set`.
    pub origin: String,
}

impl Resolved {
    /// Every value with its origin, section by section.
    ///
    /// # Errors
    /// [`ConfigError::Internal`] if a value has no TOML form.
    pub fn entries(&self) -> Result<Vec<Entry>, ConfigError> {
        let values = table::of(&self.config)?;
        Ok(table::leaves(&values)
            .map(|(section, key, value)| {
                let key = format!("{section}.{key}");
                let origin = self.origin(&key).to_string();
                Entry { key, value: table::text(value), origin }
            })
            .collect())
    }

    /// The configuration as TOML that reads back to the same values; comments carry the origins.
    ///
    /// # Errors
    /// [`ConfigError::Internal`] if a value has no TOML form.
    pub fn to_toml_with_origins(&self) -> Result<String, ConfigError> {
        let mut text = String::from(
            "# Resolved configuration; each comment says where its value came from.\n",
        );
        let mut current = String::new();
        for Entry { key, value, origin } in self.entries()? {
            let (section, key) = key.split_once('.').unwrap_or(("", &key));
            if section != current {
                let _ = write!(text, "\n[{section}]\n");
                current = section.to_owned();
            }
            let assignment = format!("{key} = {value}");
            // An origin with a line break would end the comment; paths can hold anything.
            let origin: String =
                origin.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            let _ = writeln!(text, "{assignment:<40} # {origin}");
        }
        Ok(text)
    }
}

/// The values of a `config.toml` written by [`Resolved::to_toml_with_origins`], and of any other
/// TOML file with sections. Origins come from the comments; without one they are empty.
///
/// # Errors
/// [`ConfigError::Syntax`] when the text is no TOML; `path` is only for the message.
pub fn read_entries(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let (values, _) = parse(path, text)?;
    let document = DeTable::parse(text).map_err(|error| syntax(path, &error))?;
    let mut comments = BTreeMap::new();
    spans(document.get_ref(), "", &mut |key, span| {
        let rest = text.get(span.end..).and_then(|rest| rest.lines().next()).unwrap_or("");
        comments.insert(key, rest.trim().strip_prefix("# ").unwrap_or("").to_owned());
    });
    Ok(table::leaves(&values)
        .map(|(section, key, value)| {
            let key = format!("{section}.{key}");
            let origin = comments.remove(&key).unwrap_or_default();
            Entry { key, value: table::text(value), origin }
        })
        .collect())
}

/// The table in `path`, and the line of every `section.key` and of every top-level name.
pub(super) fn read(path: &Path) -> Result<(Table, BTreeMap<String, usize>), ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_BYTES {
        let message = format!("more than {MAX_BYTES} bytes; is this a configuration?");
        return Err(ConfigError::Syntax { path: path.to_owned(), message });
    }
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<(Table, BTreeMap<String, usize>), ConfigError> {
    let values: Table = text.parse().map_err(|error| syntax(path, &error))?;
    let document = DeTable::parse(text).map_err(|error| syntax(path, &error))?;
    let mut lines = BTreeMap::new();
    spans(document.get_ref(), "", &mut |key, span| {
        let before = text.get(..span.start).unwrap_or("");
        lines.insert(key, before.matches('\n').count() + 1);
    });
    Ok((values, lines))
}

/// Calls `visit` with each name of the first two levels and the bytes of its value.
fn spans(
    table: &DeTable<'_>,
    prefix: &str,
    visit: &mut impl FnMut(String, std::ops::Range<usize>),
) {
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        if let (DeValue::Table(inner), true) = (value.get_ref(), prefix.is_empty()) {
            spans(inner, &path, visit);
            visit(path, key.span());
        } else {
            visit(path, value.span());
        }
    }
}

fn syntax(path: &Path, error: &toml::de::Error) -> ConfigError {
    ConfigError::Syntax { path: path.to_owned(), message: error.to_string().trim_end().to_owned() }
}
