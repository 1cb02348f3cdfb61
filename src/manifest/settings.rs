//! Settings of the installation that an object needs, and annotations of the Secrets that it names.

use std::collections::HashSet;

use reqwest::Url;

use super::{Object, finding::Report, reconcile::TEMPLATE_SPEC};
use crate::{
    api::{
        HOSTS_ANNOTATION, OPERATIONS_ANNOTATION, SyncAlertSpec, SyncJobSpec,
        source::{SecretKey, Source},
        syncalert::{Sink, SmtpTls},
    },
    domain::{
        destination::Destination,
        egress::{AddressClass, Denied, Egress},
        graphql::{self, Operation, annotation},
    },
    sync::source::egress,
};

const ALLOWED_HOSTS: &str = "--source-allowed-hosts (SOURCE_ALLOWED_HOSTS)";
const ALLOWED_CIDRS: &str = "--source-allowed-cidrs (SOURCE_ALLOWED_CIDRS)";
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
    let Some(to) = check_url(endpoint, &format!("{base}.{kind}.endpoint"), report) else { return };
    let Source { token_secret_ref, headers_from, ca_secret_ref, .. } = &**source;
    let token = token_secret_ref.iter().map(|entry| (format!("{base}.tokenSecretRef"), entry));
    let headers = headers_from.iter().enumerate();
    let headers = headers.map(|(at, header)| (format!("{base}.headersFrom[{at}].secretRef"), &header.secret_ref));
    let sent: Vec<_> = token.chain(headers).collect();
    let query = source.graph_ql.as_ref().map(|graph_ql| graphql::operations(&graph_ql.query));
    check_operations(&query.and_then(Result::ok).unwrap_or_default(), &sent, &base, report);
    check_secrets(sent.into_iter().chain(named_ca(&base, ca_secret_ref.as_ref())), &to, report);
}

/// Reports the annotations that operations other than queries need.
fn check_operations(operations: &[Operation], sent: &[(String, &SecretKey)], base: &str, report: &mut Report<'_>) {
    let Some(other) = operations.iter().find(|operation| **operation != Operation::Query) else { return };
    let needed = format!("{OPERATIONS_ANNOTATION}={}", annotation(&[operations, &[Operation::Query]].concat()));
    if sent.is_empty() {
        let message = format!(
            "the operator sends a {other} only with a Secret that allows it: add tokenSecretRef, and annotate the Secret with {needed}"
        );
        report.warning(&format!("{base}.graphQL.query"), message);
    }
    for (field, SecretKey { name, .. }) in first_references(sent.iter().cloned()) {
        report.warning(&field, format!("Secret {name} must allow a {other}: kubectl annotate secret {name} {needed}"));
    }
}

fn check_alert(spec: &SyncAlertSpec, report: &mut Report<'_>) {
    for (index, sink) in spec.sinks.iter().enumerate() {
        check_sink(sink, &format!("spec.sinks[{index}]"), report);
    }
}

fn check_sink(sink: &Sink, base: &str, report: &mut Report<'_>) {
    if let Some(slack) = &sink.slack {
        let (base, SecretKey { name: secret, key }) = (format!("{base}.slack"), &slack.url_secret_ref);
        let url = (format!("{base}.urlSecretRef"), &slack.url_secret_ref);
        let ca = named_ca(&base, slack.ca_secret_ref.as_ref()).filter(|(_, ca)| ca.name != *secret);
        for (field, SecretKey { name, .. }) in [url].into_iter().chain(ca) {
            let message = format!(
                "Secret {name} must allow the host of the URL in key {key} of Secret {secret}: kubectl annotate secret {name} {HOSTS_ANNOTATION}=HOST"
            );
            report.warning(&field, message);
        }
    }
    if let Some(webhook) = &sink.webhook {
        let base = format!("{base}.webhook");
        if let Some(to) = check_url(&webhook.url, &format!("{base}.url"), report) {
            let key = (format!("{base}.hmacSecretRef"), &webhook.hmac_secret_ref);
            check_secrets([key].into_iter().chain(named_ca(&base, webhook.ca_secret_ref.as_ref())), &to, report);
        }
    }
    if let Some(events) = &sink.cloud_events {
        let base = format!("{base}.cloudEvents");
        if let Some(to) = check_url(&events.url, &format!("{base}.url"), report) {
            let token = events.token_secret_ref.iter().map(|entry| (format!("{base}.tokenSecretRef"), entry));
            check_secrets(token.chain(named_ca(&base, events.ca_secret_ref.as_ref())), &to, report);
        }
    }
    if let Some(smtp) = &sink.smtp {
        let (base, host) = (format!("{base}.smtp"), &smtp.host);
        let class = host.parse().ok().map(AddressClass::classify).filter(|class| *class != AddressClass::Public);
        if class.is_some() || is_private_name(host) {
            report.warning(&format!("{base}.host"), private_host(host, class));
        } else if smtp.tls == SmtpTls::None {
            let message = format!(
                "the operator sends mail without encryption only to hosts that {ALLOWED_HOSTS} names: it must name {host}"
            );
            report.warning(&format!("{base}.tls"), message);
        }
        let user = smtp.username_secret_ref.iter().map(|entry| (format!("{base}.usernameSecretRef"), entry));
        let password = smtp.password_secret_ref.iter().map(|entry| (format!("{base}.passwordSecretRef"), entry));
        let entries = user.chain(password).chain(named_ca(&base, smtp.ca_secret_ref.as_ref()));
        check_secrets(entries, &Destination::of_mail(smtp), report);
    }
}

/// The entry with a CA bundle, and its field.
fn named_ca<'a>(base: &str, entry: Option<&'a SecretKey>) -> impl Iterator<Item = (String, &'a SecretKey)> {
    entry.map(|entry| (format!("{base}.caSecretRef"), entry)).into_iter()
}

/// Reports the setting that a URL needs, and returns the destination that Secrets must allow.
fn check_url(text: &str, field: &str, report: &mut Report<'_>) -> Option<Destination> {
    let url = Url::parse(text.trim()).ok()?;
    let (to, host) = (Destination::of_url(&url)?, url.host_str()?.to_owned());
    match egress::admit(&Egress::default(), &url) {
        Err(Denied::Address(class)) => report.warning(field, private_host(&host, Some(class))),
        Ok(()) | Err(Denied::PlainText) if is_private_name(&host) => report.warning(field, private_host(&host, None)),
        Err(Denied::PlainText) => {
            let message = format!(
                "the operator uses http:// only for hosts that {ALLOWED_HOSTS} names: it must name {host}, or write https://"
            );
            report.warning(field, message);
        }
        Ok(()) => {}
    }
    Some(to)
}

fn private_host(host: &str, class: Option<AddressClass>) -> String {
    if class.is_some_and(AddressClass::needs_network) {
        return format!("the operator connects to {host} only if {ALLOWED_CIDRS} names its network: allow the network");
    }
    format!(
        "the operator connects to hosts outside the internet only if {ALLOWED_HOSTS} names them, or {ALLOWED_CIDRS} their network: allow {host}"
    )
}

fn is_private_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[');
    !is_address && (!host.contains('.') || PRIVATE_DOMAINS.iter().any(|domain| host.ends_with(domain)))
}

/// Reports Secrets that must allow a destination.
fn check_secrets<'a>(
    entries: impl IntoIterator<Item = (String, &'a SecretKey)>,
    to: &Destination,
    report: &mut Report<'_>,
) {
    for (field, SecretKey { name, .. }) in first_references(entries) {
        let message = format!("Secret {name} must allow {to}: kubectl annotate secret {name} {HOSTS_ANNOTATION}={to}");
        report.warning(&field, message);
    }
}

/// The entries without further ones of the same Secret.
fn first_references<'a>(
    entries: impl IntoIterator<Item = (String, &'a SecretKey)>,
) -> impl Iterator<Item = (String, &'a SecretKey)> {
    let mut seen = HashSet::new();
    entries.into_iter().filter(move |(_, entry)| seen.insert(&entry.name))
}
