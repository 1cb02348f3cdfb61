//! Links to the logs of a run: a configured address with placeholders for the run.

use std::str::FromStr;

use jiff::Timestamp;

use crate::http::job_view::JobDetails;

/// An address with placeholders for the values of a run, such as
/// `https://logs.example.com/?q={uid}&from={from}&to={to}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsUrl(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(Placeholder),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placeholder {
    Uid,
    Namespace,
    Name,
    Schedule,
    Worker,
    Pod,
    From,
    To,
}

const PLACEHOLDERS: [(&str, Placeholder); 8] = [
    ("uid", Placeholder::Uid),
    ("namespace", Placeholder::Namespace),
    ("name", Placeholder::Name),
    ("schedule", Placeholder::Schedule),
    ("worker", Placeholder::Worker),
    ("pod", Placeholder::Pod),
    ("from", Placeholder::From),
    ("to", Placeholder::To),
];

/// The address of logs cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogsUrlError {
    /// Browsers would not go there, or would run it.
    #[error("it must begin with https:// or http://")]
    Scheme,
    /// A brace without a known placeholder.
    #[error(
        "{0:?} is none of {{uid}}, {{namespace}}, {{name}}, {{schedule}}, {{worker}}, {{pod}}, {{from}} and {{to}}; write a brace of the address itself as %7B or %7D"
    )]
    Placeholder(String),
}

impl FromStr for LogsUrl {
    type Err = LogsUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.starts_with("https://") && !text.starts_with("http://") {
            return Err(LogsUrlError::Scheme);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(brace) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(brace);
            let end = from.find('}').filter(|_| from.starts_with('{'));
            let name = end.map_or(from, |end| &from[..=end]);
            let placeholder = PLACEHOLDERS
                .iter()
                .find(|(known, _)| name.strip_prefix('{').and_then(|name| name.strip_suffix('}')) == Some(known));
            let (_, placeholder) = placeholder.ok_or_else(|| LogsUrlError::Placeholder(name.to_owned()))?;
            parts.extend([Part::Text(before.to_owned()), Part::Placeholder(*placeholder)]);
            rest = &from[name.len()..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }
}

impl LogsUrl {
    /// The address of a run's logs. Values are percent-encoded, so a value cannot change another part of the address.
    pub(super) fn url_for(&self, run: &JobDetails, now: Timestamp) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Placeholder(placeholder) => {
                let value = placeholder.value_for(run, now);
                askama::filters::urlencode_strict(&value).map(|value| value.to_string()).unwrap_or_default()
            }
        };
        self.0.iter().map(text).collect()
    }
}

impl Placeholder {
    fn value_for(self, run: &JobDetails, now: Timestamp) -> String {
        let job = &run.job;
        let worker = run.worker.as_deref().unwrap_or_default();
        match self {
            Self::Uid => job.uid.clone(),
            Self::Namespace => job.namespace.clone(),
            Self::Name => job.name.clone(),
            Self::Schedule => job.schedule.clone().unwrap_or_default(),
            Self::Worker => worker.to_owned(),
            // A worker's id is the name of its pod and a random number.
            Self::Pod => worker.rsplit_once('-').map_or(worker, |(pod, _)| pod).to_owned(),
            Self::From => milliseconds(job.created_at.unwrap_or(now)),
            Self::To => milliseconds(job.finished_at.unwrap_or(now)),
        }
    }
}

fn milliseconds(at: Timestamp) -> String {
    at.as_millisecond().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::json;

    fn run() -> JobDetails {
        JobDetails::from(&fixtures::job(json!({
            "metadata": {"name": "users-1", "namespace": "a", "uid": "1-2-3", "creationTimestamp": "2026-11-25T10:00:00Z",
                         "labels": {"sync.codex.dev/schedule": "users"}},
            "status": {"worker": "pod-7f&x=1-0badcafe", "completionTime": "2026-11-25T10:00:30Z"},
        })))
    }

    #[test]
    fn fields_of_a_run_are_encoded() {
        let now = "2026-11-25T11:00:00Z".parse().unwrap();
        for (template, expected) in [
            ("https://logs/?uid={uid}&pod={pod}&to=", "https://logs/?uid=1-2-3&pod=pod-7f%26x%3D1&to="),
            (
                "http://logs/{namespace}/{name}/{schedule}?w={worker}",
                "http://logs/a/users-1/users?w=pod-7f%26x%3D1-0badcafe",
            ),
            ("https://logs/?from={from}&to={to}", "https://logs/?from=1795600800000&to=1795600830000"),
            ("https://logs/?q=%7Bpod%7D#top", "https://logs/?q=%7Bpod%7D#top"),
        ] {
            assert_eq!(template.parse::<LogsUrl>().unwrap().url_for(&run(), now), expected);
        }
        let unfinished = JobDetails { job: crate::http::job_view::Job { finished_at: None, ..run().job }, ..run() };
        assert_eq!(
            "https://logs/{to}".parse::<LogsUrl>().unwrap().url_for(&unfinished, now),
            "https://logs/1795604400000"
        );
    }

    #[test]
    fn unknown_placeholders_are_refused() {
        for text in ["", "logs", "javascript:alert({uid})", "//logs/{uid}", "/logs"] {
            assert_eq!(text.parse::<LogsUrl>(), Err(LogsUrlError::Scheme), "{text}");
        }
        for (text, placeholder) in [
            ("https://a/{user}", "{user}"),
            ("https://a/{uid", "{uid"),
            ("https://a/}{uid}", "}{uid}"),
            ("https://a/{}", "{}"),
        ] {
            assert_eq!(text.parse::<LogsUrl>(), Err(LogsUrlError::Placeholder(placeholder.to_owned())), "{text}");
        }
    }
}
