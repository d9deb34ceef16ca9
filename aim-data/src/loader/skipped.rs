//! Keeping account of samples that could not be used.

use std::collections::{BTreeMap, HashSet};

use crate::error::{Defect, DefectKind, Error, Result};

/// Defects named in an error.
pub(super) const NAMED_DEFECTS: usize = 5;

/// Samples whose defects are remembered so that each is reported once.
const MAX_REMEMBERED: usize = 100_000;
/// Reports kept until they are fetched.
const MAX_PENDING: usize = 1000;

/// When bad samples end the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BadSamplePolicy {
    /// Largest share of the samples tried that may be bad.
    pub max_fraction: f64,
    /// This many are tolerated whatever their share.
    pub min_count: u64,
}

impl Default for BadSamplePolicy {
    /// A tenth, once more than 10 were bad.
    fn default() -> Self {
        Self { max_fraction: 0.1, min_count: 10 }
    }
}

/// A sample that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Which source of the mixture it belongs to.
    pub source: u16,
    /// Epoch in which it would have been used.
    pub epoch: u64,
    /// Place and reason.
    pub defect: Defect,
}

/// Counts and reports of skipped samples.
#[derive(Debug)]
pub(super) struct Account {
    policy: BadSamplePolicy,
    /// Ranks that a sample of this one stands for: `used` and `bad` are for all of them, so that
    /// they stay true when a run goes on with another number of ranks.
    ranks: u64,
    used: u64,
    bad: u64,
    counts: BTreeMap<DefectKind, u64>,
    first: Vec<Defect>,
    pending: Vec<Skipped>,
    reported: HashSet<(u16, u64)>,
}

impl Account {
    pub(super) fn new(policy: BadSamplePolicy, ranks: u64, used: u64, bad: u64) -> Self {
        Self {
            policy,
            ranks,
            used,
            bad,
            counts: BTreeMap::new(),
            first: Vec::new(),
            pending: Vec::new(),
            reported: HashSet::new(),
        }
    }

    /// Enters a chunk: `used` samples delivered and those that were skipped, which are taken out.
    pub(super) fn enter(&mut self, used: usize, skipped: &mut Vec<Skipped>) {
        self.used += used as u64 * self.ranks;
        for skipped in skipped.drain(..) {
            self.bad += self.ranks;
            *self.counts.entry(skipped.defect.kind).or_default() += 1;
            if self.first.len() < NAMED_DEFECTS {
                self.first.push(skipped.defect.clone());
            }
            let known = self.reported.contains(&(skipped.source, skipped.defect.index));
            if !known && self.reported.len() < MAX_REMEMBERED && self.pending.len() < MAX_PENDING {
                self.reported.insert((skipped.source, skipped.defect.index));
                self.pending.push(skipped);
            }
        }
    }

    /// Fails when too many were bad.
    pub(super) fn check(&self) -> Result<()> {
        let BadSamplePolicy { max_fraction, min_count } = self.policy;
        let seen = self.used + self.bad;
        if self.bad / self.ranks > min_count && self.bad as f64 > max_fraction * seen as f64 {
            return Err(Error::TooManyBad {
                bad: self.bad,
                seen,
                tolerated: format!(
                    "{} %, once more than {min_count} are bad",
                    max_fraction * 100.0
                ),
                first: self.first.clone(),
            });
        }
        Ok(())
    }

    /// Fails when all were bad.
    pub(super) fn check_any_used(&self) -> Result<()> {
        if self.used == 0 && self.bad > 0 {
            return Err(Error::NoUsableSample { tried: self.bad, first: self.first.clone() });
        }
        Ok(())
    }

    /// Takes samples for reported already.
    pub(super) fn remember(&mut self, reported: impl IntoIterator<Item = (u16, u64)>) {
        let room = MAX_REMEMBERED.saturating_sub(self.reported.len());
        self.reported.extend(reported.into_iter().take(room));
    }

    pub(super) fn bad(&self) -> u64 {
        self.bad
    }

    pub(super) fn counts(&self) -> &BTreeMap<DefectKind, u64> {
        &self.counts
    }

    pub(super) fn take(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.pending)
    }
}
