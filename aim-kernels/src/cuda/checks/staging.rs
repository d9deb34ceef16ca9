//! Uploads that do not wait.

use super::lab::{Check, Lab, compare};
use crate::cuda::{CudaError, Staging};

/// Uploads to the same place, one after the other, with nothing that waits between them.
const UPLOADS: usize = 5;

pub(super) fn run(lab: &mut Lab, checks: &mut Vec<Check>) -> Result<(), CudaError> {
    for len in [1, 1000, 100_000] {
        let (place, other) = (lab.poisoned::<f32>(len)?, lab.poisoned::<f32>(len)?);
        let seen = lab.poisoned::<f32>(UPLOADS * len)?;
        let mut staging = Staging::new(lab.gpu());
        let mut expected = Vec::new();
        for upload in 0..UPLOADS {
            // Shorter values go to the front of the place, as a last batch does.
            let mut values = lab.normal(if upload == 2 { len.div_ceil(2) } else { len }, 1.0);
            staging.upload(place.slice().range(0..values.len()), &values)?;
            staging.upload(other.slice(), &lab.normal(len, 1.0))?;
            seen.slice()
                .range(upload * len..(upload + 1) * len)
                .copy_from(lab.gpu(), place.slice())?;
            let kept = expected.len() - expected.len().min(len);
            expected.extend(values.iter().map(|&value| f64::from(value)));
            // What a shorter upload left alone is that of the one before.
            let rest = (expected.len() - upload * len)..len;
            let before: Vec<f64> = rest.map(|at| expected[kept + at]).collect();
            expected.extend(before);
            // The memory that was uploaded from is the caller's again.
            values.fill(f32::NAN);
        }
        checks.push(compare(format!("staging {UPLOADS} x {len}"), &seen, &expected, 0.0)?);
    }
    Ok(())
}
