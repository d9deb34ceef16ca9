//! Layers of values, merged by rank, each value with its origin.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::error::ConfigError;
use super::file;
use super::origin::Origin;
use super::preset::preset_table;
use super::sections::RunConfig;
use super::suggest::{nearest, nearest_key};
use super::table;

/// Collects layers; stronger ones win whatever the order of the calls.
#[derive(Clone, Debug, Default)]
pub struct ConfigBuilder {
    values: BTreeMap<String, (Value, Origin)>,
}

impl ConfigBuilder {
    /// Defaults only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a preset's model and training values.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`] lists the names that exist.
    pub fn preset(self, name: &str) -> Result<Self, ConfigError> {
        let values = preset_table(name)?;
        self.layer(&values, |_| Origin::Preset(name.to_owned()))
    }

    /// Adds a TOML file.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or holds an unknown section or key or a value of the
    /// wrong type; the message has the line.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let (values, lines) = file::read(path)?;
        self.layer(&values, |key| Origin::File {
            path: path.to_owned(),
            line: lines.get(key).copied().unwrap_or(1),
        })
    }

    /// Adds `section.key=value`. The value is TOML; a bare word is a string.
    ///
    /// # Errors
    /// No `=`, an unknown key, or a value of the wrong type.
    pub fn set(mut self, text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::BadSet { text: text.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        let (key, value) = (key.trim(), value.trim());
        let value = value.parse::<Value>().unwrap_or_else(|_| Value::String(value.to_owned()));
        match key.split_once('.') {
            Some((section, key)) if !section.is_empty() && !key.is_empty() => {
                self.insert(section, key, value, Origin::Set)?;
            }
            Some(_) => return Err(bad()),
            None if key.is_empty() => return Err(bad()),
            None => return Err(unknown_section(key, Origin::Set)?),
        }
        Ok(self)
    }

    /// Adds the value of a flag of its own, such as `--steps` for `train.steps`.
    ///
    /// # Errors
    /// The value does not fit the key.
    pub fn flag(
        mut self,
        flag: &str,
        key: &str,
        value: impl Into<Value>,
    ) -> Result<Self, ConfigError> {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        self.insert(section, key, value.into(), Origin::Flag(flag.to_owned()))?;
        Ok(self)
    }

    /// Merges the layers and checks the result.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for a value that cannot work.
    pub fn build(self) -> Result<Resolved, ConfigError> {
        let mut merged = table::defaults()?;
        let mut origins = BTreeMap::new();
        for (path, (value, origin)) in self.values {
            if let Some((section, key)) = path.split_once('.')
                && let Some(body) = merged.get_mut(section).and_then(Value::as_table_mut)
            {
                body.insert(key.to_owned(), value);
            }
            origins.insert(path, origin);
        }
        let config = RunConfig::deserialize(merged)
            .map_err(|error| ConfigError::Internal { message: error.to_string() })?;
        let resolved = Resolved { config, origins };
        resolved.config.validate().map_err(|error| match error {
            ConfigError::Range { key, found, expected, .. } => {
                let origin = Some(resolved.origin(&key).clone());
                ConfigError::Range { key, found, expected, origin }
            }
            other => other,
        })?;
        Ok(resolved)
    }

    fn layer(
        mut self,
        values: &Table,
        origin: impl Fn(&str) -> Origin,
    ) -> Result<Self, ConfigError> {
        for (section, body) in values {
            let Value::Table(body) = body else {
                return Err(unknown_section(section, origin(section))?);
            };
            if body.is_empty() && !table::defaults()?.contains_key(section) {
                return Err(unknown_section(section, origin(section))?);
            }
            for (key, value) in body {
                self.insert(section, key, value.clone(), origin(&format!("{section}.{key}")))?;
            }
        }
        Ok(self)
    }

    fn insert(
        &mut self,
        section: &str,
        key: &str,
        value: Value,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = check(section, key, value, &origin)?;
        let path = format!("{section}.{key}");
        match self.values.get(&path) {
            Some((_, stronger)) if stronger.rank() > origin.rank() => {}
            _ => {
                self.values.insert(path, (value, origin));
            }
        }
        Ok(())
    }
}

/// Checks one value by reading a configuration in which only it differs from the defaults, so that
/// whatever goes wrong is about this key.
fn check(section: &str, key: &str, value: Value, origin: &Origin) -> Result<Value, ConfigError> {
    let mut trial = table::defaults()?;
    let known: Vec<_> =
        table::leaves(&trial).map(|(s, k, _)| (s.to_owned(), k.to_owned())).collect();
    let Some(body) = trial.get_mut(section).and_then(Value::as_table_mut) else {
        return Err(unknown_section(section, origin.clone())?);
    };
    let Some(slot) = body.get_mut(key) else {
        let suggestion = nearest_key(section, key, &known);
        let keys = known.into_iter().filter(|(s, _)| s == section).map(|(_, k)| k);
        return Err(ConfigError::UnknownKey {
            key: format!("{section}.{key}"),
            origin: origin.clone(),
            suggestion,
            keys: format!("keys of [{section}]: {}", keys.collect::<Vec<_>>().join(", ")),
        });
    };
    let value = whole_number(slot, value);
    *slot = value.clone();
    match RunConfig::deserialize(trial) {
        Ok(_) => Ok(value),
        Err(error) => Err(ConfigError::Type {
            key: format!("{section}.{key}"),
            found: table::text(&value),
            origin: origin.clone(),
            problem: plain_words(error.message()),
        }),
    }
}

/// `1e5` for an integer key means 100000.
fn whole_number(default: &Value, value: Value) -> Value {
    match (default, &value) {
        (Value::Integer(_), Value::Float(number))
            if number.fract() == 0.0 && number.abs() < 9e15 =>
        {
            Value::Integer(*number as i64)
        }
        _ => value,
    }
}

/// Serde's message with Rust's type names replaced by words.
fn plain_words(message: &str) -> String {
    let mut message = message.trim().replace('`', "\"");
    for (rust, words) in [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a string", "expected a word in quotes"),
        ("expected a sequence", "expected a list such as [0.4, 1.0]"),
    ] {
        if message.ends_with(rust) {
            message.truncate(message.len() - rust.len());
            message.push_str(words);
        }
    }
    message
}

fn unknown_section(name: &str, origin: Origin) -> Result<ConfigError, ConfigError> {
    let defaults = table::defaults()?;
    let known: Vec<_> =
        table::leaves(&defaults).map(|(s, k, _)| (s.to_owned(), k.to_owned())).collect();
    let section = nearest(name, defaults.keys().map(String::as_str)).map(|s| format!("[{s}]"));
    Ok(ConfigError::UnknownSection {
        name: name.to_owned(),
        origin,
        suggestion: section.or_else(|| nearest_key("", name, &known)),
        sections: defaults.keys().map(|s| format!("[{s}]")).collect::<Vec<_>>().join(", "),
    })
}

/// A checked configuration that knows where every value came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The values.
    pub config: RunConfig,
    pub(super) origins: BTreeMap<String, Origin>,
}

impl Resolved {
    /// Where `section.key` came from; [`Origin::Default`] for a key nobody set.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}
