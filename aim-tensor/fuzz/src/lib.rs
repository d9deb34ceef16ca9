//! Finds a reader by name.

/// Runs the reader called `name`.
///
/// # Panics
/// When there is none, or when the reader has a bug.
pub fn run(name: &str, bytes: &[u8]) {
    let target = aim_tensor::io::fuzzing::FUZZ_TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of this name").1(bytes);
}
