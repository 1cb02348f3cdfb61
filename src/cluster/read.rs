//! Deserialisation of the objects of the API server. Each object is read separately, so that an object that this
//! release cannot read does not affect other objects.
//!
//! kube's `DeserializeGuard` is not enough, because it reads an object into a tree of values first. The JSON reader
//! then rejects the whole list when one object is nested deeper than 128 levels.

use std::{borrow::Cow, fmt::Debug};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::{
    Api, Resource,
    api::{GetParams, ObjectMeta},
    core::{NamespaceResourceScope, Request},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;

use crate::{
    api::{
        GoDuration, SyncAlert, SyncAlertSpec, SyncAlertStatus, SyncJob, SyncJobSpec, SyncJobStatus, SyncSchedule,
        SyncScheduleSpec, SyncScheduleStatus, truncate,
    },
    domain::free_form::{MAX_BYTES, MAX_LEVELS},
};

/// Largest spec of an object that is read, in bytes. A spec with the largest free-form fields is smaller.
const MAX_SPEC: usize = 256 << 10;

/// A kind of this operator.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Returns an object with this metadata, an empty spec, and the readable part of its status.
    fn outline(metadata: ObjectMeta, status: Option<&str>) -> Self;
    /// The conditions in its status.
    fn conditions(&self) -> &[Condition];
}

/// An object, or the outline of one that this release cannot read.
#[derive(Clone, Debug)]
pub enum ReadResult<K> {
    /// The whole object.
    Object(K),
    /// The outline.
    Unreadable(Box<Unreadable<K>>),
}

/// The outline of an object that this release cannot read. Controllers do not act on such an object, because its spec
/// is not known.
#[derive(Clone, Debug)]
pub struct Unreadable<K> {
    /// Metadata and the readable part of the status. The spec is empty.
    pub outline: K,
    /// The reason, as a sentence without a full stop.
    pub reason: String,
}

impl<K> ReadResult<K> {
    /// The object.
    ///
    /// # Errors
    /// When the object cannot be read: the reason.
    pub fn into_object(self) -> kube::Result<K> {
        match self {
            Self::Object(object) => Ok(object),
            Self::Unreadable(unreadable) => Err(kube::Error::SerdeError(serde_json::Error::custom(unreadable.reason))),
        }
    }

    /// The object, or its outline.
    pub fn into_outline(self) -> K {
        match self {
            Self::Object(object) => object,
            Self::Unreadable(unreadable) => unreadable.outline,
        }
    }

    fn outline(&self) -> &K {
        match self {
            Self::Object(object) => object,
            Self::Unreadable(unreadable) => &unreadable.outline,
        }
    }

    fn outline_mut(&mut self) -> &mut K {
        match self {
            Self::Object(object) => object,
            Self::Unreadable(unreadable) => &mut unreadable.outline,
        }
    }
}

impl<K: Kind> Resource for ReadResult<K> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.outline().meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.outline_mut().meta_mut()
    }
}

impl<'de, K: Kind> Deserialize<'de> for ReadResult<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is found without recursion, however deep the object is. Reading it then has serde_json's limit of
        // 128 levels.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let unreadable = |reason: String| {
            Self::Unreadable(Box::new(Unreadable { outline: outline(text.get()), reason: unreadable(&reason) }))
        };
        Ok(match excess(text.get()) {
            Some(excess) => unreadable(excess),
            None => serde_json::from_str(text.get()).map_or_else(|error| unreadable(fault(&error)), Self::Object),
        })
    }
}

/// Describes a spec that is too large for the caches, which have all objects of all namespaces.
fn excess(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Spec<'a> {
        #[serde(borrow)]
        spec: Option<&'a RawValue>,
    }
    if text.len() <= MAX_SPEC {
        return None;
    }
    let length = serde_json::from_str::<Spec>(text).ok()?.spec?.get().len();
    let (kib, most, of_field) = (length.div_ceil(1 << 10), MAX_SPEC >> 10, MAX_BYTES >> 10);
    (length > MAX_SPEC).then(|| {
        format!("its spec has {kib} KiB, and may have {most}. A free-form field such as target.filter may have {of_field} KiB")
    })
}

/// Readable fields of an object that cannot be read as a whole. The rest is skipped without recursion.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    metadata: Metadata,
    status: Option<Box<RawValue>>,
}

/// Metadata but `managedFields`, which are nested as deep as the object.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<std::collections::BTreeMap<String, String>>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn outline<K: Kind>(text: &str) -> K {
    let Outline { metadata, status } = serde_json::from_str(text).unwrap_or_default();
    let metadata = ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        labels: metadata.labels,
        annotations: metadata.annotations,
        owner_references: metadata.owner_references,
        ..ObjectMeta::default()
    };
    K::outline(metadata, status.as_deref().map(RawValue::get))
}

fn unreadable(why: &str) -> String {
    truncate(&format!("This release of the operator cannot read the object, and does not change it: {why}"))
}

fn fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // The line and the column refer to a text that no user sees.
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    match text {
        "recursion limit exceeded" => {
            format!("it is nested too deep. A free-form field such as target.filter may have {MAX_LEVELS} levels")
        }
        text => format!("{text}. Correct it, or upgrade the operator"),
    }
}

/// Returns a status, or the readable part of it.
fn status<S: DeserializeOwned, P: DeserializeOwned>(text: Option<&str>, rest: impl FnOnce(P) -> S) -> Option<S> {
    let text = text?;
    serde_json::from_str(text).ok().or_else(|| serde_json::from_str(text).ok().map(rest))
}

/// Readable fields of a status that cannot be read as a whole.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PartialStatus {
    conditions: Vec<Condition>,
    completion_time: Option<Time>,
    duration: Option<GoDuration>,
}

impl Kind for SyncJob {
    fn outline(metadata: ObjectMeta, text: Option<&str>) -> Self {
        let status = status(text, |PartialStatus { conditions, completion_time, duration }| SyncJobStatus {
            conditions,
            completion_time,
            duration,
            ..SyncJobStatus::default()
        });
        Self { metadata, spec: SyncJobSpec::default(), status }
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}

impl Kind for SyncSchedule {
    fn outline(metadata: ObjectMeta, text: Option<&str>) -> Self {
        let status = status(text, |PartialStatus { conditions, .. }| SyncScheduleStatus {
            conditions,
            ..SyncScheduleStatus::default()
        });
        Self { metadata, spec: SyncScheduleSpec::default(), status }
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}

impl Kind for SyncAlert {
    fn outline(metadata: ObjectMeta, text: Option<&str>) -> Self {
        let status = status(text, |PartialStatus { conditions, .. }| SyncAlertStatus {
            conditions,
            ..SyncAlertStatus::default()
        });
        Self { metadata, spec: SyncAlertSpec::default(), status }
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}

/// Reads the current object from the API server. `None`: the object does not exist.
///
/// # Errors
/// When the API server refuses, or cannot be reached.
pub async fn read_object<K: Kind>(api: &Api<K>, name: &str) -> kube::Result<Option<ReadResult<K>>> {
    let request = Request::new(api.resource_url()).get(name, &GetParams::default());
    let request = request.map_err(kube::Error::BuildRequest)?;
    match api.clone().into_client().request(request).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        object => object.map(Some),
    }
}

/// Reads the current object from the API server, as a whole. `None`: the object does not exist.
///
/// # Errors
/// As [`read_object`], and when this release cannot read the object.
pub async fn get_opt<K: Kind>(api: &Api<K>, name: &str) -> kube::Result<Option<K>> {
    read_object(api, name).await?.map(ReadResult::into_object).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::{
        ResourceExt,
        core::{ObjectList, WatchEvent},
    };
    use serde_json::{Value, json};

    /// A filter of so many levels.
    fn filter(levels: usize) -> String {
        format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
    }

    /// An object whose managed fields are as deep as its spec.
    fn job(name: &str, spec: &str, status: &str) -> String {
        let fields = spec.replace(r#""a""#, r#""f:a""#);
        format!(
            r#"{{"apiVersion":"sync.codex.dev/v1alpha1","kind":"SyncJob","metadata":{{"name":"{name}","namespace":"a",
            "uid":"uid-{name}","resourceVersion":"7","labels":{{"l":"v"}},"managedFields":[{{"fieldsV1":{fields}}}]}},
            "spec":{spec},"status":{status}}}"#
        )
    }

    fn plain(name: &str) -> String {
        let object = json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {}});
        object.to_string()
    }

    fn deep(levels: usize) -> String {
        format!(r#"{{"target":{{"filter":{}}}}}"#, filter(levels))
    }

    #[test]
    fn an_unreadable_object_of_a_list_harms_only_itself() {
        let items = [plain("one"), job("deep", &deep(10_000), "{}"), job("new", r#"{"syncType":"Newer"}"#, "{}")];
        let text = format!(
            r#"{{"apiVersion":"v1","kind":"SyncJobList","metadata":{{"resourceVersion":"9"}},"items":[{},{}]}}"#,
            items.join(","),
            plain("two")
        );
        let list: ObjectList<ReadResult<SyncJob>> = serde_json::from_str(&text).unwrap();
        let read: Vec<_> =
            list.items.iter().map(|item| (item.name_any(), matches!(item, ReadResult::Object(_)))).collect();
        let expected = [("one", true), ("deep", false), ("new", false), ("two", true)];
        assert_eq!(read, expected.map(|(name, is_read)| (name.to_owned(), is_read)));
        let reasons: Vec<_> = list.items.into_iter().filter_map(|item| item.into_object().err()).collect();
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        assert!(reasons[0].contains("target.filter may have 32 levels"), "{reasons:?}");
        assert!(reasons[1].contains("unknown variant `Newer`") && !reasons[1].contains("line"), "{reasons:?}");
    }

    #[test]
    fn the_spec_of_a_large_object_is_not_read() {
        let spec = |kib: usize| json!({"target": {"filter": {"a": "x".repeat(kib << 10)}}}).to_string();
        let read = |text: &str| serde_json::from_str::<ReadResult<SyncJob>>(text).unwrap();
        let ReadResult::Unreadable(large) = read(&job("large", &spec(900), "{}")) else { panic!("it is read") };
        assert_eq!((large.outline.name_any().as_str(), &large.outline.spec), ("large", &SyncJobSpec::default()));
        let expected =
            "its spec has 901 KiB, and may have 256. A free-form field such as target.filter may have 64 KiB";
        assert!(large.reason.ends_with(expected), "{}", large.reason);
        let annotated = json!({"metadata": {"name": "a", "annotations": {"b": "x".repeat(300 << 10)}}, "spec": {}});
        assert!(matches!(read(&annotated.to_string()), ReadResult::Object(_)));
        assert!(matches!(read(&job("small", &spec(200), "{}")), ReadResult::Object(_)));
    }

    #[test]
    fn an_unreadable_object_of_a_watch_harms_only_itself() {
        let text = format!(r#"{{"type":"MODIFIED","object":{}}}"#, job("deep", &deep(10_000), "{}"));
        let WatchEvent::Modified(object) = serde_json::from_str::<WatchEvent<ReadResult<SyncJob>>>(&text).unwrap()
        else {
            panic!("another event");
        };
        assert_eq!((object.resource_version().as_deref(), object.labels()["l"].as_str()), (Some("7"), "v"));
        assert!(matches!(object, ReadResult::Unreadable(_)));
    }

    #[test]
    fn fields_of_a_newer_release_are_no_reason_to_refuse_an_object() {
        let spec = json!({"syncType": "Full", "newer": {"a": [1]}, "target": {"newer": true}});
        let text = json!({"metadata": {"name": "a", "newer": 1}, "spec": spec, "newer": 1}).to_string();
        let job = serde_json::from_str::<ReadResult<SyncJob>>(&text).unwrap().into_object().unwrap();
        assert_eq!(job.spec.target.key_field, "_id");
    }

    #[test]
    fn an_outline_has_what_can_be_read_of_the_status() {
        let condition = crate::fixtures::condition("Complete", "Completed", "", "2026-11-24T10:00:00Z");
        let outline = |status: &Value| {
            let text = job("a", r#"{"syncType":"Newer"}"#, &status.to_string());
            serde_json::from_str::<ReadResult<SyncJob>>(&text).unwrap().into_outline()
        };
        let status = json!({"phase": "Newer", "conditions": [condition], "completionTime": "2026-11-24T10:00:00Z"});
        assert!(crate::domain::job::is_finished(&outline(&status)));
        let status = json!({"phase": "Complete", "conditions": [condition], "progress": 100});
        assert_eq!(outline(&status).status.unwrap().progress, Some(100));
        assert!(outline(&json!({"conditions": 1})).status.is_none());
        assert_eq!(outline(&json!({})).spec, SyncJobSpec::default());
    }

    #[test]
    fn every_kind_has_an_outline() {
        fn check<K: Kind>() {
            let text = r#"{"metadata":{"name":"a"},"spec":1,"status":{"conditions":[{"type":"Ready","status":"True",
                "reason":"R","message":"","lastTransitionTime":"2026-11-24T10:00:00Z"}],"newer":1}}"#;
            let read: ReadResult<K> = serde_json::from_str(text).unwrap();
            assert_eq!((read.name_any().as_str(), read.outline().conditions().len()), ("a", 1));
            assert!(read.into_object().is_err());
        }
        check::<SyncJob>();
        check::<SyncSchedule>();
        check::<SyncAlert>();
    }
}
