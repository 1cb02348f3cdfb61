//! What the API server refuses, and what it says. The messages name the field and the fix.

use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::support::World;

fn api(world: &World, kind: &str) -> (Api<DynamicObject>, ApiResource) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("sync.codex.dev", "v1alpha1", kind));
    (Api::namespaced_with(world.client.clone(), &world.name, &resource), resource)
}

async fn create(world: &World, kind: &str, name: &str, spec: Value) -> kube::Result<DynamicObject> {
    let (api, resource) = api(world, kind);
    let object = DynamicObject::new(name, &resource).data(json!({"spec": spec}));
    api.create(&PostParams::default(), &object).await
}

async fn assert_refused(world: &World, kind: &str, spec: Value, field: &str, advice: &str) {
    let error = create(world, kind, "refused", spec.clone()).await.err().unwrap_or_else(|| panic!("accepted: {spec}"));
    let error = error.to_string();
    assert!(error.contains(field) && error.contains(advice), "{spec} should name {field} and {advice}: {error}");
}

#[tokio::test]
async fn a_wrong_schedule_is_refused_with_field_and_fix() {
    let world = World::new().await;
    for (spec, field, advice) in [
        (json!({"interval": "5m", "schedule": "* * * * *"}), "interval and schedule", "keep one of them"),
        (json!({"interval": "banana"}), "interval", "such as 20m"),
        (json!({"interval": "-5s"}), "interval", "such as 20m"),
        (json!({"interval": "0s"}), "interval", "from 1s"),
        (json!({"interval": "500ms"}), "interval", "whole seconds"),
        (json!({"timeZone": "Europe/Berlin"}), "timeZone", "needs schedule"),
        (json!({"schedule": "* * * *"}), "schedule", "five fields"),
        (json!({"schedule": "CRON_TZ=UTC * * * * *"}), "schedule", "timeZone"),
        (json!({"concurrencyPolicy": "Never"}), "concurrencyPolicy", "\"Forbid\""),
        (json!({"successfulJobsHistoryLimit": -1}), "successfulJobsHistoryLimit", "from 0 to 1000"),
        (json!({"jobTemplate": {"spec": {"batchSize": 0}}}), "jobTemplate.spec.batchSize", "from 1 to 10000"),
    ] {
        assert_refused(&world, "SyncSchedule", spec, field, advice).await;
    }
    let long = create(&world, "SyncSchedule", &"a".repeat(53), json!({})).await.unwrap_err().to_string();
    assert!(long.contains("at most 52 characters"), "{long}");
}

#[tokio::test]
async fn a_wrong_job_is_refused_with_field_and_fix() {
    let world = World::new().await;
    for (spec, field, advice) in [
        (json!({"batchSize": 0}), "batchSize", "from 1 to 10000"),
        (json!({"parallelism": 1000}), "parallelism", "from 1 to 64"),
        (json!({"priority": 1001}), "priority", "from -1000 to 1000"),
        (json!({"activeDeadline": "soon"}), "activeDeadline", "such as 1h"),
        (json!({"backoff": {"jitter": 2}}), "backoff.jitter", "from 0 to 1"),
        (json!({"target": {"database": "admin"}}), "target.database", "none of admin"),
        (json!({"target": {"collection": "system.users"}}), "target.collection", "system."),
        (json!({"target": {"keyField": "$x"}}), "target.keyField", "such as _id"),
        (json!({"target": {"filter": {"$where": "1"}}}), "target.filter", "query operators such as"),
        (json!({"target": {"filter": {"$or": [{"$where": "1"}]}}}), "target.filter", "query operators such as"),
    ] {
        assert_refused(&world, "SyncJob", spec, field, advice).await;
    }
}

#[tokio::test]
async fn defaults_are_filled_in_and_a_filter_is_stored_as_written() {
    let world = World::new().await;
    let filter =
        json!({"state": "active", "$or": [{"a": 1}, {"b": {"$in": [1, 2]}}], "d": {"$date": "2026-01-01T00:00:00Z"}});
    let job = create(&world, "SyncJob", "job", json!({"target": {"filter": filter}})).await.unwrap();
    let spec = &job.data["spec"];
    assert_eq!(spec["target"]["filter"], filter);
    assert_eq!(
        (&spec["batchSize"], &spec["parallelism"], &spec["backoff"]["initial"]),
        (&json!(100), &json!(4), &json!("5s"))
    );
    assert_eq!(
        (&spec["type"], &spec["syncType"], &spec["activeDeadline"]),
        (&json!("User"), &json!("Incremental"), &json!("1h"))
    );
    let schedule = create(&world, "SyncSchedule", "schedule", json!({})).await.unwrap();
    let spec = &schedule.data["spec"];
    assert_eq!((&spec["concurrencyPolicy"], &spec["catchUp"]), (&json!("Forbid"), &json!("Latest")));
    assert_eq!((&spec["successfulJobsHistoryLimit"], &spec["failedJobsHistoryLimit"]), (&json!(10), &json!(20)));
}

#[tokio::test]
async fn only_four_fields_of_a_job_can_be_changed() {
    let world = World::new().await;
    let job = create(&world, "SyncJob", "job", json!({"target": {"filter": {"state": "active"}}})).await.unwrap();
    let (jobs, _) = api(&world, "SyncJob");
    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        jobs.patch(&job.name_any(), &PatchParams::default(), &patch).await
    };
    for (spec, field) in [
        (json!({"type": "Issue"}), "type"),
        (json!({"syncType": "Full"}), "syncType"),
        (json!({"staleAfter": "1m"}), "staleAfter"),
        (json!({"batchSize": 7}), "batchSize"),
        (json!({"parallelism": 7}), "parallelism"),
        (json!({"backoffLimit": 7}), "backoffLimit"),
        (json!({"backoff": {"max": "1h"}}), "backoff"),
        (json!({"activeDeadline": "2h"}), "activeDeadline"),
        (json!({"failurePolicy": {"maxFailedPercent": 5}}), "failurePolicy"),
        (json!({"target": {"filter": {"state": "gone"}}}), "target"),
    ] {
        let error = patch(spec).await.unwrap_err().to_string();
        assert!(error.contains(&format!("spec.{field} cannot be changed")), "{field}: {error}");
    }
    patch(json!({"suspended": true, "priority": 5, "ttlAfterFinished": "1h", "cancelled": true})).await.unwrap();
    let error = patch(json!({"cancelled": false})).await.unwrap_err().to_string();
    assert!(error.contains("spec.cancelled cannot be set back"), "{error}");
}
