//! Delivers messages to the sinks of SyncAlerts.

mod client;
mod cloud_events;
mod slack;
mod smtp;
mod templates;
mod webhook;

use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::time::timeout;

pub use templates::check_template;

use crate::{
    api::{SyncAlert, source::SecretKey, syncalert::Sink},
    domain::{
        alert::{Message, Refusal},
        destination::Destination,
    },
    policy::CurrentPolicy,
    secrets,
    telemetry::metrics,
};
use templates::RenderedMessage;

/// Timeout of one delivery, so that a sink that stalls is tried again.
const LIMIT: Duration = Duration::from_secs(30);

/// Refusal for a mistake in the configuration, which a user has to correct.
fn configuration_error(message: impl Into<String>) -> Refusal {
    Refusal { is_mistake: true, message: message.into(), rest: None, may_have_arrived: false }
}

/// Refusal for an unavailable sink.
fn unavailable(message: impl Into<String>) -> Refusal {
    Refusal { is_mistake: false, ..configuration_error(message) }
}

/// Refusal for a sink that did not answer: the message may have arrived.
fn no_answer(message: impl Into<String>) -> Refusal {
    Refusal { may_have_arrived: true, ..unavailable(message) }
}

impl From<secrets::Error> for Refusal {
    fn from(error: secrets::Error) -> Self {
        match error {
            secrets::Error::Invalid(message) => configuration_error(message),
            error @ secrets::Error::Unavailable(_) => unavailable(error.to_string()),
        }
    }
}

/// Notifier of sinks. Reads the Secrets of each message. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    client: Client,
    policy: CurrentPolicy,
}

impl Notifier {
    /// Creates a notifier that reaches the addresses that the policy allows.
    #[must_use]
    pub fn new(client: Client, policy: CurrentPolicy) -> Self {
        Self { client, policy }
    }

    /// Delivers a message, within 30 s. When it is cancelled, the message may or may not have arrived.
    ///
    /// # Errors
    /// When the sink did not accept the message, as far as is known.
    pub async fn deliver(&self, alert: &SyncAlert, sink: &Sink, message: &Message) -> Result<(), Refusal> {
        let rendered = RenderedMessage::new(alert, message);
        let sent = timeout(LIMIT, self.send(alert, sink, message, &rendered)).await;
        let result = sent.unwrap_or_else(|_| Err(no_answer(format!("it did not answer within {} s", LIMIT.as_secs()))));
        metrics::alert_sent(kind(sink), result.is_ok());
        result
    }

    async fn send(
        &self,
        alert: &SyncAlert,
        sink: &Sink,
        message: &Message,
        rendered: &RenderedMessage,
    ) -> Result<(), Refusal> {
        let namespace = alert.namespace().unwrap_or_default();
        let Sink { slack, smtp, webhook, cloud_events, .. } = sink;
        if let Some(slack) = slack {
            self.slack(&namespace, slack, rendered).await
        } else if let Some(smtp) = smtp {
            self.smtp(&namespace, smtp, message, rendered).await
        } else if let Some(webhook) = webhook {
            self.webhook(&namespace, webhook, &rendered.payload(alert, message)).await
        } else if let Some(cloud_events) = cloud_events {
            self.cloud_events(alert, cloud_events, message, rendered).await
        } else {
            Err(configuration_error("it has none of slack, smtp, webhook and cloudEvents: set one of them"))
        }
    }

    async fn secret(&self, namespace: &str, entry: &SecretKey, to: &Destination) -> Result<Vec<u8>, Refusal> {
        Ok(secrets::read_entry(self.client.clone(), namespace, entry, to).await?)
    }

    async fn ca(
        &self,
        namespace: &str,
        entry: Option<&SecretKey>,
        to: &Destination,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        match entry {
            Some(entry) => Ok(Some(self.secret(namespace, entry, to).await?)),
            None => Ok(None),
        }
    }
}

fn kind(sink: &Sink) -> &'static str {
    match sink {
        Sink { slack: Some(_), .. } => "slack",
        Sink { smtp: Some(_), .. } => "smtp",
        Sink { webhook: Some(_), .. } => "webhook",
        _ => "cloudEvents",
    }
}
