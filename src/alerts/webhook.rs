//! Sink for webhooks: signed JSON, so that the receiver can verify the sender.

use ring::hmac;
use serde_json::Value;

use super::{
    Notifier,
    client::{PostRequest, parse_url},
};
use crate::{api::syncalert::Webhook, domain::alert::Refusal};

impl Notifier {
    pub(super) async fn webhook(&self, namespace: &str, sink: &Webhook, payload: &Value) -> Result<(), Refusal> {
        let (url, to) = parse_url(&sink.url, "webhook.url")?;
        let key = self.secret(namespace, &sink.hmac_secret_ref, &to).await?;
        let body = payload.to_string();
        let request = PostRequest {
            url,
            content_type: "application/json",
            headers: vec![("x-signature", signature(&key, &body))],
            body,
            ca: self.ca(namespace, sink.ca_secret_ref.as_ref(), &to).await?,
        };
        self.post(namespace, request).await
    }
}

fn signature(key: &[u8], body: &str) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), body.as_bytes());
    tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", "what do ya want for nothing?"), expected);
    }
}
