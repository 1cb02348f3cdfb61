//! Delivers messages to the sinks of SyncAlerts.

mod cloud_events;
mod post;
mod slack;
mod smtp;
mod webhook;
mod wording;

use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::time::timeout;

pub use wording::check as check_template;

use crate::{
    api::{SyncAlert, source::SecretKey, syncalert::Sink},
    domain::alert::{Message, Refusal},
    secrets,
    sync::Egress,
    telemetry::metrics,
};
use wording::Wording;

/// Longest time for one delivery, so that a sink that stalls has its next try.
const LIMIT: Duration = Duration::from_secs(30);

/// Somebody has to correct something.
fn mistake(message: impl Into<String>) -> Refusal {
    Refusal { is_mistake: true, message: message.into(), rest: None, may_have_arrived: false }
}

/// The sink is away.
fn outage(message: impl Into<String>) -> Refusal {
    Refusal { is_mistake: false, ..mistake(message) }
}

/// The sink went away before it answered.
fn silence(message: impl Into<String>) -> Refusal {
    Refusal { may_have_arrived: true, ..outage(message) }
}

impl From<secrets::Error> for Refusal {
    fn from(error: secrets::Error) -> Self {
        match error {
            secrets::Error::Invalid(message) => mistake(message),
            error @ secrets::Error::Unavailable(_) => outage(error.to_string()),
        }
    }
}

/// Delivers messages, with Secrets that are read for each of them. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    client: Client,
    egress: Egress,
}

impl Notifier {
    /// One that reaches the addresses `egress` allows.
    #[must_use]
    pub fn new(client: Client, egress: Egress) -> Self {
        Self { client, egress }
    }

    /// Delivers a message, within 30 s. When it is cancelled, the message may or may not have arrived.
    ///
    /// # Errors
    /// When the sink did not take it, as far as is known.
    pub async fn deliver(&self, alert: &SyncAlert, sink: &Sink, message: &Message) -> Result<(), Refusal> {
        let wording = Wording::new(alert, message);
        let sent = timeout(LIMIT, self.send(alert, sink, message, &wording)).await;
        let result = sent.unwrap_or_else(|_| Err(silence(format!("it did not answer within {} s", LIMIT.as_secs()))));
        metrics::alert_sent(kind(sink), result.is_ok());
        result
    }

    async fn send(&self, alert: &SyncAlert, sink: &Sink, message: &Message, wording: &Wording) -> Result<(), Refusal> {
        let namespace = alert.namespace().unwrap_or_default();
        let Sink { slack, smtp, webhook, cloud_events, .. } = sink;
        if let Some(slack) = slack {
            self.slack(&namespace, slack, wording).await
        } else if let Some(smtp) = smtp {
            self.smtp(&namespace, smtp, message, wording).await
        } else if let Some(webhook) = webhook {
            self.webhook(&namespace, webhook, &wording.payload(alert, message)).await
        } else if let Some(cloud_events) = cloud_events {
            self.cloud_events(alert, cloud_events, message, wording).await
        } else {
            Err(mistake("it has none of slack, smtp, webhook and cloudEvents: set one of them"))
        }
    }

    async fn secret(&self, namespace: &str, entry: &SecretKey, host: &str) -> Result<Vec<u8>, Refusal> {
        Ok(secrets::read(self.client.clone(), namespace, entry, Some(host)).await?)
    }

    async fn ca(&self, namespace: &str, entry: Option<&SecretKey>) -> Result<Option<Vec<u8>>, Refusal> {
        match entry {
            Some(entry) => Ok(Some(secrets::read(self.client.clone(), namespace, entry, None).await?)),
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
