//! Builders for the CEL rules that several fields share.

use kube::core::Rule;

/// Rule of a duration between `min` and `max` (both Go durations). `field` is named in the message.
pub(super) fn duration(field: &str, min: &str, max: &str, example: &str) -> Rule {
    Rule::new(format!(
        "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"
    ))
    .message(&*format!("{field} must be a duration from {min} to {max}, such as {example}"))
}

/// Rule of a duration, as [`duration`], in whole seconds: slot names count seconds.
pub(super) fn whole_seconds(field: &str, min: &str, max: &str, example: &str) -> Rule {
    Rule::new(format!(
        "self.matches('^([0-9]+(s|m|h))+$') && duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"
    ))
    .message(&*format!("{field} must be a duration in whole seconds from {min} to {max}, such as {example}"))
}

/// Rule of `requests` in the period `per`, of which there is at least one per minute. `field` is named in the message.
pub(super) fn at_least_each_minute(field: &str) -> Rule {
    Rule::new(
        "!self.per.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') || duration(self.per).getSeconds() <= self.requests * 60",
    )
    .message(&*format!("{field} allows less than one request per minute: raise requests, or lower per"))
}

/// Rule of an integer between `min` and `max`.
pub(super) fn range(field: &str, min: i64, max: i64) -> Rule {
    Rule::new(format!("self >= {min} && self <= {max}")).message(&*format!("{field} must be from {min} to {max}"))
}

/// Rule of a JSON pointer (RFC 6901). `field` is named in the message.
pub(super) fn pointer(field: &str, example: &str) -> Rule {
    Rule::new("self.matches('^(/([^/~]|~[01])*)*$')").message(&*format!(
        "{field} must be a JSON pointer, which starts with / and has ~ only as ~0 or ~1, such as {example}"
    ))
}

/// Rule of a placeholder that `rest.endpoint` must have when, and only when, `holds` is true. `setting` describes
/// that condition.
pub(super) fn placeholder(name: &str, setting: &str, holds: &str) -> Rule {
    Rule::new(format!("!has(self.rest) || self.rest.endpoint.contains('{{{name}}}') == ({holds})"))
        .message(&*format!(
            "source.rest.endpoint with {{{name}}} and {setting} go together: set both, or remove {{{name}}}"
        ))
        .field_path(".rest.endpoint")
}

/// Rule of `batching: Pages`, which only full runs may have.
pub(super) fn full() -> Rule {
    Rule::new("!has(self.source) || self.source.batching != 'Pages' || self.syncType == 'Full'")
        .message("source.batching Pages needs syncType Full: set it, or use PerBatch or PerUser")
        .field_path(".source.batching")
}

/// Rule of an IANA name of a time zone. `field` is named in the message.
pub(super) fn time_zone(field: &str) -> Rule {
    Rule::new(r"self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$') && self != 'Local'")
        .message(&*format!("{field} must be an IANA name, such as Europe/Berlin"))
}

/// Rule of an http or https URL without user, password and fragment. `field` is named in the message.
pub(super) fn url(field: &str, example: &str) -> Rule {
    Rule::new("self.matches('^https?://[^/?#@ ]+([/?][^# ]*)?$')").message(&*format!(
        "{field} must be an http or https URL without user, password and fragment, such as {example}: secrets belong into Secrets"
    ))
}

/// Rule of a field of `spec` that cannot be changed after the object was created. For fields that always have a value.
pub(super) fn immutable(field: &str) -> Rule {
    immutable_rule(field, &format!("self.spec.{field} == oldSelf.spec.{field}"))
}

/// Rule as [`immutable`], for an optional field.
pub(super) fn immutable_optional(field: &str) -> Rule {
    immutable_rule(
        field,
        &format!(
            "has(self.spec.{field}) == has(oldSelf.spec.{field}) && (!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
        ),
    )
}

fn immutable_rule(field: &str, rule: &str) -> Rule {
    Rule::new(rule).message(&*format!("spec.{field} cannot be changed: delete this SyncJob and create a new one"))
}
