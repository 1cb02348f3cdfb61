//! How messages are worded: by the templates of the SyncAlert, or without.

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
/// Steps a template may take, and 64 times as many bytes of memory.
const FUEL: u64 = 50_000;

/// A message in words.
pub(super) struct Wording {
    /// One line.
    pub title: String,
    /// Lines.
    pub text: String,
}

impl Wording {
    /// A template that cannot be used gives way to the usual words: that something is wrong has to be told.
    pub fn new(alert: &SyncAlert, message: &Message) -> Self {
        let template = alert.spec.template.as_ref();
        let context = context(alert, message);
        let worded = |template: Option<&String>, usual: String| {
            template.and_then(|template| render(template, &context).ok()).unwrap_or(usual)
        };
        let title = worded(template.and_then(|template| template.title.as_ref()), usual_title(alert, message));
        let text = worded(template.and_then(|template| template.text.as_ref()), usual_text(message));
        Self { title: truncate_to(title.trim(), MAX_TITLE), text: cut(&text) }
    }

    /// The message for programs.
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

/// Why a template cannot be used. `None` when it can, for all that can be said without a message.
#[must_use]
pub fn check(template: &Template) -> Option<String> {
    let item = json!({"schedule": "", "type": "", "occurrence": "", "since": "", "message": "", "repeated": false});
    let context = json!({"namespace": "", "name": "", "firing": [item], "resolved": [item]});
    let parts = [("title", &template.title), ("text", &template.text)];
    parts.into_iter().find_map(|(part, template)| {
        let error = render(template.as_ref()?, &context).err()?;
        let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
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

fn usual_title(alert: &SyncAlert, message: &Message) -> String {
    let counts = [(message.firing.len(), "firing"), (message.resolved.len(), "resolved")];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    format!("SyncAlert {}/{}: {counts}", alert.namespace().unwrap_or_default(), alert.name_any())
}

fn usual_text(message: &Message) -> String {
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

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    if end < text.len() { format!("{}\n…", &text[..end]) } else { text.to_owned() }
}
