//! Changes of objects by a user, and of their status in place of the controller.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sync_operator::api::TRIGGER_ANNOTATION;

use super::TestEnv;

impl TestEnv {
    /// Changes fields of the spec of a SyncJob.
    pub async fn patch_job(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.jobs().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Changes fields of the status of a SyncJob.
    pub async fn patch_job_status(&self, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.jobs().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Sets an annotation of a SyncJob.
    pub async fn annotate_job(&self, name: &str, annotation: &str, value: &str) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
        self.jobs().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Changes fields of a SyncSchedule.
    pub async fn patch_schedule(&self, name: &str, fields: Value) {
        self.schedules().patch(name, &PatchParams::default(), &Patch::Merge(fields)).await.unwrap();
    }

    /// Changes fields of the status of a SyncSchedule.
    pub async fn patch_schedule_status(&self, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.schedules().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Requests a run of a SyncSchedule.
    pub async fn trigger(&self, name: &str, token: &str) {
        self.patch_schedule(name, json!({"metadata": {"annotations": {TRIGGER_ANNOTATION: token}}})).await;
    }
}
