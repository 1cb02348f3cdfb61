//! Rendering of messages, from the templates of a SyncAlert or the default ones.

use std::fmt::Write as _;

use kube::ResourceExt;
use minijinja::{Environment, UndefinedBehavior, filters};
use serde_json::{Value, json};

use crate::{
    api::{SyncAlert, syncalert::Template, truncate_to},
    domain::alert::{Item, Message},
};

/// Longest title and text, in bytes.
const MAX_TITLE: usize = 200;
const MAX_TEXT: usize = 16 << 10;
/// Largest number of steps of a template, and a 64th of its memory in bytes.
const FUEL: u64 = 50_000;

/// Title and text of a message.
pub(super) struct RenderedMessage {
    /// Title, in one line.
    pub title: String,
    /// Text, in one or more lines.
    pub text: String,
}

impl RenderedMessage {
    /// Renders a message. The default text replaces a template that cannot be used, so that the sink is notified in any
    /// case.
    pub fn new(alert: &SyncAlert, message: &Message) -> Self {
        let template = alert.spec.template.as_ref();
        let context = context(alert, message);
        let rendered = |template: Option<&String>, default: String| {
            template.and_then(|template| render(template, &context).ok()).unwrap_or(default)
        };
        let title = rendered(template.and_then(|template| template.title.as_ref()), default_title(alert, message));
        let text = rendered(template.and_then(|template| template.text.as_ref()), default_text(message));
        Self { title: truncate_to(title.trim(), MAX_TITLE), text: truncate_text(&text) }
    }

    /// Payload of the message, for programs.
    pub fn payload(&self, alert: &SyncAlert, message: &Message) -> Value {
        let mut payload = context(alert, message);
        payload["id"] = Value::from(message.id.as_str());
        payload["title"] = Value::from(self.title.as_str());
        payload["text"] = Value::from(self.text.as_str());
        payload
    }
}

fn context(alert: &SyncAlert, message: &Message) -> Value {
    let (namespace, name) = (alert.namespace(), alert.name_any());
    json!({"namespace": namespace, "name": name, "firing": message.firing, "resolved": message.resolved})
}

/// Mistake in a template. `None`: the template renders a message with one alert.
#[must_use]
pub fn check_template(template: &Template) -> Option<String> {
    let item = json!({"schedule": "", "type": "", "occurrence": "", "since": "", "message": "", "repeated": false});
    let context = json!({"namespace": "", "name": "", "firing": [item], "resolved": [item]});
    let parts = [("title", &template.title), ("text", &template.text)];
    parts.into_iter().find_map(|(part, template)| {
        let error = render(template.as_ref()?, &context).err()?;
        let line = error.line().map(|line| format!(" at line {line}")).unwrap_or_default();
        Some(format!("{part}: {}{line}", error.kind()))
    })
}

fn render(template: &str, context: &Value) -> Result<String, minijinja::Error> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(50);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("join", filters::join);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("upper", filters::upper);
    environment.render_str(template, minijinja::value::Serde(context))
}

fn default_title(alert: &SyncAlert, message: &Message) -> String {
    let counts = [(message.firing.len(), "firing"), (message.resolved.len(), "resolved")];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    format!("SyncAlert {}/{}: {counts}", alert.namespace().unwrap_or_default(), alert.name_any())
}

fn default_text(message: &Message) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for Item { schedule, type_, since, message, repeated, .. } in &message.firing {
        let again = if *repeated { ", still" } else { "" };
        writeln!(text, "FIRING {type_:?} {schedule} (since {since}{again}): {message}").ok();
    }
    for Item { schedule, type_, since, until, .. } in &message.resolved {
        let until = until.map(|until| until.to_string()).unwrap_or_default();
        writeln!(text, "RESOLVED {type_:?} {schedule} (from {since} to {until})").ok();
    }
    text
}

fn truncate_text(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    if end < text.len() { format!("{}\n…", &text[..end]) } else { text.to_owned() }
}
