//! Recent failures by object. Each action on an object has a backoff of its own.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::api::ObjectMeta;
use tokio::time::Instant;

use super::admission::ObjectKey;
use crate::domain::{
    ObjectEvent,
    failure::{CREATE, Cause, Failure},
};

/// Number of objects above which old failures are removed.
const CLEANUP_THRESHOLD: usize = 1000;
/// Longest time for which a failure is kept without a retry: the object was deleted, or another process is the leader.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Failed actions by object.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<ObjectKey, FailedObject>>);

#[derive(Default)]
struct FailedObject {
    /// Uid of the object, and generation of its spec.
    spec: Option<(Option<String>, Option<i64>)>,
    actions: HashMap<&'static str, FailedAction>,
}

struct FailedAction {
    cause: Cause,
    count: u32,
    until: Instant,
    shown: Option<Failure>,
}

/// Result of a recorded failure.
pub(super) struct RecordedFailure {
    /// True for the first failure of the action in a row.
    pub is_first: bool,
    /// Event about the failure, once for each message.
    pub event: Option<ObjectEvent>,
}

impl Failures {
    /// Records the failure of an action. `retry_after` is the time for which the server accepts no request.
    pub fn record(
        &self,
        who: &ObjectKey,
        action: &'static str,
        (cause, error): (Cause, &str),
        retry_after: Duration,
        now: Instant,
    ) -> RecordedFailure {
        let mut objects = self.lock();
        if objects.len() > CLEANUP_THRESHOLD {
            let is_recent = |entry: &FailedAction| now.saturating_duration_since(entry.until) < RETENTION;
            objects.retain(|_, object| object.actions.values().any(is_recent));
        }
        let object = objects.entry(who.clone()).or_default();
        let entry = object.actions.entry(action).or_insert(FailedAction { cause, count: 0, until: now, shown: None });
        entry.count = if entry.cause == cause { entry.count.saturating_add(1) } else { 1 };
        entry.cause = cause;
        entry.until = now + cause.delay(entry.count, retry_after, rand::random());
        let failure = Some(Failure::new(action, error)).filter(|_| cause.is_shown(entry.count));
        let event = failure.clone().filter(|failure| entry.shown.as_ref() != Some(failure));
        entry.shown = failure.or_else(|| entry.shown.take());
        RecordedFailure {
            is_first: entry.count == 1,
            event: event.map(|failure| ObjectEvent::warning(failure.reason, failure.message)),
        }
    }

    /// Records that an action succeeded, or was not needed.
    pub fn record_success(&self, who: &ObjectKey, action: &'static str) {
        let mut objects = self.lock();
        if let Some(object) = objects.get_mut(who) {
            object.actions.remove(action);
            if object.actions.is_empty() {
                objects.remove(who);
            }
        }
    }

    /// Time until an action may be tried again. `None`: the action may be tried now.
    pub fn remaining_backoff(&self, who: &ObjectKey, action: &'static str, now: Instant) -> Option<Duration> {
        let objects = self.lock();
        let entry = objects.get(who)?.actions.get(action).filter(|entry| entry.cause.holds_back())?;
        entry.until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Time until a failed action is due again.
    pub fn retry_delay(&self, who: &ObjectKey, action: &'static str, now: Instant) -> Option<Duration> {
        let objects = self.lock();
        Some(objects.get(who)?.actions.get(action)?.until.saturating_duration_since(now))
    }

    /// Returns the failure that an object shows. A failed creation of a run precedes other failures.
    pub fn shown(&self, who: &ObjectKey) -> Option<Failure> {
        let objects = self.lock();
        let shown =
            objects.get(who)?.actions.iter().filter_map(|(action, entry)| Some((action, entry.shown.as_ref()?)));
        let first = shown.min_by_key(|(action, _)| (**action != CREATE, **action));
        first.map(|(_, failure)| failure.clone())
    }

    /// Removes failures from before a change of the spec, and failures of another object of the same name.
    pub fn begin(&self, who: &ObjectKey, meta: &ObjectMeta) {
        let mut objects = self.lock();
        if let Some(object) = objects.get_mut(who) {
            let spec = Some((meta.uid.clone(), meta.generation));
            let before = std::mem::replace(&mut object.spec, spec);
            if before.is_some() && before != object.spec {
                objects.remove(who);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, FailedObject>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::reflector::ObjectRef;

    fn who(name: &str) -> ObjectKey {
        ObjectKey::Schedule(ObjectRef::new(name).within("a"))
    }

    #[test]
    fn each_action_on_an_object_has_a_backoff_of_its_own() {
        let (failures, now) = (Failures::default(), Instant::now());
        let refused = || failures.record(&who("a"), CREATE, (Cause::Refused, "no"), Duration::ZERO, now);
        refused();
        let first = failures.remaining_backoff(&who("a"), CREATE, now).unwrap();
        refused();
        let second = failures.remaining_backoff(&who("a"), CREATE, now).unwrap();
        assert!(first <= Duration::from_millis(1250) && second >= Duration::from_millis(1500));
        assert!(failures.remaining_backoff(&who("a"), "delete a SyncJob", now).is_none());
        assert!(failures.remaining_backoff(&who("b"), CREATE, now).is_none());
        assert!(failures.remaining_backoff(&who("a"), CREATE, now + second).is_none(), "it is over");
        failures.record_success(&who("a"), CREATE);
        assert!(failures.lock().is_empty());
    }

    #[test]
    fn each_message_has_one_event() {
        let (failures, now) = (Failures::default(), Instant::now());
        let event_of =
            |error: &str, cause| failures.record(&who("a"), CREATE, (cause, error), Duration::ZERO, now).event;
        assert_eq!(event_of("no", Cause::Refused).unwrap().text, "No");
        assert!(event_of("no", Cause::Refused).is_none());
        assert_eq!(event_of("never", Cause::Refused).unwrap().text, "Never");
        assert!(event_of("busy", Cause::Busy).is_none(), "the first time-out has no event");
        assert_eq!(failures.shown(&who("a")).unwrap().message, "Never");
        let meta = |generation| ObjectMeta { generation: Some(generation), ..ObjectMeta::default() };
        for generation in [1, 1] {
            failures.begin(&who("a"), &meta(generation));
            assert!(failures.shown(&who("a")).is_some());
        }
        failures.begin(&who("a"), &meta(2));
        assert!(failures.shown(&who("a")).is_none(), "a user may have corrected the spec");
    }

    #[test]
    fn a_conflict_holds_nothing_back() {
        let (failures, now) = (Failures::default(), Instant::now());
        let recorded = failures.record(&who("a"), "write", (Cause::Conflict, "c"), Duration::ZERO, now);
        assert!(recorded.is_first && recorded.event.is_none());
        assert!(failures.remaining_backoff(&who("a"), "write", now).is_none());
        assert!(failures.retry_delay(&who("a"), "write", now).unwrap() < Duration::from_millis(320));
    }
}
