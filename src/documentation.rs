//! Checks what the documentation says about the code.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::telemetry::metrics::{Metrics, tests::everything};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn each_test_that_is_documented_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = read("docs/contributing/testing.md");
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let named: Vec<_> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 20, "the table was found: {named:?}");
    for (file, test) in named {
        let sources = ["integration", "faults"].map(|folder| root.join(format!("tests/{folder}/{file}.rs")));
        let source = sources.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        assert!(source.contains(&format!("async fn {test}(")), "{file}::{test}");
    }
}

/// A metric with its labels, its type and its unit.
type Shown = (String, String, String);

/// What a process shows.
fn shown(text: &str) -> BTreeSet<Shown> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let read = |(name, kind): (&str, &str)| {
        let (total, sample) = match kind {
            "counter" => ("_total", "_total"),
            "histogram" => ("", "_count"),
            _ => ("", ""),
        };
        let sample = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{sample}"))).unwrap();
        let labels = sample.strip_prefix('{').and_then(|labels| labels.split_once('}'));
        let labels =
            labels.map(|(labels, _)| labels.split(',').map(|label| label.split('=').next().unwrap()).collect());
        let labels = labels.map(|labels: Vec<_>| format!("{{{}}}", labels.join(","))).unwrap_or_default();
        let unit = text.lines().find_map(|line| line.strip_prefix(&format!("# UNIT {name} "))).unwrap_or_default();
        (format!("{name}{total}{labels}"), kind.to_owned(), unit.to_owned())
    };
    types.map(read).collect()
}

/// The rows of a page that are about metrics.
fn described(page: &str) -> Vec<Shown> {
    let rows = page.lines().filter(|line| line.starts_with("| `sync_"));
    let read = |row: &str| {
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().trim_matches('`').to_owned());
        (cells.next().unwrap(), cells.next().unwrap(), cells.next().unwrap())
    };
    rows.map(read).collect()
}

#[test]
fn each_metric_is_documented_with_the_processes_that_show_it() {
    let page = read("docs/reference/metrics.md");
    let all = everything();
    let parts = [
        ("Every process", Metrics { queue: all.queue, ..Metrics::default() }),
        ("Controllers", Metrics { leading: all.leading, schedules: all.schedules, ..Metrics::default() }),
        ("Workers", Metrics { workers: all.workers, ..Metrics::default() }),
        ("HTTP calls", Metrics { serving: true, ..Metrics::default() }),
    ];
    for (title, part) in parts {
        let section = page.split("\n## ").find(|section| section.starts_with(title)).unwrap();
        assert_eq!(described(section).into_iter().collect::<BTreeSet<_>>(), shown(&part.encode()), "{title}");
    }
    assert_eq!(described(&page).len(), shown(&all.encode()).len(), "each stands there once");
}

#[test]
fn what_to_do_about_each_alert_is_documented() {
    let rules = read("charts/sync-operator/rules/sync-operator.yaml");
    let rules: Value = serde_yaml_ng::from_str(&rules).unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let mut alerts = BTreeSet::new();
    for rule in rules {
        let (alert, annotations) = (rule["alert"].as_str().unwrap(), &rule["annotations"]);
        let anchor = format!("docs/guides/observability.md#{}", alert.to_lowercase());
        assert_eq!(annotations["runbook_url"], anchor.as_str());
        assert!(annotations["summary"].is_string() && annotations["description"].is_string(), "{alert}");
        alerts.insert(alert.to_owned());
    }
    let page = read("docs/guides/observability.md");
    let titles = page.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned);
    assert_eq!(titles.collect::<BTreeSet<_>>(), alerts);
}
