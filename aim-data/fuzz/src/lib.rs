//! Finds a parser by name.

/// Runs the parser called `name`.
///
/// # Panics
/// When there is none, or when the parser has a bug.
pub fn run(name: &str, bytes: &[u8]) {
    let target = aim_data::FUZZ_TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of this name").1(bytes);
}
