//! The objects that this release cannot read, of all kinds.

use std::{
    collections::HashMap,
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Resource, runtime::watcher};
use tokio::sync::watch;

use super::{Kind, ReadResult, Unreadable};

/// An object that this release cannot read.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadableObject {
    /// The object.
    pub reference: ObjectReference,
    /// Path of its kind in its namespace, for requests.
    pub url: String,
    /// The `metadata.resourceVersion`.
    pub version: Option<String>,
    /// The `metadata.generation`.
    pub generation: Option<i64>,
    /// The conditions in its status.
    pub conditions: Vec<Condition>,
    /// Reason for which the object cannot be read, as a sentence without a full stop.
    pub reason: String,
}

impl<K: Kind> From<&Unreadable<K>> for UnreadableObject {
    fn from(Unreadable { outline, reason }: &Unreadable<K>) -> Self {
        let meta = outline.meta();
        Self {
            reference: outline.object_ref(&()),
            url: K::url_path(&(), meta.namespace.as_deref()),
            version: meta.resource_version.clone(),
            generation: meta.generation,
            conditions: outline.conditions().to_vec(),
            reason: reason.clone(),
        }
    }
}

/// Unreadable objects of all kinds. Cheap to clone.
#[derive(Clone)]
pub struct UnreadableObjects {
    kinds: Arc<Mutex<HashMap<String, Objects>>>,
    changes: Arc<watch::Sender<()>>,
}

/// Unreadable objects of a kind, by namespace and name. The old entries stay while the kind is listed again.
#[derive(Default)]
struct Objects {
    known: HashMap<Key, UnreadableObject>,
    listing: HashMap<Key, UnreadableObject>,
}

type Key = (Option<String>, Option<String>);

impl UnreadableObjects {
    pub(super) fn new() -> Self {
        Self { kinds: Arc::default(), changes: Arc::new(watch::Sender::new(())) }
    }

    /// Records a change.
    pub(super) fn record<K: Kind>(&self, event: &watcher::Event<ReadResult<K>>) {
        let mut kinds = self.lock();
        let Objects { known, listing } = kinds.entry(K::kind(&()).into_owned()).or_default();
        let is_changed = match event {
            watcher::Event::Init => {
                listing.clear();
                false
            }
            watcher::Event::InitApply(object) => {
                apply(listing, object);
                false
            }
            watcher::Event::InitDone => {
                let before = std::mem::replace(known, take(listing));
                known.iter().filter(|(key, object)| !is_known(before.get(*key), object)).for_each(|(_, new)| log(new));
                *known != before
            }
            watcher::Event::Apply(object) => {
                let before = known.get(&key(object)).cloned();
                apply(known, object);
                let after = known.get(&key(object));
                after.filter(|after| !is_known(before.as_ref(), after)).into_iter().for_each(log);
                after != before.as_ref()
            }
            watcher::Event::Delete(object) => known.remove(&key(object)).is_some(),
        };
        if is_changed {
            self.changes.send_replace(());
        }
    }

    /// All unreadable objects.
    #[must_use]
    pub fn all(&self) -> Vec<UnreadableObject> {
        self.lock().values().flat_map(|objects| objects.known.values().cloned()).collect()
    }

    /// Receiver that is notified when an unreadable object is added or changed, or becomes readable.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Objects>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<K: Kind>(object: &ReadResult<K>) -> Key {
    let meta = object.meta();
    (meta.namespace.clone(), meta.name.clone())
}

fn apply<K: Kind>(objects: &mut HashMap<Key, UnreadableObject>, object: &ReadResult<K>) {
    match object {
        ReadResult::Object(_) => objects.remove(&key(object)),
        ReadResult::Unreadable(unreadable) => objects.insert(key(object), UnreadableObject::from(&**unreadable)),
    };
}

fn is_known(before: Option<&UnreadableObject>, object: &UnreadableObject) -> bool {
    before.is_some_and(|before| before.reference.uid == object.reference.uid && before.reason == object.reason)
}

fn log(UnreadableObject { reference, reason, .. }: &UnreadableObject) {
    let ObjectReference { kind, namespace, name, .. } = reference;
    tracing::warn!(kind, namespace, name, reason, "an object cannot be read");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SyncJob;
    use watcher::Event;

    fn job(name: &str, is_readable: bool) -> ReadResult<SyncJob> {
        let sync_type = if is_readable { "Full" } else { "Newer" };
        let text = format!(r#"{{"metadata":{{"name":"{name}","uid":"{name}"}},"spec":{{"syncType":"{sync_type}"}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_object_stays_until_it_can_be_read_or_is_gone() {
        let objects = UnreadableObjects::new();
        let after = |events: Vec<Event<ReadResult<SyncJob>>>| {
            for event in &events {
                objects.record(event);
            }
            let mut names: Vec<_> = objects.all().into_iter().filter_map(|object| object.reference.name).collect();
            names.sort();
            names.join(" ")
        };
        let list = |jobs: Vec<ReadResult<SyncJob>>| {
            let jobs = jobs.into_iter().map(Event::InitApply);
            std::iter::once(Event::Init).chain(jobs).chain([Event::InitDone]).collect::<Vec<_>>()
        };
        assert_eq!(after(list(vec![job("a", false), job("b", true), job("c", false)])), "a c");
        assert_eq!(after(vec![Event::Apply(job("a", true)), Event::Apply(job("b", false))]), "b c");
        assert_eq!(after(vec![Event::Delete(job("b", false))]), "c");
        assert_eq!(after(vec![Event::Init, Event::InitApply(job("d", false))]), "c", "what was known stays");
        assert_eq!(after(vec![Event::InitDone]), "d");
        assert_eq!(after(list(vec![])), "");
    }

    #[test]
    fn only_changes_of_unreadable_objects_notify() {
        let objects = UnreadableObjects::new();
        let mut changes = objects.changes();
        for (event, expected) in [
            (Event::Apply(job("a", true)), false),
            (Event::Apply(job("b", false)), true),
            (Event::Apply(job("b", false)), false),
            (Event::Apply(job("b", true)), true),
            (Event::Delete(job("b", true)), false),
        ] {
            objects.record(&event);
            assert_eq!(changes.has_changed().unwrap(), expected, "{event}");
            changes.mark_unchanged();
        }
    }
}
