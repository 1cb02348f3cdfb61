//! Audit of the changes that calls make: a log line and an event with the caller, the action and the object.

use jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::{App, auth::Caller};
use crate::domain::ObjectEvent;

/// Action of a caller. The reasons of the events are listed in `docs/reference/events-and-conditions.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuditedAction {
    Triggered,
    Paused,
    Resumed,
    CleanedUp,
    Cancelled,
    Approved,
    Retried,
    Rescheduled,
}

impl AuditedAction {
    fn reason(self) -> &'static str {
        match self {
            Self::Triggered => "TriggeredByCall",
            Self::Paused => "PausedByCall",
            Self::Resumed => "ResumedByCall",
            Self::CleanedUp => "CleanedUpByCall",
            Self::Cancelled => "CancelledByCall",
            Self::Approved => "ApprovedByCall",
            Self::Retried => "RetriedByCall",
            Self::Rescheduled => "RescheduledByCall",
        }
    }
}

/// Records an action of a caller on an object.
pub(super) async fn record<K: Resource<DynamicType = ()>>(
    app: &App,
    caller: &Caller,
    action: AuditedAction,
    object: &K,
    what: &str,
) {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (kind, reason) = (K::kind(&()), action.reason());
    tracing::info!(namespace, name, kind = &*kind, caller = caller.name, reason, "{what}");
    let event = ObjectEvent::normal(reason, format!("{what}, by {} over HTTP", caller.name));
    app.events.publish(&object.object_ref(&()), &event, Timestamp::now()).await;
}
