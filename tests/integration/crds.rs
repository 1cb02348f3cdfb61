//! The objects that the API server refuses, and its messages, which name the field and the fix.

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::APIResource,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::support::{self, TestEnv};

const JOB: &str = "SyncJob";
const SCHEDULE: &str = "SyncSchedule";
const ALERT: &str = "SyncAlert";

fn api(env: &TestEnv, kind: &str) -> (Api<DynamicObject>, ApiResource) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("sync.codex.dev", "v1alpha1", kind));
    (Api::namespaced_with(env.client.clone(), &env.name, &resource), resource)
}

async fn create(env: &TestEnv, kind: &str, name: &str, spec: Value) -> kube::Result<DynamicObject> {
    let (api, resource) = api(env, kind);
    let object = DynamicObject::new(name, &resource).data(json!({"spec": spec}));
    api.create(&PostParams::default(), &object).await
}

async fn assert_refused(env: &TestEnv, kind: &str, spec: Value, field: &str, advice: &str) {
    let error = create(env, kind, "refused", spec.clone()).await.err().unwrap_or_else(|| panic!("accepted: {spec}"));
    let error = error.to_string();
    assert!(error.contains(field) && error.contains(advice), "{spec} should name {field} and {advice}: {error}");
}

/// Asserts that a SyncJob with this spec, and a SyncSchedule with this template, are refused.
async fn assert_both_refuse(env: &TestEnv, spec: &Value, field: &str, advice: &str) {
    let below = format!("spec.{}", field.split('.').next().unwrap());
    assert_refused(env, JOB, spec.clone(), field, advice).await;
    assert_refused(env, JOB, spec.clone(), &below, advice).await;
    let template = json!({"jobTemplate": {"spec": spec}});
    assert_refused(env, SCHEDULE, template.clone(), field, advice).await;
    assert_refused(env, SCHEDULE, template, &format!("spec.jobTemplate.{below}"), advice).await;
}

#[tokio::test]
async fn a_wrong_schedule_is_refused_with_field_and_fix() {
    let env = TestEnv::new().await;
    let zone = |zone: &str| json!({"schedule": "0 * * * *", "timeZone": zone});
    for (spec, field, advice) in [
        (json!({"interval": "5m", "schedule": "* * * * *"}), "interval and schedule", "keep one of them"),
        (json!({"interval": "banana"}), "interval", "such as 20m"),
        (json!({"interval": "-5s"}), "interval", "such as 20m"),
        (json!({"interval": "0s"}), "interval", "from 1s"),
        (json!({"interval": "500ms"}), "interval", "whole seconds"),
        (json!({"interval": "1.5s"}), "interval", "whole seconds"),
        (json!({"interval": "8761h"}), "interval", "to 8760h"),
        (json!({"interval": ""}), "interval", "such as 20m"),
        (json!({"interval": 20}), "spec.interval", "string"),
        (json!({"timeZone": "Europe/Berlin"}), "timeZone", "needs schedule"),
        (json!({"interval": "5m", "timeZone": "Europe/Berlin"}), "timeZone", "needs schedule"),
        (zone("Local"), "timeZone", "such as Europe/Berlin"),
        (zone("../../etc/passwd"), "timeZone", "such as Europe/Berlin"),
        (zone(""), "timeZone", "such as Europe/Berlin"),
        (json!({"schedule": "* * * *"}), "schedule", "five fields"),
        (json!({"schedule": "0 0 * * * *"}), "schedule", "five fields"),
        (json!({"schedule": "@every 5m"}), "schedule", "five fields"),
        (json!({"schedule": ""}), "schedule", "five fields"),
        (json!({"schedule": "CRON_TZ=UTC * * * * *"}), "schedule", "timeZone"),
        (json!({"schedule": "TZ=UTC * * * *"}), "schedule", "timeZone"),
        (json!({"concurrencyPolicy": "Never"}), "concurrencyPolicy", "\"Forbid\""),
        (json!({"catchUp": "All"}), "catchUp", "\"Latest\""),
        (json!({"startingDeadline": "0s"}), "startingDeadline", "from 1s"),
        (json!({"jitter": "25h"}), "jitter", "to 24h"),
        (json!({"suspended": "yes"}), "spec.suspended", "boolean"),
        (json!({"successfulJobsHistoryLimit": -1}), "successfulJobsHistoryLimit", "from 0 to 1000"),
        (json!({"failedJobsHistoryLimit": 1001}), "failedJobsHistoryLimit", "from 0 to 1000"),
        (json!({"failureThreshold": 0}), "failureThreshold", "from 1 to 100"),
        (json!({"maxActive": 0}), "maxActive", "from 1 to 1000"),
    ] {
        assert_refused(&env, SCHEDULE, spec, field, advice).await;
    }
}

#[tokio::test]
async fn a_schedules_name_has_at_most_52_characters() {
    let env = TestEnv::new().await;
    let error = create(&env, SCHEDULE, &"a".repeat(53), json!({})).await.unwrap_err().to_string();
    assert!(error.contains("metadata.name") && error.contains("at most 52 characters"), "{error}");
    create(&env, SCHEDULE, &"a".repeat(52), json!({})).await.unwrap();
}

#[tokio::test]
async fn a_wrong_job_is_refused_with_field_and_fix_also_in_a_template() {
    let env = TestEnv::new().await;
    let filter = |filter: Value| json!({"target": {"filter": filter}});
    for (spec, field, advice) in [
        (json!({"type": "Robot"}), "type", "\"User\""),
        (json!({"syncType": "full"}), "syncType", "\"Full\""),
        (json!({"batchSize": 0}), "batchSize", "from 1 to 10000"),
        (json!({"batchSize": 10_001}), "batchSize", "from 1 to 10000"),
        (json!({"batchSize": "many"}), "batchSize", "integer"),
        (json!({"parallelism": 0}), "parallelism", "from 1 to 64"),
        (json!({"parallelism": 1000}), "parallelism", "from 1 to 64"),
        (json!({"priority": 1001}), "priority", "from -1000 to 1000"),
        (json!({"priority": -1001}), "priority", "from -1000 to 1000"),
        (json!({"backoffLimit": -1}), "backoffLimit", "from 0 to 100"),
        (json!({"staleAfter": "soon"}), "staleAfter", "such as 10m"),
        (json!({"activeDeadline": "soon"}), "activeDeadline", "such as 1h"),
        (json!({"activeDeadline": "0s"}), "activeDeadline", "from 1s"),
        (json!({"ttlAfterFinished": "-1h"}), "ttlAfterFinished", "such as 24h"),
        (json!({"backoff": {"jitter": 2}}), "backoff.jitter", "from 0 to 1"),
        (json!({"backoff": {"jitter": -0.1}}), "backoff.jitter", "from 0 to 1"),
        (json!({"backoff": {"factor": 0}}), "backoff.factor", "from 1 to 100"),
        (json!({"backoff": {"initial": "1ms"}}), "backoff.initial", "from 100ms"),
        (json!({"backoff": {"max": "25h"}}), "backoff.max", "to 24h"),
        (json!({"failurePolicy": {"maxFailedPercent": 0}}), "failurePolicy.maxFailedPercent", "from 1 to 100"),
        (json!({"target": {"database": "admin"}}), "target.database", "none of admin"),
        (json!({"target": {"database": "config"}}), "target.database", "none of admin"),
        (json!({"target": {"database": "local"}}), "target.database", "none of admin"),
        (json!({"target": {"database": "a.b"}}), "target.database", "without spaces"),
        (json!({"target": {"database": ""}}), "target.database", "must be a database name"),
        (json!({"target": {"collection": "system.users"}}), "target.collection", "system."),
        (json!({"target": {"collection": "a$b"}}), "target.collection", "without $"),
        (
            json!({"target": {"caSecretRef": {"name": "a", "key": "b"}}}),
            "target.caSecretRef",
            "target.caSecretRef needs target.uriSecretRef: set it, or remove caSecretRef",
        ),
        (json!({"target": {"keyField": "$x"}}), "target.keyField", "such as _id"),
        (json!({"target": {"keyField": ""}}), "target.keyField", "such as _id"),
        (json!({"target": {"lastSyncedField": "_id"}}), "target.lastSyncedField", "such as lastSynced"),
        (json!({"target": {"lastSyncedField": "a.$b"}}), "target.lastSyncedField", "such as lastSynced"),
        (filter(json!({"$where": "1"})), "target.filter", "query operators such as"),
        (filter(json!({"$where": {"$code": "1"}})), "target.filter", "query operators such as"),
        (filter(json!({"$function": {"body": "f"}})), "target.filter", "query operators such as"),
        (filter(json!({"$or": [{"$where": "1"}]})), "target.filter", "query operators such as"),
        (filter(json!({"$nor": [{"a": 1}, {"$and": [{"$where": "1"}]}]})), "target.filter", "query operators such as"),
        (filter(json!("all")), "target.filter", "object"),
    ] {
        assert_both_refuse(&env, &spec, field, advice).await;
    }
}

/// A copy of an object with other fields.
fn with(mut whole: Value, part: &Value) -> Value {
    whole.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    whole
}

#[tokio::test]
async fn a_wrong_source_is_refused_with_its_field_and_fix() {
    let env = TestEnv::new().await;
    let graph_ql =
        || json!({"endpoint": "https://gitlab.com/api/graphql", "query": "{a}", "resultPath": "/data/users"});
    let source = |part: Value| json!({"source": support::source("graphQL", &with(graph_ql(), &part))});
    let mapped = |part: Value| with(json!({"from": "/name", "to": "name"}), &part);
    let both = |part: Value| with(source(json!({})), &json!({"mapping": [mapped(part)]}));
    let key = json!({"name": "a", "key": "b"});
    for (spec, field, advice) in [
        (json!({"mapping": [mapped(json!({}))]}), "mapping", "needs"),
        (json!({"transaction": "Batch"}), "transaction", "needs"),
        (json!({"onFailure": "Rollback"}), "onFailure", "needs transaction Batch"),
        (json!({"target": {"collection": "sync_journal.a"}}), "target.collection", "starts neither"),
        (json!({"transaction": "Run"}), "transaction", "\"Batch\""),
        (
            source(json!({"batching": "Pages", "pagination": {"by": "Link"}})),
            "source.pagination.by",
            "by Link needs rest",
        ),
        (source(json!({"endpoint": "gitlab.com"})), "source.graphQL.endpoint", "must be an http or https URL"),
        (source(json!({"endpoint": "https://me:secret@gitlab.com/"})), "source.graphQL.endpoint", "tokenSecretRef"),
        (
            source(json!({"endpoint": "https://gitlab.com/#a"})),
            "source.graphQL.endpoint",
            "must be an http or https URL",
        ),
        (source(json!({"query": ""})), "source.graphQL.query", "at least 1"),
        (source(json!({"resultPath": "data.users"})), "source.graphQL.resultPath", "such as /data/users/nodes"),
        (source(json!({"keyPath": "id"})), "source.keyPath", "such as /id"),
        (source(json!({"batching": "Each"})), "source.batching", "\"PerUser\""),
        (source(json!({"concurrency": 65})), "source.concurrency", "from 1 to 64"),
        (source(json!({"onMissing": "Drop"})), "source.onMissing", "\"Ignore\""),
        (source(json!({"onMissing": "Mark"})), "source.onMissing", "need batching PerUser or Pages"),
        (source(json!({"upsert": true})), "source.upsert", "needs batching Pages"),
        (source(json!({"batching": "Pages"})), "source", "go together"),
        (source(json!({"pagination": {"by": "Number"}})), "source", "go together"),
        (source(json!({"batching": "Pages", "pagination": {}})), "source.pagination", "nextPath and by Cursor"),
        (
            source(json!({"batching": "Pages", "pagination": {"by": "Number", "nextPath": "/a"}})),
            "source.pagination",
            "nextPath and by Cursor",
        ),
        (source(json!({"batching": "Pages", "pagination": {"nextPath": "/a"}})), "source.batching", "syncType Full"),
        (source(json!({"missing": {"field": "_id"}})), "source.missing.field", "not _id"),
        (source(json!({"timeout": "1h"})), "source.timeout", "to 10m"),
        (source(json!({"rateLimit": {"requests": 0}})), "source.rateLimit.requests", "from 1 to 100000"),
        (source(json!({"rateLimit": {"requests": 1, "per": "1ms"}})), "source.rateLimit.per", "from 1s"),
        (source(json!({"rateLimit": {"requests": 1, "per": "61s"}})), "source.rateLimit", "one request per minute"),
        (source(json!({"headersFrom": [{"name": "Host", "secretRef": key}]})), "source.headersFrom", "none of Host"),
        (
            source(json!({"headersFrom": [{"name": "a b", "secretRef": key}]})),
            "source.headersFrom",
            "such as PRIVATE-TOKEN",
        ),
        (source(json!({"tokenSecretRef": {"name": "a"}})), "source.tokenSecretRef.key", "Required"),
        (both(json!({"from": "name"})), "mapping[0].from", "such as /name"),
        (both(json!({"from": "/a~2"})), "mapping[0].from", "~ only as ~0 or ~1"),
        (both(json!({"value": "x"})), "mapping[0]", "either from"),
        (both(json!({"to": "_id"})), "mapping[0].to", "not _id"),
        (both(json!({"to": "$set"})), "mapping[0].to", "without $"),
        (both(json!({"type": "Text"})), "mapping[0].type", "\"ObjectId\""),
    ] {
        assert_both_refuse(&env, &spec, field, advice).await;
    }
}

#[tokio::test]
async fn a_wrong_rest_source_is_refused_with_its_field_and_fix() {
    let env = TestEnv::new().await;
    let graph_ql = json!({"endpoint": "https://a/", "query": "{a}", "resultPath": ""});
    let rest = |part: Value| {
        let whole = json!({"endpoint": "https://api.example.com/users?ids={ids}"});
        json!({"source": support::source("rest", &with(whole, &part))})
    };
    let at = |endpoint: &str| rest(json!({"endpoint": endpoint}));
    let walk = |endpoint: &str, by: Value| {
        let part = rest(json!({"endpoint": endpoint, "batching": "Pages", "pagination": by}));
        with(part, &json!({"syncType": "Full"}))
    };
    let linked = json!({"batching": "Pages", "pagination": {"by": "Link"}});
    for (spec, field, advice) in [
        (json!({"source": {}}), "source", "either graphQL or rest"),
        (
            json!({"source": {"graphQL": graph_ql, "rest": {"endpoint": "https://a/{ids}"}}}),
            "source",
            "either graphQL or rest",
        ),
        (at("api.example.com/{ids}"), "source.rest.endpoint", "must be an http or https URL"),
        (at("https://{ids}.example.com/"), "source.rest.endpoint", "after its host"),
        (at("https://api.example.com:{ids}/"), "source.rest.endpoint", "after its host"),
        (at("https://api.example.com/{ids}/{name}"), "source.rest.endpoint", "no other braces than {id}, {ids}"),
        (at("https://api.example.com/{ids"), "source.rest.endpoint", "no other braces than {id}, {ids}"),
        (at("https://me:secret@api.example.com/{ids}"), "source.rest.endpoint", "tokenSecretRef"),
        (at("https://api.example.com/"), "source.rest.endpoint", "{ids} and batching PerBatch go together"),
        (rest(json!({"batching": "PerUser"})), "source.rest.endpoint", "{id} and batching PerUser go together"),
        (at("https://a/{ids}/{id}"), "source.rest.endpoint", "{id} and batching PerUser go together"),
        (at("https://a/{ids}?n={first}"), "source.rest.endpoint", "{first} needs batching Pages"),
        (
            walk("https://a/", json!({"by": "Number"})),
            "source.rest.endpoint",
            "{page} and pagination.by Number go together",
        ),
        (
            walk("https://a/", json!({"nextPath": "/a"})),
            "source.rest.endpoint",
            "{after} and pagination.by Cursor go together",
        ),
        (
            walk("https://a/{page}", json!({"by": "Link"})),
            "source.rest.endpoint",
            "{page} and pagination.by Number go together",
        ),
        (
            walk("https://a/", json!({"by": "Link", "morePath": "/a"})),
            "source.pagination",
            "morePath and by Link exclude",
        ),
        (walk("https://a/", json!({"by": "Link", "nextPath": "/a"})), "source.pagination", "nextPath and by Cursor"),
        (rest(with(linked, &json!({"endpoint": "https://a/"}))), "source.batching", "syncType Full"),
        (rest(json!({"onMissing": "Delete"})), "source.onMissing", "need batching PerUser or Pages"),
        (rest(json!({"upsert": true})), "source.upsert", "needs batching Pages"),
        (rest(json!({"resultPath": "users"})), "source.rest.resultPath", "such as /users"),
        (rest(json!({"timeout": "1h"})), "source.timeout", "to 10m"),
    ] {
        assert_both_refuse(&env, &spec, field, advice).await;
    }
}

fn full_job() -> Value {
    json!({
        "type": "Pipeline",
        "syncType": "Full",
        "staleAfter": "0s",
        "batchSize": 10_000,
        "parallelism": 64,
        "backoffLimit": 0,
        "backoff": {"initial": "100ms", "factor": 1, "max": "1h30m", "jitter": 1},
        "activeDeadline": "8760h",
        "ttlAfterFinished": "0s",
        "priority": -1000,
        "suspended": true,
        "cancelled": true,
        "failurePolicy": {"maxFailedPercent": 1},
        "transaction": "Batch",
        "onFailure": "Rollback",
        "dryRun": true,
        "source": {
            "graphQL": {
                "endpoint": "https://gitlab.example.com:8443/api/graphql?a=b",
                "query": "query q($ids: [ID!]!) { users(ids: $ids) { id } }",
                "operationName": "q",
                "variables": {"first": 100, "deep": {"a": [1, Value::Null]}},
                "resultPath": "/data/users",
            },
            "name": "gitlab.example",
            "batching": "PerUser",
            "concurrency": 64,
            "upsert": false,
            "keyPath": "",
            "keyType": "ObjectId",
            "adopt": false,
            "onMissing": "Delete",
            "missing": {"field": "upstream.missingSince", "set": [{"to": "active", "value": false}]},
            "deleteAfter": "720h",
            "requestRetries": 10,
            "tokenSecretRef": {"name": "gitlab", "key": "token"},
            "headersFrom": [{"name": "X-Team", "secretRef": {"name": "gitlab", "key": "team"}}],
            "caSecretRef": {"name": "gitlab-ca", "key": "ca.crt"},
            "timeout": "10m",
            "rateLimit": {"requests": 100_000, "per": "24h"},
        },
        "mapping": [
            {"from": "/a~1b~0c/0", "to": "profile.name", "type": "String", "onNull": "Unset"},
            {"value": "gitlab", "to": "origin", "type": "Any", "onNull": "Skip"},
            {"from": "/at", "to": "at", "type": "Date", "timeZone": "Europe/Berlin", "onNull": "Set"},
        ],
        "guard": {"maxMissing": "5%", "maxChanged": 500, "minResults": 1000, "action": "Fail", "holdFor": "1m"},
        "target": {
            "uriSecretRef": {"name": "mongodb", "key": "uri"},
            "caSecretRef": {"name": "mongodb-ca", "key": "ca.crt"},
            "database": "codex-2",
            "collection": "people.archive",
            "keyField": "account.id",
            "lastSyncedField": "sync.at",
            "filter": {
                "state": "active",
                "$or": [{"a": 1}, {"b": {"$in": [1, 2]}}],
                "$nor": [{"$and": [{"c": Value::Null}, {"d": {"e": [1.5, "f", true]}}]}],
                "d": {"$date": "2026-01-01T00:00:00Z"},
            },
        },
    })
}

#[tokio::test]
async fn a_full_spec_is_stored_as_written() {
    let env = TestEnv::new().await;
    let job = create(&env, JOB, "job", full_job()).await.unwrap();
    assert_eq!(job.data["spec"], full_job());
    let rest = json!({
        "suspended": true,
        "concurrencyPolicy": "Replace",
        "startingDeadline": "1m30s",
        "catchUp": "None",
        "immediate": true,
        "jitter": "1.5s",
        "successfulJobsHistoryLimit": 0,
        "failedJobsHistoryLimit": 1000,
        "failureThreshold": 100,
        "maxActive": 1000,
        "jobTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "spec": full_job(),
        },
    });
    for (name, timing) in [
        ("interval", json!({"interval": "1h30m"})),
        ("cron", json!({"schedule": "*/20 8-18 * * MON-FRI", "timeZone": "America/Argentina/Buenos_Aires"})),
        ("macro", json!({"schedule": "@daily", "timeZone": "UTC"})),
    ] {
        let mut spec = rest.clone();
        spec.as_object_mut().unwrap().extend(timing.as_object().unwrap().clone());
        let schedule = create(&env, SCHEDULE, name, spec.clone()).await.unwrap();
        assert_eq!(schedule.data["spec"], spec);
    }
}

#[tokio::test]
async fn a_minimal_source_gets_every_documented_default() {
    let env = TestEnv::new().await;
    let common = json!({
        "adopt": false, "concurrency": 8, "upsert": false, "keyPath": "/id", "keyType": "Any", "onMissing": "Fail",
        "missing": {"field": "missingSince"}, "requestRetries": 5, "timeout": "30s",
    });
    let rest = |endpoint: &str, part: Value| support::source("rest", &with(json!({"endpoint": endpoint}), &part));
    let walk = |by: Value| json!({"batching": "Pages", "pagination": by});
    let graph_ql = json!({"graphQL": {"endpoint": "https://a/", "query": "{a}", "resultPath": ""}});
    for (name, source, defaults) in [
        ("graph", graph_ql, json!({"batching": "PerBatch"})),
        ("batch", rest("https://a/{ids}", json!({})), json!({"batching": "PerBatch", "rest": {"resultPath": ""}})),
        ("each", rest("http://a/{id}?x={id}", json!({"batching": "PerUser"})), json!({"rest": {"resultPath": ""}})),
        ("number", rest("https://a:1/?p={page}&n={first}", walk(json!({"by": "Number"}))), json!({})),
        ("cursor", rest("https://a/{after}", walk(json!({"nextPath": "/a", "morePath": "/b"}))), json!({})),
        ("link", rest("https://a/{first}", walk(json!({"by": "Link"}))), json!({"rest": {"resultPath": ""}})),
    ] {
        let spec = json!({"syncType": "Full", "source": source});
        let stored = create(&env, JOB, name, spec.clone()).await.unwrap().data["spec"].clone();
        assert_contains(&stored, &spec, name);
        assert_contains(&stored["source"], &with(common.clone(), &defaults), name);
    }
}

#[tokio::test]
async fn an_empty_spec_gets_every_documented_default() {
    let env = TestEnv::new().await;
    let defaults = json!({
        "type": "User",
        "syncType": "Incremental",
        "batchSize": 100,
        "parallelism": 4,
        "backoffLimit": 3,
        "backoff": {"initial": "5s", "factor": 5, "max": "10m", "jitter": 0.1},
        "activeDeadline": "1h",
        "priority": 0,
        "suspended": false,
        "cancelled": false,
        "failurePolicy": {},
        "transaction": "None",
        "onFailure": "Keep",
        "dryRun": false,
        "target": {"keyField": "_id", "lastSyncedField": "lastSynced"},
    });
    for (name, spec) in [("empty", json!({})), ("parts", json!({"backoff": {}, "failurePolicy": {}, "target": {}}))] {
        let job = create(&env, JOB, name, spec).await.unwrap();
        assert_eq!(job.data["spec"], defaults);
    }
    let schedule = create(&env, SCHEDULE, "schedule", json!({})).await.unwrap();
    assert_eq!(
        schedule.data["spec"],
        json!({
            "suspended": false,
            "concurrencyPolicy": "Forbid",
            "catchUp": "Latest",
            "immediate": false,
            "jitter": "0s",
            "successfulJobsHistoryLimit": 10,
            "failedJobsHistoryLimit": 20,
            "maxActive": 10,
            "jobTemplate": {"metadata": {}, "spec": defaults},
        })
    );
}

async fn patch(env: &TestEnv, kind: &str, name: &str, spec: Value) -> kube::Result<DynamicObject> {
    let patch = Patch::Merge(json!({"spec": spec}));
    api(env, kind).0.patch(name, &PatchParams::default(), &patch).await
}

#[tokio::test]
async fn only_four_fields_of_a_job_can_be_changed() {
    let env = TestEnv::new().await;
    let spec = json!({
        "staleAfter": "5m",
        "target": {"database": "own", "filter": {"state": "active", "a": {"b": 1}}},
        "source": {"graphQL": {"endpoint": "https://gitlab.com/", "query": "{a}", "resultPath": "/data", "variables": {"a": 1}}},
        "mapping": [{"from": "/name", "to": "name"}],
    });
    let mut before = create(&env, JOB, "job", spec).await.unwrap().data;
    create(&env, JOB, "bare", json!({})).await.unwrap();
    let nothing = Value::Null;
    for (spec, field) in [
        (json!({"type": "Issue"}), "type"),
        (json!({"syncType": "Full"}), "syncType"),
        (json!({"staleAfter": "1m"}), "staleAfter"),
        (json!({"staleAfter": nothing}), "staleAfter"),
        (json!({"batchSize": 7}), "batchSize"),
        (json!({"parallelism": 7}), "parallelism"),
        (json!({"backoffLimit": 7}), "backoffLimit"),
        (json!({"backoff": {"initial": "1s"}}), "backoff"),
        (json!({"backoff": {"factor": 2}}), "backoff"),
        (json!({"backoff": {"max": "1h"}}), "backoff"),
        (json!({"backoff": {"jitter": 0.5}}), "backoff"),
        (json!({"activeDeadline": "2h"}), "activeDeadline"),
        (json!({"failurePolicy": {"maxFailedPercent": 5}}), "failurePolicy"),
        (json!({"target": {"database": "other"}}), "target"),
        (json!({"target": {"database": nothing}}), "target"),
        (json!({"target": {"collection": "other"}}), "target"),
        (json!({"target": {"keyField": "other"}}), "target"),
        (json!({"target": {"lastSyncedField": "other"}}), "target"),
        (json!({"target": {"filter": {"state": "gone"}}}), "target"),
        (json!({"target": {"filter": {"a": {"b": 2}}}}), "target"),
        (json!({"target": {"filter": {"$or": [{"a": 1}]}}}), "target"),
        (json!({"target": {"filter": nothing}}), "target"),
        (json!({"transaction": "Batch"}), "transaction"),
        (json!({"onFailure": "Rollback"}), "onFailure"),
        (json!({"dryRun": true}), "dryRun"),
        (json!({"source": {"graphQL": {"endpoint": "https://elsewhere.example/"}}}), "source"),
        (json!({"source": {"graphQL": {"variables": {"a": 2}}}}), "source"),
        (json!({"source": {"tokenSecretRef": {"name": "other", "key": "token"}}}), "source"),
        (json!({"mapping": [{"from": "/other", "to": "name"}]}), "mapping"),
        (json!({"mapping": nothing}), "mapping"),
    ] {
        let error = patch(&env, JOB, "job", spec.clone()).await.err().unwrap_or_else(|| panic!("accepted: {spec}"));
        let error = error.to_string();
        let message = format!("spec.{field} cannot be changed: delete this SyncJob and create a new one");
        assert!(error.contains(&message), "{spec}: {error}");
    }
    for (spec, field) in
        [(json!({"staleAfter": "1m"}), "staleAfter"), (json!({"target": {"filter": {"state": "active"}}}), "target")]
    {
        let error = patch(&env, JOB, "bare", spec).await.unwrap_err().to_string();
        assert!(error.contains(&format!("spec.{field} cannot be changed")), "added: {error}");
    }
    for spec in [
        json!({"suspended": true, "priority": 5, "ttlAfterFinished": "1h"}),
        json!({"suspended": false, "priority": -5, "ttlAfterFinished": "2h"}),
        json!({"ttlAfterFinished": nothing}),
        json!({"cancelled": true}),
    ] {
        patch(&env, JOB, "job", spec).await.unwrap();
    }
    before["spec"]
        .as_object_mut()
        .unwrap()
        .extend([("priority".to_owned(), json!(-5)), ("cancelled".to_owned(), json!(true))]);
    assert_eq!(api(&env, JOB).0.get("job").await.unwrap().data["spec"], before["spec"]);
}

#[tokio::test]
async fn a_cancelled_job_stays_cancelled() {
    let env = TestEnv::new().await;
    create(&env, JOB, "job", json!({"cancelled": true})).await.unwrap();
    for spec in [json!({"cancelled": false}), json!({"cancelled": Value::Null})] {
        let error = patch(&env, JOB, "job", spec).await.unwrap_err().to_string();
        assert!(error.contains("spec.cancelled cannot be set back to false: create a new SyncJob"), "{error}");
    }
}

#[tokio::test]
async fn every_field_of_a_schedule_can_be_changed() {
    let env = TestEnv::new().await;
    create(&env, SCHEDULE, "schedule", json!({"interval": "5m"})).await.unwrap();
    for spec in [
        json!({"interval": "1h", "suspended": true, "concurrencyPolicy": "Allow", "catchUp": "None", "jitter": "5s"}),
        json!({"interval": Value::Null, "schedule": "0 * * * *", "timeZone": "Europe/Berlin"}),
        json!({"jobTemplate": {"spec": {"syncType": "Full", "batchSize": 7, "target": {"filter": {"a": 1}}}}}),
    ] {
        patch(&env, SCHEDULE, "schedule", spec).await.unwrap();
    }
}

fn condition(type_: &str) -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({"type": type_, "status": "True", "reason": "Test", "message": "", "lastTransitionTime": time})
}

#[tokio::test]
async fn spec_and_status_are_written_separately() {
    let env = TestEnv::new().await;
    let merge = PatchParams::default();
    let unseen = json!({"conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "Pending", "message": "Not reconciled yet",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }], "runs": {"total": 0, "succeeded": 0, "failed": 0, "replaced": 0, "deleted": 0, "skipped": 0}, "consecutiveFailures": 0});
    for (kind, status, first) in [
        (JOB, json!({"phase": "Running", "progress": 40, "conditions": [condition("Reconciling")]}), None),
        (SCHEDULE, json!({"schedule": "20m", "activeCount": 1, "conditions": [condition("Ready")]}), Some(unseen)),
    ] {
        let (api, resource) = api(&env, kind);
        let data = json!({"spec": {"suspended": true}, "status": status});
        let created = api.create(&PostParams::default(), &DynamicObject::new("a", &resource).data(data)).await.unwrap();
        assert_eq!(created.data.get("status"), first.as_ref(), "{kind}");
        let both = Patch::Merge(json!({"spec": {"suspended": false}, "status": status}));
        let written = api.patch_status("a", &merge, &both).await.unwrap();
        assert_eq!(written.data["spec"]["suspended"], json!(true), "{kind}: an update of the status leaves the spec");
        for (name, value) in status.as_object().unwrap() {
            assert_eq!(&written.data["status"][name], value, "{kind}");
        }
        assert_eq!(written.metadata.generation, created.metadata.generation);
        let other = Patch::Merge(json!({"spec": {"suspended": false}, "status": {"conditions": []}}));
        let updated = api.patch("a", &merge, &other).await.unwrap();
        assert_eq!(updated.data["status"], written.data["status"], "{kind}: an update of the spec leaves the status");
        assert_eq!(updated.data["spec"]["suspended"], json!(false), "{kind}");
    }
}

#[tokio::test]
async fn conditions_are_distinguished_by_their_type() {
    let env = TestEnv::new().await;
    for (kind, types) in [(JOB, ["Reconciling", "Stalled"]), (SCHEDULE, ["Ready", "Suspended"])] {
        create(&env, kind, "a", json!({})).await.unwrap();
        let (api, resource) = api(&env, kind);
        let apply = async |manager: &str, conditions: Value| {
            let object = json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "status": {"conditions": conditions},
            });
            api.patch_status("a", &PatchParams::apply(manager), &Patch::Apply(object)).await
        };
        for type_ in types {
            apply(type_, json!([condition(type_)])).await.unwrap();
        }
        let found = api.get_status("a").await.unwrap();
        let found = found.data["status"]["conditions"].as_array().unwrap().iter();
        let found: Vec<&Value> = found.map(|condition| &condition["type"]).collect();
        assert_eq!(
            found,
            types.each_ref().map(|type_| json!(type_)).iter().collect::<Vec<_>>(),
            "{kind}: both are kept"
        );
        let twice = apply("third", json!([condition("Other"), condition("Other")])).await.unwrap_err().to_string();
        assert!(twice.contains("duplicate"), "{kind}: {twice}");
    }
}

#[tokio::test]
async fn short_names_and_the_category_are_known_to_kubectl() {
    let env = TestEnv::new().await;
    let resources = env.client.list_api_group_resources("sync.codex.dev/v1alpha1").await.unwrap().resources;
    for (plural, kind, short) in
        [("syncschedules", SCHEDULE, "ssched"), ("syncjobs", JOB, "sjob"), ("syncalerts", ALERT, "salert")]
    {
        let found: &APIResource = resources.iter().find(|resource| resource.name == plural).unwrap();
        assert_eq!((found.kind.as_str(), found.namespaced), (kind, true));
        assert_eq!(found.short_names.as_deref(), Some(&[short.to_owned()][..]));
        assert_eq!(found.categories.as_deref(), Some(&["sync".to_owned()][..]));
        assert!(resources.iter().any(|resource| resource.name == format!("{plural}/status")));
    }
}

#[tokio::test]
async fn kubectl_get_shows_the_documented_columns() {
    let crds: Api<CustomResourceDefinition> = Api::all(TestEnv::new().await.client);
    for (crd, narrow) in [
        ("syncschedules.sync.codex.dev", &["Schedule", "Suspended", "Active", "Last", "Next", "Ready", "Age"][..]),
        (
            "syncjobs.sync.codex.dev",
            &["Schedule", "Type", "Status", "Progress", "Processed", "Failed", "Attempts", "Duration", "Age"][..],
        ),
        ("syncalerts.sync.codex.dev", &["Firing", "Last Sent", "Ready", "Age"][..]),
    ] {
        let [version] = <[_; 1]>::try_from(crds.get(crd).await.unwrap().spec.versions).unwrap();
        let columns = version.additional_printer_columns.unwrap();
        let shown = columns.iter().filter(|column| column.priority.unwrap_or(0) == 0);
        assert_eq!(shown.map(|column| column.name.as_str()).collect::<Vec<_>>(), narrow, "{crd}");
    }
}

#[tokio::test]
async fn jobs_can_be_listed_by_type() {
    let env = TestEnv::new().await;
    for (name, type_) in [("a", "User"), ("b", "Issue")] {
        create(&env, JOB, name, json!({"type": type_})).await.unwrap();
    }
    let issues = kube::api::ListParams::default().fields("spec.type=Issue");
    let found = api(&env, JOB).0.list(&issues).await.unwrap();
    assert_eq!(found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["b"]);
}

/// The YAML blocks of a page that are objects, or the spec of the kind the page is about.
fn examples(page: &str) -> Vec<(&'static str, Value)> {
    let text = std::fs::read_to_string(page).unwrap();
    let of_page = match page.rsplit('/').next() {
        Some("syncjob.md" | "sources.md" | "removal.md") => JOB,
        Some("syncalert.md" | "alerts.md" | "alert.yaml") => ALERT,
        _ => SCHEDULE,
    };
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let objects = blocks.flat_map(serde_yaml_ng::Deserializer::from_str).map(|document| {
        <Value as serde::Deserialize>::deserialize(document).unwrap_or_else(|error| panic!("{page}: {error}"))
    });
    let kind = |object: &Value| match object["kind"].as_str() {
        Some("SyncJob") => JOB,
        Some("SyncSchedule") => SCHEDULE,
        Some("SyncAlert") => ALERT,
        _ => of_page,
    };
    objects
        .filter(|object| object.get("spec").is_some())
        .map(|object| (kind(&object), object["spec"].clone()))
        .collect()
}

fn assert_contains(whole: &Value, part: &Value, place: &str) {
    match part {
        Value::Object(fields) => {
            for (field, value) in fields {
                assert_contains(&whole[field], value, &format!("{place}.{field}"));
            }
        }
        Value::Array(items) if whole.as_array().is_some_and(|whole| whole.len() == items.len()) => {
            for (at, item) in items.iter().enumerate() {
                assert_contains(&whole[at], item, &format!("{place}[{at}]"));
            }
        }
        _ => assert_eq!(whole, part, "{place} is not a field"),
    }
}

#[tokio::test]
async fn a_wrong_alert_is_refused_with_field_and_fix() {
    let env = TestEnv::new().await;
    let slack = || json!({"name": "a", "slack": {"urlSecretRef": {"name": "s", "key": "url"}}});
    let spec = |part: Value| with(json!({"when": [{"type": "RunFailed"}], "sinks": [slack()]}), &part);
    let sink = |part: Value| spec(json!({"sinks": [with(json!({"name": "a"}), &part)]}));
    let smtp = |part: Value| {
        let whole = json!({"host": "smtp.example.com", "from": "a@example.com", "to": ["b@example.com"]});
        sink(json!({"smtp": with(whole, &part)}))
    };
    let hook = |url: &str| sink(json!({"webhook": {"url": url, "hmacSecretRef": {"name": "s", "key": "key"}}}));
    let entry = json!({"name": "s", "key": "k"});
    for (spec, field, advice) in [
        (spec(json!({"when": []})), "spec.when", "at least 1"),
        (spec(json!({"when": [{"type": "Test"}]})), "type", "\"RunFailed\""),
        (spec(json!({"when": [{"type": "RunFailed"}, {"type": "RunFailed"}]})), "spec.when", "Duplicate"),
        (spec(json!({"when": [{"type": "FailedDocumentsAbove"}]})), "when[].percent", "set both"),
        (spec(json!({"when": [{"type": "RunFailed", "percent": 5}]})), "when[].percent", "remove percent"),
        (spec(json!({"when": [{"type": "FailedDocumentsAbove", "percent": 100}]})), "when[].percent", "from 0 to 99"),
        (spec(json!({"when": [{"type": "NoSuccessFor"}]})), "when[].duration", "set both"),
        (spec(json!({"when": [{"type": "NoSuccessFor", "duration": "soon"}]})), "when[].duration", "such as 2h"),
        (spec(json!({"sinks": []})), "spec.sinks", "at least 1"),
        (spec(json!({"sinks": [slack(), slack()]})), "spec.sinks", "Duplicate"),
        (spec(json!({"groupWindow": "2h"})), "groupWindow", "from 0s to 1h"),
        (spec(json!({"repeatInterval": "1s"})), "repeatInterval", "from 10s"),
        (spec(json!({"template": {"title": "x".repeat(2000)}})), "template.title", "1024"),
        (sink(json!({})), "sinks[]", "exactly one of"),
        (sink(with(slack(), &json!({"cloudEvents": {"url": "https://a/"}}))), "sinks[]", "exactly one of"),
        (sink(json!({"name": "A b", "cloudEvents": {"url": "https://a/"}})), "sinks[].name", "such as on-call"),
        (hook("ftp://a/"), "sinks[].webhook.url", "http or https URL"),
        (hook("https://user:password@a/"), "sinks[].webhook.url", "secrets belong into Secrets"),
        (sink(json!({"cloudEvents": {"url": "a"}})), "sinks[].cloudEvents.url", "http or https URL"),
        (smtp(json!({"host": "a/b"})), "sinks[].smtp.host", "such as smtp.example.com"),
        (smtp(json!({"port": 0})), "sinks[].smtp.port", "from 1"),
        (smtp(json!({"tls": "Maybe"})), "tls", "\"StartTls\""),
        (smtp(json!({"to": []})), "smtp.to", "at least 1"),
        (smtp(json!({"passwordSecretRef": entry})), "usernameSecretRef", "set both, or neither"),
    ] {
        assert_refused(&env, ALERT, spec, field, advice).await;
    }
}

#[tokio::test]
async fn every_example_of_the_docs_is_accepted() {
    let env = TestEnv::new().await;
    let mut count = 0;
    let references = ["docs/reference/syncschedule.md", "docs/reference/syncjob.md", "docs/reference/syncalert.md"];
    let guides = [
        "README.md",
        "docs/getting-started/quickstart.md",
        "docs/guides/sources.md",
        "docs/guides/graphql.md",
        "docs/guides/rest.md",
        "docs/guides/removal.md",
        "docs/guides/alerts.md",
    ];
    for page in guides.into_iter().chain(references) {
        for (kind, spec) in examples(page) {
            count += 1;
            let created = create(&env, kind, &format!("example-{count}"), spec.clone()).await;
            let created = created.unwrap_or_else(|error| panic!("{page}: {spec}: {error}"));
            assert_contains(&created.data["spec"], &spec, page);
        }
    }
    assert!(count >= 13, "only {count} examples were found");
}

#[tokio::test]
async fn the_sample_alert_is_accepted() {
    let sample = std::fs::read_to_string("manifests/samples/alert.yaml").unwrap();
    let sample: Value = serde_yaml_ng::from_str(&sample).unwrap();
    create(&TestEnv::new().await, ALERT, "sample", sample["spec"].clone()).await.unwrap();
}
