//! What can be wrong with a configuration.

use std::path::PathBuf;

use aim_model::config::PRESETS;

use super::origin::Origin;
use super::suggest::did_you_mean;

/// Errors of reading, merging and checking a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML; the parser's message shows the line.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        message: String,
    },
    /// `--set` without a key or without a value.
    #[error("--set {text}: expected section.key=value, such as --set train.lr=5e-4")]
    BadSet {
        /// What was given.
        text: String,
    },
    /// A preset that does not exist.
    #[error("unknown preset {name:?}{}; presets: {}", did_you_mean(suggestion), PRESETS.join(", "))]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// A section that does not exist, or a key outside any section.
    #[error(
        "unknown section {name:?} ({origin}){}; sections: {sections}",
        did_you_mean(suggestion)
    )]
    UnknownSection {
        /// The name found.
        name: String,
        /// Where it was found.
        origin: Origin,
        /// The nearest `[section]` or `section.key`.
        suggestion: Option<String>,
        /// The sections that exist.
        sections: String,
    },
    /// A key that does not exist in its section.
    #[error("unknown key {key} ({origin}){}; {keys}", did_you_mean(suggestion))]
    UnknownKey {
        /// `section.key` as found.
        key: String,
        /// Where it was found.
        origin: Origin,
        /// The nearest `section.key`.
        suggestion: Option<String>,
        /// The section and its keys.
        keys: String,
    },
    /// A value of the wrong type, or a word that is none of the choices.
    #[error("{key} = {found} ({origin}): {problem}")]
    Type {
        /// `section.key`.
        key: String,
        /// The value found, as TOML.
        found: String,
        /// Where it was found.
        origin: Origin,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A value outside its range, or one that does not fit another.
    #[error("{key} = {found}{}: expected {expected}", origin.as_ref().map(|o| format!(" ({o})")).unwrap_or_default())]
    Range {
        /// `section.key`.
        key: String,
        /// The value found, as TOML.
        found: String,
        /// What would work.
        expected: String,
        /// Where it was found, when known.
        origin: Option<Origin>,
    },
    /// The configuration could not be written as TOML, or read back.
    #[error("configuration: {message}")]
    Internal {
        /// What the serializer said.
        message: String,
    },
}
