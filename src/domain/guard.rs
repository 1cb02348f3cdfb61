//! The guard of a run: decides whether the run may change documents, or waits for an approval.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

use super::run::{SpecError, duration};
use crate::api::guard::{self, GuardAction, Share};

/// Removals in per cent that a run may make where the spec sets no limit.
const DEFAULT_PERCENT: u64 = 20;
/// Removals that a run may make in any case where the spec sets no limit.
const DEFAULT_FLOOR: u64 = 5;
/// Keys of documents shown with a hold.
pub const MAX_KEYS: usize = 10;

/// The checked limits of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    max_missing: Option<Limit>,
    max_changed: Option<Limit>,
    min_results: u64,
    /// Action of the guard when a limit is exceeded.
    pub action: GuardAction,
    /// Longest time for which a held run waits.
    pub hold_for: Duration,
}

/// A number of documents, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Count(u64),
    Percent(u64),
}

impl Limit {
    /// The most of `all` documents that it allows.
    fn resolve(self, all: u64) -> u64 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => all.saturating_mul(percent) / 100,
        }
    }
}

/// Removals that a run is about to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    /// Documents that it would mark newly.
    pub marks: u64,
    /// Documents that it would delete.
    pub deletions: u64,
    /// Documents that it would confirm although the source did not list them (`source.adopt`).
    pub adoptions: u64,
}

impl Removals {
    /// The number that an approval has to reach.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.marks + self.deletions + self.adoptions
    }
}

/// Hold of a run that waits for an approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Documents that the approval has to cover.
    pub number: u64,
    /// A sentence that names the limit and the numbers.
    pub message: String,
    /// Keys of the first of these documents.
    #[serde(default)]
    pub keys: Vec<String>,
}

impl Guard {
    /// Checks the limits of a spec.
    ///
    /// # Errors
    /// The first mistake found.
    pub(super) fn parse(spec: &guard::Guard) -> Result<Self, SpecError> {
        let min_results = spec.min_results.unwrap_or(0);
        Ok(Self {
            max_missing: limit("guard.maxMissing", spec.max_missing.as_ref())?,
            max_changed: limit("guard.maxChanged", spec.max_changed.as_ref())?,
            min_results: u64::try_from(min_results).map_err(|_| SpecError::Range {
                field: "guard.minResults",
                min: 0,
                max: 1_000_000_000,
                value: min_results,
            })?,
            action: spec.action,
            hold_for: duration("guard.holdFor", &spec.hold_for)?,
        })
    }

    /// Checks `removals` against the limits, and returns the reason for which the run must wait, without keys.
    /// `confirmed` is the number of documents that the source had confirmed and not marked at the start. `results` is
    /// the number of results that the source listed, or `None` for a source without lists. `approved` is the number of
    /// documents that a user approved.
    #[must_use]
    pub fn check(
        &self,
        removals: Removals,
        confirmed: u64,
        results: Option<u64>,
        approved: Option<u64>,
    ) -> Option<Hold> {
        let total = removals.total();
        if total == 0 || approved.is_some_and(|approved| total <= approved) {
            return None;
        }
        let hold = |message: String| Some(Hold { number: total, message, keys: Vec::new() });
        if removals.adoptions > 0 {
            return hold(format!(
                "source.adopt would confirm {} documents that the source does not list",
                removals.adoptions
            ));
        }
        if let Some(results) = results.filter(|results| *results < self.min_results) {
            let min = self.min_results;
            return hold(format!("the source lists {results} results, and guard.minResults is {min}"));
        }
        let allowed = self.max_missing.map_or_else(
            || Limit::Percent(DEFAULT_PERCENT).resolve(confirmed).max(DEFAULT_FLOOR),
            |limit| limit.resolve(confirmed),
        );
        let exceeding = [("mark", removals.marks), ("delete", removals.deletions)];
        let (verb, number) = exceeding.into_iter().find(|(_, number)| *number > allowed)?;
        hold(format!(
            "the run would {verb} {number} of {confirmed} confirmed documents, and guard.maxMissing allows {allowed}"
        ))
    }

    /// The most confirmed documents that a run may change, of `confirmed`. `None`: any number.
    #[must_use]
    pub fn max_changed(&self, confirmed: u64, approved: Option<u64>) -> Option<u64> {
        self.max_changed.map(|limit| limit.resolve(confirmed).max(approved.unwrap_or(0)))
    }

    /// Hold, without keys, of a run that has changed `changed` documents. `None`: the limit is not exceeded.
    #[must_use]
    pub fn check_changes(&self, changed: u64, max: u64) -> Option<Hold> {
        (changed > max).then(|| Hold {
            number: changed,
            message: format!(
                "the run has changed {changed} confirmed documents, and guard.maxChanged allows {max}: approve a larger number of changes"
            ),
            keys: Vec::new(),
        })
    }
}

fn limit(field: &'static str, share: Option<&Share>) -> Result<Option<Limit>, SpecError> {
    let invalid = || SpecError::Share(field);
    let limit = match share.map(|share| &share.0) {
        None => None,
        Some(IntOrString::Int(count)) => Some(Limit::Count(u64::try_from(*count).map_err(|_| invalid())?)),
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
            Some(Limit::Percent(percent.filter(|percent| *percent <= 100).ok_or_else(invalid)?))
        }
    };
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(spec: Value) -> Result<Guard, String> {
        let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
        Guard::parse(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_guard_holds_what_exceeds_its_limits() {
        let marks = |marks| Removals { marks, ..Removals::default() };
        let deletions = |deletions| Removals { deletions, ..Removals::default() };
        let all = |marks, deletions| Removals { marks, deletions, ..Removals::default() };
        for (spec, removals, confirmed, results, approved, held) in [
            // The default: 20 %, and always 5.
            (json!({}), marks(5), 6, None, None, false),
            (json!({}), marks(6), 6, None, None, true),
            (json!({}), marks(6), 30, None, None, false),
            (json!({}), marks(200), 1000, None, None, false),
            (json!({}), marks(201), 1000, None, None, true),
            (json!({}), deletions(201), 1000, None, None, true),
            // Each against the limit, not their sum; 19 of 25 gone.
            (json!({}), all(150, 150), 1000, None, None, false),
            (json!({}), marks(19), 25, None, None, true),
            // A limit that is set has no floor.
            (json!({"maxMissing": 0}), marks(1), 1000, None, None, true),
            (json!({"maxMissing": "0%"}), marks(1), 1000, None, None, true),
            (json!({"maxMissing": "5%"}), marks(50), 1000, None, None, false),
            (json!({"maxMissing": "5%"}), marks(51), 1000, None, None, true),
            (json!({"maxMissing": 51}), marks(51), 1000, None, None, false),
            (json!({"minResults": 10}), marks(1), 1000, Some(9), None, true),
            (json!({"minResults": 10}), marks(1), 1000, Some(10), None, false),
            (json!({"minResults": 10}), marks(0), 1000, Some(9), None, false),
            (json!({"minResults": 10}), marks(1), 1000, None, None, false),
            // An approval holds for as many as were seen.
            (json!({}), marks(400), 1000, None, Some(400), false),
            (json!({}), marks(401), 1000, None, Some(400), true),
            (json!({}), all(300, 101), 1000, None, Some(400), true),
            (json!({}), Removals { adoptions: 1, ..marks(0) }, 1000, None, None, true),
            (json!({}), Removals { adoptions: 1, ..marks(0) }, 1000, None, Some(1), false),
        ] {
            let hold = parse(spec.clone()).unwrap().check(removals, confirmed, results, approved);
            assert_eq!(hold.is_some(), held, "{spec} {removals:?} of {confirmed}: {hold:?}");
            assert!(hold.is_none_or(|hold| hold.number == removals.total()), "{spec}");
        }
    }

    #[test]
    fn changes_are_limited_only_where_the_spec_says_so() {
        assert_eq!(parse(json!({})).unwrap().max_changed(1000, None), None);
        let guard = parse(json!({"maxChanged": "10%"})).unwrap();
        assert_eq!((guard.max_changed(1000, None), guard.max_changed(1000, Some(500))), (Some(100), Some(500)));
        assert_eq!(
            (guard.check_changes(100, 100), guard.check_changes(101, 100).map(|hold| hold.number)),
            (None, Some(101))
        );
    }

    #[test]
    fn limits_that_are_no_shares_are_refused() {
        for share in [json!(-1), json!("5"), json!("101%"), json!("-1%"), json!("x%")] {
            let error = parse(json!({"maxMissing": share})).unwrap_err();
            assert!(error.starts_with("guard.maxMissing must be"), "{share}: {error}");
        }
    }
}
