//! Installations: the fingerprint of the processes of an installation, and the owners of queues and objects. See
//! `docs/design/installations-and-versions.md`.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{ObjectEvent, conditions, elapsed, lease::LeaseRecord};
use crate::api::conditions::{INSTALLATION_CONFLICT, reasons};

/// Time after which an owner that has not renewed its ownership has lost it.
pub const OWNERSHIP: Duration = Duration::from_mins(10);
/// Scope of an installation that watches all namespaces.
pub const ALL_NAMESPACES: &str = "*";
/// Name of the third part of a fingerprint.
const DATABASE: &str = "default database";
/// A part of a fingerprint that the process does not know.
const UNKNOWN: &str = "-";

/// Fingerprint of an installation: values that all its processes share, and other installations do not. A part is
/// `None` where the process cannot know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Uid of the namespace `kube-system`.
    pub cluster: Option<String>,
    /// [`ALL_NAMESPACES`], or the uid of the namespace that is watched.
    pub scope: Option<String>,
    /// Default database.
    pub database: Option<String>,
}

impl fmt::Display for Fingerprint {
    /// The form in Redis: three words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [cluster, scope, database] = self.parts().map(|part| part.unwrap_or(UNKNOWN));
        write!(f, "{cluster} {scope} {database}")
    }
}

impl Fingerprint {
    /// Parses the form in Redis.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(' ').map(|part| (part != UNKNOWN && !part.is_empty()).then(|| part.to_owned()));
        let mut next = || parts.next().flatten();
        Self { cluster: next(), scope: next(), database: next() }
    }

    fn parts(&self) -> [Option<&str>; 3] {
        [self.cluster.as_deref(), self.scope.as_deref(), self.database.as_deref()]
    }

    /// Returns the first part that both fingerprints have and in which they differ. `prelude.lua` has the same rule.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let names = ["cluster", "watched namespaces", DATABASE];
        let differs = |(a, b): (Option<&str>, Option<&str>)| a.zip(b).is_some_and(|(a, b)| a != b);
        let mut pairs = self.parts().into_iter().zip(other.parts());
        pairs.position(differs).and_then(|at| names.get(at).copied())
    }
}

/// Owner of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Fingerprint that all processes of the installation agree on.
    pub fingerprint: Fingerprint,
    /// Name of its Lease, as `<namespace>/<name>`.
    pub lease: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lease)?;
        match &self.fingerprint.database {
            Some(database) => write!(f, " (database {database})"),
            None => Ok(()),
        }
    }
}

impl Owner {
    /// True when `self`, which leads, may record itself in the place of `recorded`. The leader of the same Lease of the
    /// same cluster is the same installation, whose default database was changed.
    #[must_use]
    pub fn may_succeed(&self, recorded: &Self) -> bool {
        let (mine, other) = (&self.fingerprint, &recorded.fingerprint);
        match mine.difference(other) {
            None => true,
            Some(DATABASE) => {
                // Leases of other clusters may have the same name.
                let is_one_cluster = (mine.cluster.is_some() && other.cluster.is_some())
                    || mine.scope.as_deref().is_some_and(|scope| scope != ALL_NAMESPACES && other.scope.is_some());
                self.lease == recorded.lease && is_one_cluster
            }
            Some(_) => false,
        }
    }
}

/// True when the controllers of a Lease are inactive: the Lease does not exist (`None`), was released, or was not
/// renewed until its installation lost its ownership.
#[must_use]
pub fn is_over(lease: Option<&LeaseRecord>, now: Timestamp) -> bool {
    let Some(lease) = lease else { return true };
    let is_held = lease.holder.as_deref().is_some_and(|holder| !holder.is_empty());
    !is_held || lease.renewed.is_none_or(|renewed| elapsed(renewed, now) > OWNERSHIP)
}

/// Sets the condition of an object that the controllers of two Leases reconcile, and returns its event. `owner` is
/// the Lease whose controllers continue.
pub fn set_conflict(
    conditions: &mut Vec<Condition>,
    owner: &str,
    me: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> ObjectEvent {
    let message = format!(
        "{} this object unchanged: it belongs to the Lease {owner}. Stop one installation, or run sync-operator adopt",
        who_leaves(me)
    );
    conditions::set(conditions, INSTALLATION_CONFLICT, true, reasons::OTHER_INSTALLATION, &message, generation, now);
    ObjectEvent::warning("InstallationConflict", message)
}

/// Message for users while the queue belongs to another installation.
#[must_use]
pub fn queue_is_owned(owner: &str) -> String {
    format!("The queue belongs to the installation {owner}: set another QUEUE_NAME, or run sync-operator adopt")
}

fn who_leaves(lease: &str) -> String {
    format!("The controllers of the Lease {lease} leave")
}

/// Removes the condition about another installation from an object, for its owner. The condition must be old, because
/// the other installation repeats it, or must come from the owner itself.
pub fn clear_conflict(conditions: &mut Vec<Condition>, me: &str, now: Timestamp) {
    let is_over = |conflict: &Condition| {
        conflict.message.starts_with(&who_leaves(me)) || elapsed(conflict.last_transition_time.0, now) > OWNERSHIP
    };
    if conditions::find(conditions, INSTALLATION_CONFLICT).is_some_and(is_over) {
        conditions::clear(conditions, INSTALLATION_CONFLICT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    #[test]
    fn fingerprints_agree_unless_a_part_that_both_know_differs() {
        for (mine, other, difference) in [
            ("c1 * codex", "c1 * codex", None),
            ("c1 * codex", "- - codex", None),
            ("- - codex", "- - -", None),
            ("c1 * codex", "c2 * codex", Some("cluster")),
            ("- n1 codex", "- n2 codex", Some("watched namespaces")),
            ("c1 * codex", "c1 n1 codex", Some("watched namespaces")),
            ("c1 * codex", "- - other", Some("default database")),
        ] {
            let (mine, other) = (Fingerprint::parse(mine), Fingerprint::parse(other));
            assert_eq!(mine.difference(&other), difference, "{mine} / {other}");
            assert_eq!(other.difference(&mine), difference, "{other} / {mine}");
            assert_eq!(Fingerprint::parse(&mine.to_string()), mine);
        }
    }

    #[test]
    fn a_leader_succeeds_its_own_installation_and_no_other() {
        let owner = |lease: &str, text: &str| Owner { fingerprint: Fingerprint::parse(text), lease: lease.to_owned() };
        for (me, recorded, expected) in [
            (owner("ns/op", "c1 * a"), owner("ns/op", "c1 * a"), true),
            (owner("ns/op", "c1 * b"), owner("ns/op", "c1 * a"), true),
            (owner("ns/two", "c1 * b"), owner("ns/op", "c1 * a"), false),
            (owner("ns/op", "c2 * a"), owner("ns/op", "c1 * a"), false),
            (owner("ns/op", "c1 n1 a"), owner("ns/op", "c1 n2 a"), false),
            // In another cluster, the Lease may have the same name.
            (owner("ns/op", "- * b"), owner("ns/op", "- * a"), false),
            (owner("ns/op", "c1 * a"), owner("ns/op", "- - -"), true),
        ] {
            assert_eq!(me.may_succeed(&recorded), expected, "{me:?} after {recorded:?}");
        }
    }

    #[test]
    fn ownership_of_objects_ends_with_the_lease() {
        let record = |holder: &str, renewed| LeaseRecord {
            holder: Some(holder.to_owned()),
            renewed: Some(at(renewed)),
            ..LeaseRecord::default()
        };
        let minutes = |minutes: i64| 10_000 + 60 * minutes;
        for (lease, over) in [
            (None, true),
            (Some(record("", minutes(0))), true),
            (Some(record("me", minutes(0))), false),
            (Some(record("me", minutes(-9))), false),
            (Some(record("me", minutes(-11))), true),
            // The clock of the other one, or of this process, is wrong: not over.
            (Some(record("me", minutes(90))), false),
        ] {
            assert_eq!(is_over(lease.as_ref(), at(minutes(0))), over, "{lease:?}");
        }
    }

    #[test]
    fn an_old_conflict_is_cleared() {
        let mut conditions = Vec::new();
        set_conflict(&mut conditions, "a/one", "b/two", None, at(0));
        clear_conflict(&mut conditions, "a/one", at(599));
        assert!(conditions[0].message.contains("a/one") && conditions[0].message.contains("b/two"));
        clear_conflict(&mut conditions, "a/one", at(601));
        assert_eq!(conditions, []);
        set_conflict(&mut conditions, "a/one", "b/two", None, at(0));
        clear_conflict(&mut conditions, "b/two", at(1));
        assert_eq!(conditions, [], "it has adopted the object");
    }
}
