//! GPUs to plan for, without one at hand.

/// What a plan needs to know of a card. Dense bf16 rates and memory are the makers' data sheets'.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Card {
    pub(crate) name: String,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Dense bf16 FLOP a second with fp32 accumulation, if known.
    pub(crate) peak: Option<f64>,
}

const GIB: u64 = 1 << 30;

/// Name, memory in GiB as the driver reports it, TFLOP/s.
const CARDS: &[(&str, u64, f64)] = &[
    ("A100-40", 39, 312.0),
    ("A100-80", 79, 312.0),
    ("L40S", 44, 362.0),
    ("RTX4090", 23, 165.2),
    ("H100", 79, 989.4),
    ("H200", 139, 989.4),
    ("B200", 178, 2250.0),
];

/// Reads a card's name, or an amount of memory.
pub(crate) fn parse(text: &str) -> Result<Card, String> {
    if let Some(&(name, gib, tflops)) =
        CARDS.iter().find(|(name, ..)| name.eq_ignore_ascii_case(text))
    {
        return Ok(Card { name: name.to_owned(), memory: gib * GIB, peak: Some(tflops * 1e12) });
    }
    match text.parse::<u64>() {
        Ok(gib @ 1..=4096) => {
            Ok(Card { name: format!("{gib} GiB"), memory: gib * GIB, peak: None })
        }
        _ => {
            let names: Vec<&str> = CARDS.iter().map(|(name, ..)| *name).collect();
            Err(format!("expected {}, or memory in GiB such as 48", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes() {
        assert_eq!(parse("h200").unwrap().memory, 139 * GIB);
        assert_eq!(
            parse("48").unwrap(),
            Card { name: "48 GiB".into(), memory: 48 * GIB, peak: None }
        );
        assert!(parse("h300").unwrap_err().contains("H200") && parse("0").is_err());
    }
}
