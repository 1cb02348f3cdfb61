//! Selection of the finished runs of a schedule that are kept.

use jiff::Timestamp;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Name of the SyncJob.
    pub name: String,
    /// Completed, as opposed to failed.
    pub succeeded: bool,
    /// Cancelled since a newer one took its place.
    pub replaced: bool,
    /// End of the run.
    pub at: Timestamp,
}

/// Runs beyond the limits, the oldest first. Among unsuccessful runs, replaced ones are first: otherwise they would
/// displace failures that a user has to see.
#[must_use]
pub fn beyond(mut finished: Vec<Finished>, keep_succeeded: usize, keep_failed: usize) -> Vec<Finished> {
    finished.sort_by(|a, b| (!a.replaced, a.at, &a.name).cmp(&(!b.replaced, b.at, &b.name)));
    let (succeeded, failed): (Vec<_>, Vec<_>) = finished.into_iter().partition(|run| run.succeeded);
    let excess = |runs: Vec<Finished>, keep: usize| {
        let drop = runs.len().saturating_sub(keep);
        runs.into_iter().take(drop)
    };
    excess(succeeded, keep_succeeded).chain(excess(failed, keep_failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(beyond: &[Finished]) -> Vec<&str> {
        beyond.iter().map(|run| run.name.as_str()).collect()
    }

    fn run(name: &str, succeeded: bool, at: i64) -> Finished {
        Finished { name: name.to_owned(), succeeded, replaced: false, at: Timestamp::from_second(at).unwrap() }
    }

    #[test]
    fn the_oldest_go_first_and_each_outcome_has_its_own_limit() {
        let runs =
            vec![run("c", true, 3), run("a", true, 1), run("b", true, 2), run("x", false, 1), run("y", false, 2)];
        assert_eq!(names(&beyond(runs.clone(), 2, 2)), ["a"]);
        assert_eq!(names(&beyond(runs.clone(), 0, 1)), ["a", "b", "c", "x"]);
        assert!(beyond(runs, 10, 20).is_empty());
        let mut replaced = vec![run("x", false, 1), run("y", false, 2), run("z", false, 3)];
        replaced[2].replaced = true;
        assert_eq!(names(&beyond(replaced.clone(), 0, 2)), ["z"], "a failure stays rather than a replaced run");
        assert_eq!(names(&beyond(replaced, 0, 1)), ["z", "x"]);
    }
}
