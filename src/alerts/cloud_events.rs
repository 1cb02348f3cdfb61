//! Sink for CloudEvents 1.0, as JSON in structured mode.

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{
    Notifier,
    client::{PostRequest, parse_url},
    configuration_error,
    templates::RenderedMessage,
};
use crate::{
    api::{SyncAlert, syncalert::CloudEvents},
    domain::alert::{Message, Refusal},
};

impl Notifier {
    pub(super) async fn cloud_events(
        &self,
        alert: &SyncAlert,
        sink: &CloudEvents,
        message: &Message,
        rendered: &RenderedMessage,
    ) -> Result<(), Refusal> {
        let namespace = alert.namespace().unwrap_or_default();
        let (url, to) = parse_url(&sink.url, "cloudEvents.url")?;
        let mut headers = Vec::new();
        if let Some(entry) = &sink.token_secret_ref {
            let token = self.secret(&namespace, entry, &to).await?;
            let token = String::from_utf8(token).map_err(|_| configuration_error("its token is no text"))?;
            headers.push(("authorization", format!("Bearer {}", token.trim())));
        }
        let request = PostRequest {
            url,
            content_type: "application/cloudevents+json; charset=utf-8",
            headers,
            body: event(alert, message, &rendered.payload(alert, message), Timestamp::now()).to_string(),
            ca: self.ca(&namespace, sink.ca_secret_ref.as_ref(), &to).await?,
        };
        self.post(&namespace, request).await
    }
}

fn event(alert: &SyncAlert, message: &Message, payload: &Value, now: Timestamp) -> Value {
    let (namespace, name) = (alert.namespace().unwrap_or_default(), alert.name_any());
    json!({
        "specversion": "1.0",
        "id": message.id,
        "source": format!("/apis/sync.codex.dev/v1alpha1/namespaces/{namespace}/syncalerts/{name}"),
        "type": "dev.codex.sync.alert.v1",
        "time": now.to_string(),
        "datacontenttype": "application/json",
        "data": payload,
    })
}
