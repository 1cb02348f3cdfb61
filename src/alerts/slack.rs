//! Sink for incoming webhooks of Slack and of compatible services.

use serde_json::json;

use super::{
    Notifier,
    client::{PostRequest, parse_url},
    configuration_error,
    templates::RenderedMessage,
};
use crate::{api::syncalert::Slack, domain::alert::Refusal, secrets};

impl Notifier {
    pub(super) async fn slack(&self, namespace: &str, sink: &Slack, rendered: &RenderedMessage) -> Result<(), Refusal> {
        let secret = secrets::find_entry(self.client.clone(), namespace, &sink.url_secret_ref).await?;
        let what = format!("the value in Secret {}", sink.url_secret_ref.name);
        let text = str::from_utf8(&secret.value).map_err(|_| configuration_error(format!("{what} is no text")))?;
        let (url, to) = parse_url(text, &what)?;
        secret.scope.check(&to).map_err(secrets::Error::from)?;
        let text = format!("*{}*\n{}", escape(&rendered.title), escape(&rendered.text));
        let request = PostRequest {
            url,
            content_type: "application/json",
            headers: Vec::new(),
            body: json!({"text": text}).to_string(),
            ca: self.ca(namespace, sink.ca_secret_ref.as_ref(), &to).await?,
        };
        self.post(namespace, request).await
    }
}

/// Escapes a text for Slack. Otherwise a text could mention all members of a channel.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_are_escaped() {
        assert_eq!(escape("<!channel> a & b"), "&lt;!channel&gt; a &amp; b");
    }
}
