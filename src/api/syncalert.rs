//! `SyncAlert`: notifications about problems of schedules.

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time},
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GoDuration, conditions, rules, source::SecretKey};

/// Alerts about schedules: the rules, and the sinks that are notified.
#[allow(clippy::duplicated_attributes, reason = "columns of one type")]
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sync.codex.dev",
    version = "v1alpha1",
    kind = "SyncAlert",
    plural = "syncalerts",
    shortname = "salert",
    category = "sync",
    namespaced,
    status = "SyncAlertStatus",
    derive = "PartialEq",
    doc = "A SyncAlert notifies people or programs of problems of the SyncSchedules in its namespace, and of the end of these problems.",
    printcolumn(
        name = "Firing",
        type_ = "integer",
        json_path = ".status.firing",
        description = "Number of current problems"
    ),
    printcolumn(
        name = "Last Sent",
        type_ = "date",
        json_path = ".status.lastSentTime",
        description = "Time since a message was last delivered"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SyncAlertSpec {
    /// Labels of the SyncSchedules that are watched. Default: all SyncSchedules of the namespace.
    #[serde(default)]
    pub selector: LabelSelector,

    /// Rules of the alert.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(min = 1, max = 7))]
    pub when: Vec<AlertRule>,

    /// Sinks that are notified.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = 8))]
    pub sinks: Vec<Sink>,

    /// Time for which a message waits for more alerts, 0s to 1h. A problem that ends within this time is not reported.
    #[serde(default = "default_group_window")]
    #[x_kube(validation = rules::duration("groupWindow", "0s", "1h", "30s"))]
    pub group_window: GoDuration,

    /// Time after which a problem that lasts is reported again, 10s to 168h.
    #[serde(default = "default_repeat_interval")]
    #[x_kube(validation = rules::duration("repeatInterval", "10s", "168h", "4h"))]
    pub repeat_interval: GoDuration,

    /// Notification of the end of a problem. Only sinks that were notified of the problem are notified of its end.
    #[serde(default = "default_send_resolved")]
    pub send_resolved: bool,

    /// Templates of messages. Default: a line for each problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
}

impl Default for SyncAlertSpec {
    fn default() -> Self {
        Self {
            selector: LabelSelector::default(),
            when: Vec::new(),
            sinks: Vec::new(),
            group_window: default_group_window(),
            repeat_interval: default_repeat_interval(),
            send_resolved: default_send_resolved(),
            template: None,
        }
    }
}

impl SyncAlert {
    /// The CustomResourceDefinition.
    #[must_use]
    pub fn definition() -> CustomResourceDefinition {
        conditions::with_unknown_ready(Self::crd())
    }
}

/// Condition of a SyncSchedule that the alert reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'FailedDocumentsAbove') == has(self.percent)").message("when[].percent and type FailedDocumentsAbove go together: set both, or remove percent"),
    validation = Rule::new("(self.type == 'NoSuccessFor') == has(self.duration)").message("when[].duration and type NoSuccessFor go together: set both, or remove duration")
)]
pub struct AlertRule {
    /// Type of the alert.
    #[serde(rename = "type")]
    pub type_: AlertType,
    /// For FailedDocumentsAbove: percentage of the documents that a run handled, 0 to 99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::range("when[].percent", 0, 99))]
    pub percent: Option<i32>,
    /// For NoSuccessFor: time since a run last completed, 1s to 8760h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration("when[].duration", "1s", "8760h", "2h"))]
    pub duration: Option<GoDuration>,
}

/// Type of an alert about a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum AlertType {
    /// The run that ended last failed. Resolved when a run completes.
    RunFailed,
    /// A run was recovered from a lost worker. Reported once, when the run has ended.
    RunRecovered,
    /// A slot was skipped. Reported once.
    RunSkipped,
    /// A run waits for an approval of the changes that its guard holds. Resolved when no run waits.
    RunHeld,
    /// The schedule is Stalled and starts no runs: its spec is invalid, or too many runs in a row have failed. Resolved
    /// when the schedule starts runs again.
    ScheduleStalled,
    /// More than `percent` of the documents of the last run were refused. Resolved when fewer documents are refused.
    // A release before 0.2 called it `FailedUsersAbove`: one stored SyncAlert that cannot be read would stop the watch
    // of all.
    #[serde(alias = "FailedUsersAbove")]
    FailedDocumentsAbove,
    /// No run completed for `duration`, in which the schedule was not suspended. Resolved when a run completes.
    NoSuccessFor,
    /// A user requested a test with an annotation.
    #[schemars(skip)]
    Test,
}

/// Receiver of messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.slack), has(self.smtp), has(self.webhook), has(self.cloudEvents)].filter(set, set).size() == 1").message("sinks[] needs exactly one of slack, smtp, webhook and cloudEvents"))]
pub struct Sink {
    /// Name of the sink in the status.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')").message("sinks[].name must be lower-case letters, digits and -, such as on-call"))]
    #[schemars(length(max = 63))]
    pub name: String,
    /// An incoming webhook of Slack, or of a service that accepts the messages of Slack webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<Slack>,
    /// A mail server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<Smtp>,
    /// A URL that receives signed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// A URL that receives CloudEvents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_events: Option<CloudEvents>,
}

/// An incoming webhook of Slack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slack {
    /// Secret of the same namespace with the URL, which is also the credential. An annotation of the Secret must name
    /// the destination that may receive it, as `[scheme://]host[:port][/path]`: `kubectl annotate secret NAME
    /// sync.codex.dev/hosts=hooks.slack.com`. Without a scheme, an item means encryption at the default port.
    pub url_secret_ref: SecretKey,
    /// Secret with the CA bundle (PEM) that verifies the server; replaces the built-in roots. The Secret needs an
    /// annotation that allows the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.usernameSecretRef) == has(self.passwordSecretRef)").message("sinks[].smtp.usernameSecretRef and passwordSecretRef go together: set both, or neither"))]
pub struct Smtp {
    /// Host of the mail server, such as `smtp.example.com`. Addresses of private networks are allowed only by the
    /// operator's `--source-allowed-hosts`, `--source-allowed-cidrs` or policy.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9.-]+$')").message("sinks[].smtp.host must be a host name, such as smtp.example.com"))]
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port of the mail server. Default: 587, and 465 with `tls: Tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::range("sinks[].smtp.port", 1, 65535))]
    pub port: Option<i32>,
    /// Encryption of the connection. StartTls begins in plain text and then must be encrypted. Tls is encrypted from
    /// the start. None is not encrypted, and is allowed only for hosts that the operator's `--source-allowed-hosts`,
    /// `--source-allowed-cidrs` or policy name.
    #[serde(default)]
    pub tls: SmtpTls,
    /// Sender of the mail, such as `Sync <sync@example.com>`.
    #[schemars(length(min = 3, max = 320))]
    pub from: String,
    /// Recipients of the mail.
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 320)))]
    pub to: Vec<String>,
    /// Secret of the same namespace with the name of the user. The Secret needs the annotation that `passwordSecretRef`
    /// describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_secret_ref: Option<SecretKey>,
    /// Secret of the same namespace with the password. An annotation of the Secret must name the server that may
    /// receive it: `kubectl annotate secret NAME sync.codex.dev/hosts=smtp.example.com`. Without a scheme, an item means
    /// encryption at port 465 or 587. With `tls: None`, its scheme must be `smtp://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKey>,
    /// Secret with the CA bundle (PEM) that verifies the server; replaces the built-in roots. The Secret needs an
    /// annotation that allows the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

impl Smtp {
    /// Port of the mail server, or the default port of its encryption.
    #[must_use]
    pub fn port_or_default(&self) -> u16 {
        let default = if self.tls == SmtpTls::Tls { 465 } else { 587 };
        self.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(default)
    }
}

/// Encryption of the connection to a mail server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SmtpTls {
    /// Encryption after the command STARTTLS.
    #[default]
    StartTls,
    /// TLS from the start.
    Tls,
    /// No encryption.
    None,
}

/// A URL that receives signed JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Address that receives the JSON. Addresses of private networks, and `http://`, are allowed only by the
    /// operator's `--source-allowed-hosts`, `--source-allowed-cidrs` or policy. Redirects are not followed.
    #[x_kube(validation = rules::url("sinks[].webhook.url", "https://alerts.example.com/hook"))]
    #[schemars(length(max = 1024))]
    pub url: String,
    /// Secret of the same namespace with the key that messages are signed with: `X-Signature` is `sha256=` and the
    /// HMAC-SHA256 of the body, in hexadecimal. An annotation of the Secret must name the destination:
    /// `kubectl annotate secret NAME sync.codex.dev/hosts=alerts.example.com`.
    pub hmac_secret_ref: SecretKey,
    /// Secret with the CA bundle (PEM) that verifies the server; replaces the built-in roots. The Secret needs an
    /// annotation that allows the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// A URL that receives CloudEvents 1.0, as JSON in structured mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudEvents {
    /// Address that receives the events. The rules for addresses are those of webhooks.
    #[x_kube(validation = rules::url("sinks[].cloudEvents.url", "https://broker.example.com/default"))]
    #[schemars(length(max = 1024))]
    pub url: String,
    /// Secret of the same namespace with the token that is sent as `Authorization: Bearer`. An annotation of the
    /// Secret must name the destination: `kubectl annotate secret NAME sync.codex.dev/hosts=broker.example.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
    /// Secret with the CA bundle (PEM) that verifies the server; replaces the built-in roots. The Secret needs an
    /// annotation that allows the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// Templates of messages, in the language of Jinja templates: values, filters (default, first, join, length, lower,
/// upper), `if`, `for` and `set`. Templates cannot include files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Template of the title: the subject of a mail, and the first line of other messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub title: Option<String>,
    /// Template of the text below the title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub text: Option<String>,
}

/// The alerts of a SyncAlert, and the state of its sinks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncAlertStatus {
    /// Value of `metadata.generation` for which this status was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, and Stalled while it is true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of current problems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firing: Option<i32>,
    /// Time of the last delivered message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sent_time: Option<Time>,
    /// Status of each sink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sinks: Vec<SinkStatus>,
    /// The first 30 alerts, with the sinks that were notified of each. Redis has all alerts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<Alert>,
    /// Token of the test that was handled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_test: Option<String>,
    /// Number of changes of the status, by which the newer of this status and the one in Redis is found.
    #[serde(default)]
    pub revision: i64,
}

/// Status of a sink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// Name of the sink.
    pub name: String,
    /// Conditions: Ready is True when the last message was delivered. Absent before the first message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Time of the last message that was delivered to the sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sent_time: Option<Time>,
    /// Time of the last message that could not be delivered to the sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_time: Option<Time>,
    /// Reason of the last failed delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Number of tries that failed since the last delivery.
    #[serde(default)]
    pub failed_tries: i32,
    /// Time before which the sink is not tried again. Absent when the last delivery succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_time: Option<Time>,
}

/// Problem or incident of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Name of the SyncSchedule. Empty for a test.
    pub schedule: String,
    /// Type of the alert.
    #[serde(rename = "type")]
    #[schemars(with = "String")]
    pub type_: AlertType,
    /// SyncJob, slot or time at which the problem began. With `schedule` and `type`, it identifies the alert.
    pub occurrence: String,
    /// Time at which the problem began.
    pub since: Time,
    /// Time at which the controller noticed the problem.
    pub noticed: Time,
    /// Time at which the problem ended. For an incident that is reported once, time at which all sinks were notified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Time>,
    /// Description of the problem, as a sentence.
    pub message: String,
    /// The sinks that were notified.
    // Releases before 0.2 called the field `told`, and Redis may have a status from them.
    #[serde(default, alias = "told", skip_serializing_if = "Vec::is_empty")]
    pub notified: Vec<Notification>,
}

/// A sink that was notified of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Name of the sink.
    pub sink: String,
    /// Time of the last notification.
    pub time: Time,
    /// True when the sink was also notified that the problem is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resolved: bool,
    /// True when a message was sent, and it is not known whether it arrived. Only in Redis.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub unsure: bool,
}

fn default_group_window() -> GoDuration {
    GoDuration::new("30s")
}
fn default_repeat_interval() -> GoDuration {
    GoDuration::new("4h")
}
fn default_send_resolved() -> bool {
    true
}
