//! Reports on each object that this release cannot read, so that users see why the object has no effect.

use std::collections::HashMap;

use jiff::Timestamp;
use kube::{
    api::{Patch, PatchParams},
    core::Request,
};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::{select, time::sleep};

use super::Context;
use crate::{
    cluster::{self, RequestClass, UnreadableObject},
    domain::{ObjectEvent, failure, unreadable},
};

/// Reports all unreadable objects while this process leads. Never ends.
pub(super) async fn report(context: &Context) {
    let (mut changes, mut leaders) = (context.cluster.unreadable.changes(), context.leadership.changes());
    let (mut reported, mut failures) = (HashMap::new(), 0);
    loop {
        changes.mark_unchanged();
        let objects = context.cluster.unreadable.all();
        reported.retain(|uid, _| objects.iter().any(|object| object.reference.uid.as_ref() == Some(uid)));
        let mut is_done = true;
        for object in objects.iter().filter(|_| context.leadership.is_held()) {
            is_done &= report_object(object, &mut reported, context).await;
        }
        failures = if is_done { 0 } else { failures + 1 };
        let again = async {
            match failures {
                0 => std::future::pending().await,
                failures => sleep(failure::REFUSED.delay(failures, rand::random())).await,
            }
        };
        select! {
            // These fail only when the process ends.
            _ = changes.changed() => {}
            _ = leaders.changed() => {}
            () = again => {}
        }
    }
}

/// Reports an object once for each reason: an event, and the conditions, where they can be written. False: the write
/// failed, and may succeed later.
async fn report_object(object: &UnreadableObject, reported: &mut HashMap<String, String>, context: &Context) -> bool {
    let UnreadableObject { reference, url, version, generation, conditions, reason } = object;
    let kind = reference.kind.as_deref().unwrap_or_default();
    let Some(conditions) = unreadable::mark(conditions, kind, reason, *generation, Timestamp::now()) else {
        return true;
    };
    let uid = reference.uid.clone().unwrap_or_default();
    let is_new = reported.insert(uid, reason.clone()).as_ref() != Some(reason);
    if is_new {
        context.publisher.publish_about(reference.clone(), ObjectEvent::warning("Unreadable", reason));
    }
    // The version causes a conflict when the object was changed meanwhile, and the watch reports that change.
    let metadata = json!({"resourceVersion": version});
    let patch = Patch::Merge(json!({"metadata": metadata, "status": {"conditions": conditions}}));
    let name = reference.name.as_deref().unwrap_or_default();
    let request = Request::new(url).patch_subresource("status", name, &PatchParams::default(), &patch);
    let written = async {
        let request = request.map_err(kube::Error::BuildRequest)?;
        context.cluster.client.request::<IgnoredAny>(request).await
    };
    let _permit = context.cluster.acquire(RequestClass::ReportStatus).await;
    if !context.leadership.is_held() {
        return true;
    }
    match cluster::call("write the conditions of an object that cannot be read", written).await {
        Ok(_) => true,
        Err(error) if error.is_conflict() || error.is_not_found() => true,
        Err(error) => {
            if is_new {
                let namespace = &reference.namespace;
                tracing::warn!(
                    kind, namespace, name, %error, "could not write the conditions of an unreadable object; retrying"
                );
            }
            false
        }
    }
}
