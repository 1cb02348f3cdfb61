//! Events of the operator.

use std::collections::HashSet;

use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use test_support::eventually;

use super::TestEnv;

/// Waits until the events of an object have these reasons. Events are sent some time after their cause.
pub async fn wait_for_events(env: &TestEnv, object: &str, reasons: &[&str]) {
    eventually(&format!("{object} has events with {reasons:?}"), async || {
        let found = event_reasons(env, object).await;
        reasons.iter().all(|reason| found.contains(*reason)).then_some(())
    })
    .await;
}

/// The events of the namespace.
pub async fn events(env: &TestEnv) -> Vec<Event> {
    let events: Api<Event> = Api::namespaced(env.client.clone(), &env.name);
    events.list(&ListParams::default()).await.unwrap().items
}

async fn event_reasons(env: &TestEnv, object: &str) -> HashSet<String> {
    let about = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.clone());
    events(env)
        .await
        .into_iter()
        .filter(|event| about(event).as_deref() == Some(object))
        .filter_map(|event| event.reason)
        .collect()
}
