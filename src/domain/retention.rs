//! Which finished runs of a schedule are kept.

use jiff::Timestamp;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Name of the SyncJob.
    pub name: String,
    /// Completed, as opposed to failed.
    pub succeeded: bool,
    /// When it ended.
    pub at: Timestamp,
}

/// Names of the runs beyond the limits, the oldest first.
#[must_use]
pub fn beyond(mut finished: Vec<Finished>, keep_succeeded: usize, keep_failed: usize) -> Vec<String> {
    finished.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
    let (succeeded, failed): (Vec<_>, Vec<_>) = finished.into_iter().partition(|run| run.succeeded);
    let excess = |runs: Vec<Finished>, keep: usize| {
        let drop = runs.len().saturating_sub(keep);
        runs.into_iter().take(drop).map(|run| run.name)
    };
    excess(succeeded, keep_succeeded).chain(excess(failed, keep_failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, succeeded: bool, at: i64) -> Finished {
        Finished { name: name.to_owned(), succeeded, at: Timestamp::from_second(at).unwrap() }
    }

    #[test]
    fn the_oldest_go_first_and_each_outcome_has_its_own_limit() {
        let runs =
            vec![run("c", true, 3), run("a", true, 1), run("b", true, 2), run("x", false, 1), run("y", false, 2)];
        assert_eq!(beyond(runs.clone(), 2, 2), ["a"]);
        assert_eq!(beyond(runs.clone(), 0, 1), ["a", "b", "c", "x"]);
        assert!(beyond(runs, 10, 20).is_empty());
    }
}
