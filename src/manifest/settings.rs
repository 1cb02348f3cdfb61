//! Settings of the installation that an object needs, and annotations of the Secrets that it names.

use reqwest::Url;

use super::{Object, finding::Report, reconcile::TEMPLATE_SPEC};
use crate::{
    api::{
        HOSTS_ANNOTATION, SyncAlertSpec, SyncJobSpec,
        source::{SecretKey, Source},
        syncalert::{Sink, SmtpTls},
    },
    sync::{Egress, source::egress::Denied},
};

const ALLOWED_HOSTS: &str = "--source-allowed-hosts (SOURCE_ALLOWED_HOSTS)";
/// Endings of host names that networks other than the internet use.
const PRIVATE_DOMAINS: [&str; 7] = [".local", ".localhost", ".internal", ".svc", ".lan", ".home.arpa", ".test"];

/// Reports the settings without which the operator refuses an object.
pub(super) fn check(object: &Object, report: &mut Report<'_>) {
    match object {
        Object::SyncJob(job) => check_job(&job.spec, "spec", report),
        Object::SyncSchedule(schedule) => check_job(&schedule.spec.job_template.spec, TEMPLATE_SPEC, report),
        Object::SyncAlert(alert) => check_alert(&alert.spec, report),
        Object::Other { .. } => {}
    }
}

fn check_job(spec: &SyncJobSpec, base: &str, report: &mut Report<'_>) {
    if let Some(database) = &spec.target.database {
        let message = format!(
            "the operator uses the database {database} only if --allowed-databases (ALLOWED_DATABASES) names it, or MONGODB_DATABASE is {database}"
        );
        report.warning(&format!("{base}.target.database"), message);
    }
    let Some(source) = &spec.source else { return };
    let graph_ql = source.graph_ql.as_ref().map(|source| ("graphQL", &source.endpoint));
    let Some((kind, endpoint)) = graph_ql.or(source.rest.as_ref().map(|source| ("rest", &source.endpoint))) else {
        return;
    };
    let base = format!("{base}.source");
    let Some(host) = check_url(endpoint, &format!("{base}.{kind}.endpoint"), report) else { return };
    let Source { token_secret_ref, headers_from, .. } = &**source;
    let token = token_secret_ref.iter().map(|entry| (format!("{base}.tokenSecretRef"), entry));
    let headers = headers_from.iter().enumerate();
    let headers = headers.map(|(at, header)| (format!("{base}.headersFrom[{at}].secretRef"), &header.secret_ref));
    check_secrets(token.chain(headers), &host, report);
}

fn check_alert(spec: &SyncAlertSpec, report: &mut Report<'_>) {
    for (index, sink) in spec.sinks.iter().enumerate() {
        check_sink(sink, &format!("spec.sinks[{index}]"), report);
    }
}

fn check_sink(sink: &Sink, base: &str, report: &mut Report<'_>) {
    if let Some(slack) = &sink.slack {
        let SecretKey { name, key } = &slack.url_secret_ref;
        let message = format!(
            "Secret {name} must allow the host of the URL in its key {key}: kubectl annotate secret {name} {HOSTS_ANNOTATION}=HOST"
        );
        report.warning(&format!("{base}.slack.urlSecretRef"), message);
    }
    if let Some(webhook) = &sink.webhook {
        let base = format!("{base}.webhook");
        if let Some(host) = check_url(&webhook.url, &format!("{base}.url"), report) {
            check_secrets([(format!("{base}.hmacSecretRef"), &webhook.hmac_secret_ref)], &host, report);
        }
    }
    if let Some(events) = &sink.cloud_events {
        let base = format!("{base}.cloudEvents");
        if let Some(host) = check_url(&events.url, &format!("{base}.url"), report) {
            let token = events.token_secret_ref.iter().map(|entry| (format!("{base}.tokenSecretRef"), entry));
            check_secrets(token, &host, report);
        }
    }
    if let Some(smtp) = &sink.smtp {
        let (base, host) = (format!("{base}.smtp"), &smtp.host);
        let address = host.parse().ok();
        if address.map_or_else(|| is_private_name(host), |address| !Egress::default().allows(address)) {
            report.warning(&format!("{base}.host"), private_host(host));
        } else if smtp.tls == SmtpTls::None {
            let message = format!(
                "the operator sends mail without encryption only to hosts that {ALLOWED_HOSTS} names: it must name {host}"
            );
            report.warning(&format!("{base}.tls"), message);
        }
        let user = smtp.username_secret_ref.iter().map(|entry| (format!("{base}.usernameSecretRef"), entry));
        let password = smtp.password_secret_ref.iter().map(|entry| (format!("{base}.passwordSecretRef"), entry));
        check_secrets(user.chain(password), host, report);
    }
}

/// Reports the setting that a URL needs, and returns its host.
fn check_url(text: &str, field: &str, report: &mut Report<'_>) -> Option<String> {
    let url = Url::parse(text.trim()).ok()?;
    let host = url.host_str()?.to_owned();
    match Egress::default().admit(&url) {
        Err(Denied::Address) => report.warning(field, private_host(&host)),
        Ok(()) | Err(Denied::PlainText) if is_private_name(&host) => report.warning(field, private_host(&host)),
        Err(Denied::PlainText) => {
            let message = format!(
                "the operator uses http:// only for hosts that {ALLOWED_HOSTS} names: it must name {host}, or write https://"
            );
            report.warning(field, message);
        }
        Ok(()) => {}
    }
    Some(host)
}

fn private_host(host: &str) -> String {
    format!(
        "the operator connects to hosts outside the internet only if {ALLOWED_HOSTS} names them, or --source-allowed-cidrs (SOURCE_ALLOWED_CIDRS) their network: allow {host}"
    )
}

fn is_private_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[');
    !is_address && (!host.contains('.') || PRIVATE_DOMAINS.iter().any(|domain| host.ends_with(domain)))
}

/// Reports Secrets that must allow a host, each of them once.
fn check_secrets<'a>(entries: impl IntoIterator<Item = (String, &'a SecretKey)>, host: &str, report: &mut Report<'_>) {
    let mut reported = Vec::new();
    for (field, SecretKey { name, .. }) in entries {
        if !reported.contains(&name) {
            let message =
                format!("Secret {name} must allow {host}: kubectl annotate secret {name} {HOSTS_ANNOTATION}={host}");
            report.warning(&field, message);
            reported.push(name);
        }
    }
}
