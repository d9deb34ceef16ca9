//! Every kernel, and the machine's primitives, against double precision.

use std::sync::Arc;

use aim_kernels::cuda::checks::{self, Lab};
use aim_kernels::cuda::sources;
use anyhow::{Result, ensure};

use super::Context;
use super::record::{Check, Record};

/// What there are checks of, besides the primitives: each file of kernels, the products, and uploads.
pub(super) fn names() -> Vec<&'static str> {
    let files = sources::FILES.iter().filter_map(|(name, _)| name.strip_suffix(".cu"));
    let mut names: Vec<&str> = files.filter(|name| *name != "seam").collect();
    // A second file of the same kernels.
    let second = |name: &str, other: &str| {
        name.strip_prefix(other).is_some_and(|rest| rest.starts_with('_'))
    };
    let all = names.clone();
    names.retain(|name| !all.iter().any(|other| second(name, other)));
    names.extend(["linear", "staging"]);
    names
}

pub(super) fn run(context: &Context, part: &str, name: &str) -> Result<()> {
    let mut lab = Lab::new(Arc::clone(&context.gpu), context.seed);
    let found = checks::run(&mut lab, name)?;
    ensure!(!found.is_empty(), "there is no check of {name}");
    let group = if part == "seam" { "primitives" } else { name };
    for checks::Check { name, error, tolerance, .. } in found {
        context.emit(Record::Check(Check::new(group, name, error, tolerance)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernels_are_named_once() {
        let names = super::names();
        for name in ["linear", "bias", "prefix_attention", "layer_norm"] {
            assert_eq!(names.iter().filter(|other| **other == name).count(), 1, "{names:?}");
        }
        assert!(!names.contains(&"seam") && !names.contains(&"prefix_attention_backward"));
    }
}
