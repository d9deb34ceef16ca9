//! Class numbers in members of a tar shard.

use serde_json::Value;

use crate::error::ShardProblem;

/// Longest piece of a file shown in a message, in letters.
const MAX_SHOWN: usize = 80;

/// The class number that a `.cls` member holds.
pub(super) fn in_text(text: &[u8]) -> Result<u32, ShardProblem> {
    let number = std::str::from_utf8(text).ok().and_then(parse);
    number.ok_or_else(|| {
        let found = format!("`{}`", String::from_utf8_lossy(text).escape_debug());
        ShardProblem::BadLabel(found)
    })
}

/// The class number under a key of a JSON member: a number, or a text that is one. None where the
/// key is missing or null. A dot in a key leads into the value of what is before it, unless there
/// is a key with the dot in it.
pub(super) fn in_json(text: &[u8], key: &str) -> Result<Option<u32>, ShardProblem> {
    let bad = |found| ShardProblem::BadJsonLabel { key: key.to_owned(), found };
    let value: Value =
        serde_json::from_slice(text).map_err(|error| bad(format!("no JSON ({error})")))?;
    let nested = || key.split('.').try_fold(&value, |value, part| value.get(part));
    let number = match value.get(key).or_else(nested) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => parse(text),
        // Tables with missing values make floats of whole numbers.
        Some(Value::Number(number)) => parse(number.to_string().trim_end_matches(".0")),
        Some(_) => None,
    };
    let shown = || {
        let value = value.get(key).or_else(nested).map(Value::to_string).unwrap_or_default();
        format!("`{}`", value.chars().take(MAX_SHOWN).collect::<String>().escape_debug())
    };
    number.map(Some).ok_or_else(|| bad(shown()))
}

/// `u32::MAX` is kept free so that label + 1 never overflows.
fn parse(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|&label| label != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_under_their_key() {
        let text = br#"{"cls": 7, "a": {"b": "12", "c": {"d": 3.0}}, "e.f": 1, "n": null}"#;
        let get = |key| in_json(text, key).unwrap();
        assert_eq!(
            (get("cls"), get("a.b"), get("a.c.d"), get("e.f")),
            (Some(7), Some(12), Some(3), Some(1))
        );
        assert_eq!((get("n"), get("missing"), get("a.x"), get("cls.x")), (None, None, None, None));
        for (bad, key) in [
            (&br#"{"cls": -1}"#[..], "cls"),
            (br#"{"cls": 1.5}"#, "cls"),
            (br#"{"cls": "cat"}"#, "cls"),
            (br#"{"cls": [3]}"#, "cls"),
            (br#"{"cls": 4294967295}"#, "cls"),
            (b"{", "cls"),
            (b"\xff", "cls"),
        ] {
            let text = in_json(bad, key).unwrap_err().to_string();
            assert!(text.contains("`cls`") && text.contains("class number"), "{text}");
        }
    }
}
