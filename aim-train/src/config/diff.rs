//! In which keys two configurations differ.

use toml::Value;

use super::error::ConfigError;
use super::sections::RunConfig;
use super::table;
use crate::error::Difference;

/// The keys in which `current` differs from `saved`, with both values as TOML.
///
/// # Errors
/// [`ConfigError::Internal`] if a value has no TOML form.
pub fn differences(saved: &RunConfig, current: &RunConfig) -> Result<Vec<Difference>, ConfigError> {
    let (saved, current) = (table::of(saved)?, table::of(current)?);
    let now = |section: &str, key: &str| -> Option<&Value> { current.get(section)?.get(key) };
    Ok(table::leaves(&saved)
        .filter_map(|(section, key, before)| {
            let after = now(section, key)?;
            (before != after).then(|| Difference {
                key: format!("{section}.{key}"),
                saved: table::text(before),
                current: table::text(after),
            })
        })
        .collect())
}

/// Whether `section.key` may differ when a run resumes: it changes neither the weights nor the
/// images, only speed, memory, or what is written and when.
pub fn free_on_resume(key: &str) -> bool {
    matches!(
        key,
        "data.workers"
            | "data.max_bad_fraction"
            | "data.cache_dir"
            | "data.cache_bytes"
            | "train.threads"
            | "train.recompute"
    ) || ["checkpoint.", "log.", "validation."].iter().any(|section| key.starts_with(section))
}
