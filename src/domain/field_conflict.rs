//! Sources that map the same field of one collection. Each run overwrites the values of the other source.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    ops::Bound,
};

use kube::ResourceExt;

use crate::api::SyncSchedule;

/// Largest number of schedules that a change of another schedule requeues at once. The controller sees the change of
/// the others at their next slot.
const MAX_REQUEUED: usize = 100;
/// Fields that a condition names.
const NAMED: usize = 5;

/// Namespace and name of a SyncSchedule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScheduleKey {
    /// Namespace of the SyncSchedule.
    pub namespace: String,
    /// Name of the SyncSchedule.
    pub name: String,
}

/// Field that a source and another source both map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldConflict {
    /// Path of the field, as the schedule has it.
    pub field: String,
    /// The schedule of the other source, or one of them.
    pub other: Other,
}

/// A schedule whose source maps the same field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Other {
    /// Schedule of another namespace, which the user may have no right to see.
    Elsewhere,
    /// Schedule of the same namespace.
    Beside(ScheduleKey),
}

/// Fields that the sources of all SyncSchedules map.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    schedules: HashMap<ScheduleKey, Mapping>,
    collections: HashMap<TargetPath, BTreeMap<String, Sources>>,
}

/// Sources that map a field, by namespace and name, and the schedules that have them.
type Sources = BTreeMap<(String, String), BTreeSet<String>>;

/// A collection. The database is that of the spec: one that names the operator's own database is not known to be that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TargetPath {
    database: Option<String>,
    collection: String,
}

/// Fields that the source of one schedule maps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    target: TargetPath,
    source: (String, String),
    fields: Vec<String>,
}

impl ScheduleKey {
    fn from_schedule(schedule: &SyncSchedule) -> Self {
        Self { namespace: schedule.namespace().unwrap_or_default(), name: schedule.name_any() }
    }
}

impl Mapping {
    /// `None`: the schedule has no source, or maps nothing.
    fn from_schedule(schedule: &SyncSchedule) -> Option<Self> {
        let spec = &schedule.spec.job_template.spec;
        let source = spec.source.as_ref().filter(|_| !spec.mapping.is_empty())?;
        let ScheduleKey { namespace, name } = ScheduleKey::from_schedule(schedule);
        let collection = spec.target.collection.clone();
        Some(Self {
            target: TargetPath {
                database: spec.target.database.clone(),
                collection: collection.unwrap_or_else(|| spec.type_.collection().to_owned()),
            },
            source: (namespace, source.name.clone().unwrap_or(name)),
            fields: spec.mapping.iter().map(|field| field.to.clone()).collect(),
        })
    }
}

impl Mappings {
    /// The mappings of these schedules, and of no others.
    #[must_use]
    pub fn new<'a>(schedules: impl IntoIterator<Item = &'a SyncSchedule>) -> Self {
        let mut mappings = Self::default();
        for schedule in schedules {
            mappings.set(ScheduleKey::from_schedule(schedule), Mapping::from_schedule(schedule));
        }
        mappings
    }

    /// Records a created or changed schedule. Returns the other schedules whose conflicts that changes.
    pub fn apply(&mut self, schedule: &SyncSchedule) -> Vec<ScheduleKey> {
        self.change(ScheduleKey::from_schedule(schedule), Mapping::from_schedule(schedule))
    }

    /// Forgets a schedule that was deleted. Returns others whose conflicts that changes.
    pub fn delete(&mut self, schedule: &SyncSchedule) -> Vec<ScheduleKey> {
        self.change(ScheduleKey::from_schedule(schedule), None)
    }

    /// Fields that the schedule's source maps, and another source too.
    #[must_use]
    pub fn conflicts(&self, schedule: &SyncSchedule) -> Vec<FieldConflict> {
        self.conflicts_of(&ScheduleKey::from_schedule(schedule))
    }

    fn conflicts_of(&self, key: &ScheduleKey) -> Vec<FieldConflict> {
        let Some(mapping) = self.schedules.get(key) else { return Vec::new() };
        let conflict = |field: &String| {
            let others =
                self.overlapping(&mapping.target, field).filter_map(|sources| another(sources, &mapping.source));
            // A schedule that may be named is more useful to the user.
            let other = others.max()?;
            Some(FieldConflict { field: field.clone(), other })
        };
        mapping.fields.iter().filter_map(conflict).collect()
    }

    /// Returns the sources that map the field, a part of it, or a field that contains it.
    fn overlapping<'a>(&'a self, target: &TargetPath, field: &'a str) -> impl Iterator<Item = &'a Sources> {
        let fields = self.collections.get(target);
        let above = field.match_indices('.').map(|(end, _)| &field[..end]).chain([field]);
        // "/" comes after ".".
        let (first, end) = (format!("{field}."), format!("{field}/"));
        let below = fields.map(|fields| fields.range::<String, _>((Bound::Included(first), Bound::Excluded(end))));
        let above = above.filter_map(move |field| fields?.get(field));
        above.chain(below.into_iter().flatten().map(|(_, sources)| sources))
    }

    fn change(&mut self, key: ScheduleKey, mapping: Option<Mapping>) -> Vec<ScheduleKey> {
        if self.schedules.get(&key) == mapping.as_ref() {
            return Vec::new();
        }
        let mut others = BTreeSet::new();
        for mapping in self.schedules.get(&key).into_iter().chain(&mapping) {
            let sources = mapping.fields.iter().flat_map(|field| self.overlapping(&mapping.target, field)).flatten();
            let keys = sources.flat_map(|((namespace, _), names)| {
                names.iter().map(|name| ScheduleKey { namespace: namespace.clone(), name: name.clone() })
            });
            others.extend(keys.filter(|other| *other != key).take(MAX_REQUEUED));
        }
        let before: Vec<_> = others.iter().map(|other| self.conflicts_of(other)).collect();
        self.set(key, mapping);
        let changed = others.into_iter().zip(before).filter(|(other, before)| self.conflicts_of(other) != *before);
        changed.map(|(other, _)| other).collect()
    }

    fn set(&mut self, key: ScheduleKey, mapping: Option<Mapping>) {
        if let Some(old) = self.schedules.remove(&key)
            && let Some(fields) = self.collections.get_mut(&old.target)
        {
            for field in &old.fields {
                remove(fields, field, |sources| {
                    remove(sources, &old.source, |names| {
                        names.remove(&key.name);
                        names.is_empty()
                    });
                    sources.is_empty()
                });
            }
            if fields.is_empty() {
                self.collections.remove(&old.target);
            }
        }
        if let Some(mapping) = mapping {
            let fields = self.collections.entry(mapping.target.clone()).or_default();
            for field in &mapping.fields {
                let sources = fields.entry(field.clone()).or_default();
                sources.entry(mapping.source.clone()).or_default().insert(key.name.clone());
            }
            self.schedules.insert(key, mapping);
        }
    }
}

/// Changes a value of a map, and removes it when `is_empty` returns true.
fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K, is_empty: impl FnOnce(&mut V) -> bool) {
    if map.get_mut(key).is_some_and(is_empty) {
        map.remove(key);
    }
}

/// Returns another source than this one. Checks only a few of them, however many there are.
fn another(sources: &Sources, own: &(String, String)) -> Option<Other> {
    let (namespace, _) = own;
    let first = (namespace.clone(), String::new());
    let mut beside = sources.range(first..).take_while(|(source, _)| source.0 == *namespace);
    if let Some((_, names)) = beside.find(|(source, _)| *source != own) {
        let name = names.first()?;
        return Some(Other::Beside(ScheduleKey { namespace: namespace.clone(), name: name.clone() }));
    }
    let mut ends = sources.keys().next().into_iter().chain(sources.keys().next_back());
    ends.any(|source| source.0 != *namespace).then_some(Other::Elsewhere)
}

/// The message of a condition. Empty when there is no conflict.
#[must_use]
pub fn message(conflicts: &[FieldConflict]) -> String {
    if conflicts.is_empty() {
        return String::new();
    }
    let named = conflicts.iter().take(NAMED).map(|conflict| match &conflict.other {
        Other::Beside(ScheduleKey { namespace, name }) => {
            format!("{} (SyncSchedule {namespace}/{name})", conflict.field)
        }
        Other::Elsewhere => format!("{} (a SyncSchedule of another namespace)", conflict.field),
    });
    let mut named = named.collect::<Vec<_>>().join(", ");
    if conflicts.len() > NAMED {
        write!(named, " and {} more", conflicts.len() - NAMED).ok();
    }
    format!(
        "Another source maps the same fields of the collection, and each run overwrites the other's values: {named}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    /// `key` is namespace/name, with :source where the source has a name of its own.
    fn schedule(key: &str, fields: &[&str]) -> SyncSchedule {
        let (key, source) = key.split_once(':').map_or((key, None), |(key, source)| (key, Some(source)));
        let (namespace, name) = key.split_once('/').unwrap();
        let mapping: Vec<_> = fields.iter().map(|field| json!({"from": "/a", "to": field})).collect();
        let rest = json!({"endpoint": "https://api.example.com/users?ids={ids}"});
        let mut source = source.map_or(json!({}), |source| json!({"name": source}));
        source["rest"] = rest;
        let spec = json!({"jobTemplate": {"spec": {"source": source, "mapping": mapping}}});
        let mut schedule = SyncSchedule::new(name, serde_json::from_value(spec).unwrap());
        schedule.metadata.namespace = Some(namespace.to_owned());
        schedule
    }

    fn texts(texts: Vec<&str>) -> Vec<String> {
        texts.into_iter().map(str::to_owned).collect()
    }

    fn conflicts_of(mappings: &Mappings, schedule: &SyncSchedule) -> Vec<String> {
        let other = |other| match other {
            Other::Beside(key) => format!("{}/{}", key.namespace, key.name),
            Other::Elsewhere => "?".to_owned(),
        };
        let conflicts = mappings.conflicts(schedule).into_iter();
        conflicts.map(|conflict| format!("{} {}", conflict.field, other(conflict.other))).collect()
    }

    #[test]
    fn sources_that_map_one_field_are_in_conflict() {
        for (what, a, b, of_a, of_b) in [
            ("the same field", ("x/a", vec!["n", "m"]), ("x/b", vec!["m"]), vec!["m x/b"], vec!["m x/a"]),
            ("other fields", ("x/a", vec!["n"]), ("x/b", vec!["m", "nn", "n-"]), vec![], vec![]),
            ("a part", ("x/a", vec!["n"]), ("x/b", vec!["n.first.a"]), vec!["n x/b"], vec!["n.first.a x/a"]),
            ("a longer name", ("x/a", vec!["n.a"]), ("x/b", vec!["n.ab"]), vec![], vec![]),
            ("another namespace", ("x/a", vec!["n"]), ("y/a", vec!["n"]), vec!["n ?"], vec!["n ?"]),
            ("one source", ("x/a:s", vec!["n"]), ("x/b:s", vec!["n"]), vec![], vec![]),
            ("a name of another namespace", ("x/a:s", vec!["n"]), ("y/b:s", vec!["n"]), vec!["n ?"], vec!["n ?"]),
        ] {
            let (a, b) = (schedule(a.0, &a.1), schedule(b.0, &b.1));
            let mappings = Mappings::new([&a, &b]);
            assert_eq!(
                (conflicts_of(&mappings, &a), conflicts_of(&mappings, &b)),
                (texts(of_a), texts(of_b)),
                "{what}"
            );
        }
    }

    #[test]
    fn other_collections_and_plain_schedules_conflict_with_nothing() {
        let a = schedule("x/a", &["n"]);
        let others = [("collection", json!("members")), ("database", json!("other"))].map(|(field, value)| {
            let mut other = schedule("x/b", &["n"]);
            let target = &mut other.spec.job_template.spec.target;
            let value = value.as_str().map(str::to_owned);
            *(if field == "database" { &mut target.database } else { &mut target.collection }) = value;
            other
        });
        let plain = SyncSchedule::new("plain", serde_json::from_value(json!({})).unwrap());
        for other in others.iter().chain([&plain]) {
            let mappings = Mappings::new([&a, other]);
            assert_eq!((conflicts_of(&mappings, &a), conflicts_of(&mappings, other)), (vec![], vec![]));
        }
        let mut named = schedule("x/b", &["n"]);
        named.spec.job_template.spec.target.collection = Some("users".to_owned());
        assert_eq!(conflicts_of(&Mappings::new([&a, &named]), &a), ["n x/b"], "the type's collection");
    }

    #[test]
    fn schedules_with_changed_conflicts_are_requeued() {
        let (a, b, c) = (schedule("x/a", &["n"]), schedule("x/b", &["n", "m"]), schedule("x/c", &["m"]));
        let keys = |changed: Vec<ScheduleKey>| changed.into_iter().map(|key| key.name).collect::<Vec<_>>();
        let mut mappings = Mappings::new([&a]);
        assert_eq!(keys(mappings.apply(&a)), [""; 0], "nothing has changed");
        assert_eq!(keys(mappings.apply(&b)), ["a"]);
        assert_eq!(keys(mappings.apply(&c)), ["b"]);
        assert_eq!(conflicts_of(&mappings, &b), ["n x/a", "m x/c"]);
        assert_eq!(keys(mappings.apply(&schedule("x/b", &["m"]))), ["a"]);
        assert_eq!(keys(mappings.delete(&c)), ["b"]);
        assert_eq!(keys(mappings.delete(&b)), [""; 0]);
        assert_eq!((conflicts_of(&mappings, &a), mappings.schedules.len()), (vec![], 1));
        mappings.delete(&a);
        assert!(mappings.schedules.is_empty() && mappings.collections.is_empty());
    }

    #[test]
    fn ten_thousand_schedules_of_one_field_cost_little() {
        let schedules: Vec<_> = (0..10_000).map(|i| schedule(&format!("x/s{i}"), &["a", "b", "c.d"])).collect();
        let began = Instant::now();
        let mut mappings = Mappings::new(&schedules);
        assert!(schedules.iter().all(|schedule| mappings.conflicts(schedule).len() == 3));
        for schedule in schedules.iter().take(100) {
            mappings.delete(schedule);
            mappings.apply(schedule);
        }
        // This takes 0.3 s here. To compare each pair would take minutes.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn the_message_names_the_first_fields() {
        assert_eq!(message(&[]), "");
        let conflict = |i| FieldConflict {
            field: format!("f{i}"),
            other: match i {
                0 => Other::Beside(ScheduleKey { namespace: "x".to_owned(), name: "hr".to_owned() }),
                _ => Other::Elsewhere,
            },
        };
        let text = message(&(0..7).map(conflict).collect::<Vec<_>>());
        let (start, end) = ("f0 (SyncSchedule x/hr), f1 (a SyncSchedule of another namespace), ", " and 2 more");
        assert!(text.contains(start) && text.ends_with(end), "{text}");
    }
}
