//! `aim-cli config`.

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::Config;
use crate::stdout;

pub(crate) fn run(args: &Config) -> Result<()> {
    let args = match args {
        Config::Show(args) => args,
        Config::Suite => return stdout::print(super::probe::suite::EXAMPLE),
    };
    let resolved = args.config.resolve()?;
    if !args.json {
        return stdout::print(&resolved.to_toml_with_origins()?);
    }
    let values = serde_json::to_value(&resolved.config)?;
    let entries: Vec<_> = resolved
        .entries()?
        .into_iter()
        .map(|entry| {
            // The TOML text first: it has the shortest spelling of a number held as f32.
            let value = serde_json::from_str::<Value>(&entry.value)
                .ok()
                .or_else(|| values.pointer(&format!("/{}", entry.key.replace('.', "/"))).cloned());
            json!({ "key": entry.key, "value": value, "origin": entry.origin })
        })
        .collect();
    stdout::print_json(&entries)
}
