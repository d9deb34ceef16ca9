//! Configurations as TOML tables.

use serde::Serialize;
use toml::{Table, Value};

use super::error::ConfigError;
use super::sections::RunConfig;

/// `value` as a table. Numbers held as `f32` become the shortest decimal that means the same `f32`.
pub(super) fn of(value: &impl Serialize) -> Result<Table, ConfigError> {
    let mut table = Table::try_from(value)
        .map_err(|error| ConfigError::Internal { message: error.to_string() })?;
    table.iter_mut().for_each(|(_, value)| shorten(value));
    Ok(table)
}

/// The table of every section and key that exists, with its default.
pub(super) fn defaults() -> Result<Table, ConfigError> {
    of(&RunConfig::default())
}

/// `(section, key, value)` of every value, in the order of the table.
pub(super) fn leaves(table: &Table) -> impl Iterator<Item = (&str, &str, &Value)> {
    table.iter().filter_map(|(section, body)| Some((section, body.as_table()?))).flat_map(
        |(section, body)| {
            body.iter().map(move |(key, value)| (section.as_str(), key.as_str(), value))
        },
    )
}

/// `value` on one line, as TOML.
pub(super) fn text(value: &Value) -> String {
    match value {
        // The serializer spells 1e-8 as 0.00000001.
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        other => other.to_string(),
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::Float(number) => {
            let single = *number as f32;
            if f64::from(single) == *number
                && let Ok(short) = single.to_string().parse()
            {
                *number = short;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Table(values) => values.iter_mut().for_each(|(_, value)| shorten(value)),
        _ => {}
    }
}
