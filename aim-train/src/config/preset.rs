//! What a preset sets: the model, and training values that make sense at its size.

use aim_model::config::{AimConfig, PRESETS};
use toml::{Table, Value};

use super::error::ConfigError;
use super::suggest::nearest;
use super::table;

/// The sections a preset sets.
///
/// The paper's sizes get its global batch of 4096 images and its number of steps (table 1 and
/// section 5.1), the CPU sizes what finishes on a desk.
pub(super) fn preset_table(name: &str) -> Result<Table, ConfigError> {
    let model = AimConfig::preset(name).map_err(|_| ConfigError::UnknownPreset {
        name: name.to_owned(),
        suggestion: nearest(name, PRESETS).map(str::to_owned),
    })?;
    let train: &[(&str, i64)] = match name {
        "aim-nano" => &[("steps", 2_000), ("batch_size", 32)],
        "aim-micro" => &[("steps", 20_000), ("batch_size", 8), ("accumulate", 8)],
        "aim-600M" => &[("steps", 500_000), ("batch_size", 64), ("accumulate", 64)],
        _ => &[("steps", 1_200_000), ("batch_size", 64), ("accumulate", 64)],
    };
    let train = train.iter().map(|(key, value)| ((*key).to_owned(), Value::Integer(*value)));
    let mut sections = Table::new();
    sections.insert("model".to_owned(), Value::Table(table::of(&model)?));
    sections.insert("train".to_owned(), Value::Table(train.collect()));
    Ok(sections)
}
