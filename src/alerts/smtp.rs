//! Sink for e-mail.

use std::net::SocketAddr;

use lettre::{
    Message as Mail,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters},
        extension::ClientId,
    },
};

use super::{Notifier, client::not_allowed, configuration_error, no_answer, templates::RenderedMessage, unavailable};
use crate::{
    api::syncalert::{Smtp, SmtpTls},
    connection_error,
    domain::{
        alert::{Message, Refusal},
        destination::Destination,
        egress::Denied,
    },
    sync::source::egress,
};

impl Notifier {
    pub(super) async fn smtp(
        &self,
        namespace: &str,
        sink: &Smtp,
        message: &Message,
        rendered: &RenderedMessage,
    ) -> Result<(), Refusal> {
        let mail = compose(sink, message, rendered)?;
        let (addresses, to) = (self.addresses(namespace, sink).await?, Destination::of_mail(sink));
        let tls = tls(&sink.host, self.ca(namespace, sink.ca_secret_ref.as_ref(), &to).await?)?;
        let login = match (&sink.username_secret_ref, &sink.password_secret_ref) {
            (Some(user), Some(password)) => {
                let text = |value| {
                    String::from_utf8(value).map_err(|_| configuration_error("its user or password is no text"))
                };
                let user = text(self.secret(namespace, user, &to).await?)?;
                let password = text(self.secret(namespace, password, &to).await?)?;
                Some(Credentials::new(user.trim_end().to_owned(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
            _ => None,
        };
        let (hello, at_once) = (ClientId::default(), (sink.tls == SmtpTls::Tls).then(|| tls.clone()));
        let connection = AsyncSmtpConnection::connect_tokio1(&addresses[..], None, &hello, at_once, None);
        let mut connection = connection.await.map_err(|error| refused(&error))?;
        let sent = async {
            if sink.tls == SmtpTls::StartTls {
                connection.starttls(tls, &hello).await?;
            }
            if let Some(login) = &login {
                connection.auth(&[Mechanism::Plain, Mechanism::Login], login).await?;
            }
            connection.send(mail.envelope(), &mail.formatted()).await
        };
        sent.await.map_err(|error| refused(&error))?;
        // The server has accepted the mail.
        connection.quit().await.ok();
        Ok(())
    }

    async fn addresses(&self, namespace: &str, sink: &Smtp) -> Result<Vec<SocketAddr>, Refusal> {
        let (egress, is_encrypted) = (self.policy.egress(namespace).get(), sink.tls != SmtpTls::None);
        let found = egress::resolve(&egress, &sink.host, sink.port_or_default(), is_encrypted).await;
        let found = found.map_err(|_| unavailable("it could not be reached: its host name is not known"))?;
        found.map_err(|denied| match denied {
            Denied::Address(_) => not_allowed(denied),
            Denied::PlainText => configuration_error(
                "tls None needs a host that --source-allowed-hosts names, or addresses of the policy",
            ),
        })
    }
}

fn tls(host: &str, ca: Option<Vec<u8>>) -> Result<TlsParameters, Refusal> {
    let unusable = |_| configuration_error("caSecretRef holds no usable certificate in PEM");
    let mut parameters = TlsParameters::builder(host.to_owned());
    if let Some(pem) = ca {
        let authorities = Certificate::from_pem(&pem).map_err(unusable)?;
        parameters = parameters.certificate_store(CertificateStore::None).add_root_certificate(authorities);
    }
    parameters.build_rustls().map_err(unusable)
}

fn compose(sink: &Smtp, message: &Message, rendered: &RenderedMessage) -> Result<Mail, Refusal> {
    let address = |text: &String| {
        text.parse::<Mailbox>().map_err(|_| configuration_error("an address in from or to is not valid: correct it"))
    };
    let from = address(&sink.from)?;
    // A repeated mail has the same id, so that servers may drop one of the two.
    let id = format!("<{}@{}>", message.id, from.email.domain());
    let mut mail = Mail::builder().message_id(Some(id)).from(from).subject(&rendered.title);
    for to in &sink.to {
        mail = mail.to(address(to)?);
    }
    mail.header(ContentType::TEXT_PLAIN)
        .body(rendered.text.clone())
        .map_err(|_| configuration_error("its message is not a valid mail: check from and to"))
}

fn refused(error: &lettre::transport::smtp::Error) -> Refusal {
    if let Some(code) = error.status() {
        let code = code.to_string();
        return if !error.is_permanent() {
            unavailable(format!("it answered with {code}"))
        } else if matches!(code.as_str(), "530" | "534" | "535" | "538") {
            configuration_error(format!("it refuses the login with {code}: check its user and password"))
        } else {
            configuration_error(format!("it refuses the mail with {code}: check from and to"))
        };
    }
    if error.is_client() {
        return configuration_error("it does not support the requested encryption or login: check tls and the Secrets");
    }
    let mut causes = String::new();
    let mut cause = Some(error as &dyn std::error::Error);
    while let Some(inner) = cause {
        causes += &format!("{inner}; ");
        cause = inner.source();
    }
    match connection_error::known_cause(&causes) {
        Some(cause) => unavailable(format!("it could not be reached: {cause}")),
        None => no_answer("the connection to it was lost"),
    }
}
