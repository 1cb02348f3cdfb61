//! Tests that compare the documentation with the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

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
        let sources =
            ["integration/", "integration/faults/", ""].map(|folder| root.join(format!("tests/{folder}{file}.rs")));
        let source = sources.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        assert!(source.contains(&format!("fn {test}(")), "{file}::{test}");
    }
}

/// A metric with its labels, its type and its unit.
type Shown = (String, String, String);

/// Metrics of a process.
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
        ("Policy file", Metrics { policy_invalid: all.policy_invalid, ..Metrics::default() }),
        ("HTTP calls", Metrics { serving: true, ..Metrics::default() }),
    ];
    for (title, part) in parts {
        let section = page.split("\n## ").find(|section| section.starts_with(title)).unwrap();
        assert_eq!(described(section).into_iter().collect::<BTreeSet<_>>(), shown(&part.encode()), "{title}");
    }
    assert_eq!(described(&page).len(), shown(&all.encode()).len(), "each metric is listed once");
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

/// The page that lists each field of the three kinds.
const API_REFERENCE: &str = "docs/reference/api.md";
/// Path of the field whose own fields are those of another kind.
const TEMPLATE: &str = "SyncSchedule.spec.jobTemplate.spec";

/// Words of a text. A code span is one word, because a line that begins with a part of it may be a list item.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_code = false;
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if is_code => *last = format!("{last} {word}"),
            _ => words.push(word.to_owned()),
        }
        is_code ^= word.matches('`').count() % 2 == 1;
    }
    words
}

/// A text in lines of at most 100 columns, of which all but the first begin with `indent`.
fn wrap(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in words(text) {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            line.push_str(&word);
        } else if indent.len() + line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(word);
        } else {
            line.push(' ');
            line.push_str(&word);
        }
    }
    lines.join(&format!("\n{indent}"))
}

/// Type of a field, in words.
fn type_of(schema: &Value) -> String {
    match schema["type"].as_str() {
        _ if schema["x-kubernetes-int-or-string"] == true => "integer or string".to_owned(),
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        name => name.unwrap_or("any").to_owned(),
    }
}

/// Type, default and limits of a field. The default of an object is that of its fields.
fn facts(schema: &Value, is_required: bool) -> String {
    let text = |value: &Value| format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let mut facts = vec![type_of(schema)];
    if is_required {
        facts.push("required".to_owned());
    }
    if let Some(default) = schema.get("default").filter(|default| !default.is_object()) {
        facts.push(format!("default {}", text(default)));
    }
    if let Some(values) = schema["enum"].as_array().or_else(|| schema["items"]["enum"].as_array()) {
        let values: Vec<_> = values.iter().filter(|value| !value.is_null()).map(text).collect();
        facts.push(format!("one of {}", values.join(", ")));
    }
    for (key, bound, unit) in [
        ("minimum", "at least", ""),
        ("maximum", "at most", ""),
        ("minLength", "at least", " characters"),
        ("maxLength", "at most", " characters"),
        ("minItems", "at least", " items"),
        ("maxItems", "at most", " items"),
    ] {
        if let Some(limit) = schema.get(key) {
            facts.push(format!("{bound} {limit}{unit}"));
        }
    }
    facts.join("; ") + "."
}

/// True for a field that no object may have: its only value is the message of the refusal.
fn is_refused(schema: &Value) -> bool {
    schema["enum"].as_array().is_some_and(|values| values.iter().all(|value| value.to_string().starts_with("\"none: ")))
}

/// Appends the fields of an object, each with a heading.
fn add_fields(blocks: &mut Vec<String>, path: &str, schema: &Value) {
    let fields: BTreeMap<_, _> = schema["properties"].as_object().into_iter().flatten().collect();
    for (name, field) in fields.into_iter().filter(|(_, field)| !is_refused(field)) {
        let path = format!("{path}.{name}");
        let is_required = schema["required"].as_array().is_some_and(|names| names.iter().any(|known| known == name));
        blocks.extend([format!("### {path}"), wrap(&facts(field, is_required), "")]);
        let description = field["description"].as_str().unwrap_or_default();
        let paragraphs = description.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
        blocks.extend(paragraphs.map(|paragraph| wrap(paragraph, "")));
        if path == TEMPLATE {
            blocks.push("The fields are those of [SyncJob.spec](#syncjobspec).".to_owned());
            continue;
        }
        let rules = field["x-kubernetes-validations"].as_array().into_iter().flatten();
        let rules: Vec<_> = rules.map(|rule| format!("- {}", wrap(rule["message"].as_str().unwrap(), "  "))).collect();
        if !rules.is_empty() {
            blocks.extend(["Rules:".to_owned(), rules.join("\n")]);
        }
        if field["type"] == "array" {
            add_fields(blocks, &format!("{path}[]"), &field["items"]);
        } else {
            add_fields(blocks, &path, field);
        }
    }
}

/// The page, as it follows from the custom resource definitions.
fn api_reference() -> String {
    let intro = "This page lists every field of the three kinds. `make generate` writes it from the custom resource \
                 definitions, and `kubectl explain` shows the same descriptions. [SyncSchedule](syncschedule.md), \
                 [SyncJob](syncjob.md) and [SyncAlert](syncalert.md) describe the kinds by task.";
    let mut blocks = vec!["# API reference".to_owned(), wrap(intro, "")];
    for kind in ["SyncSchedule", "SyncJob", "SyncAlert"] {
        let crd: Value = serde_yaml_ng::from_str(&read(&format!("crds/{}s.yaml", kind.to_lowercase()))).unwrap();
        let (spec, version) = (&crd["spec"], &crd["spec"]["versions"][0]);
        let schema = &version["schema"]["openAPIV3Schema"];
        let [group, name, short] = [&spec["group"], &version["name"], &spec["names"]["shortNames"][0]]
            .map(|value| value.as_str().unwrap_or_default());
        blocks.extend([format!("## {kind}"), format!("{group}/{name}, short name `{short}`.")]);
        blocks.push(wrap(schema["description"].as_str().unwrap(), ""));
        add_fields(&mut blocks, kind, schema);
    }
    blocks.join("\n\n") + "\n"
}

/// `UPDATE_DOCS=1` writes the page, as `make generate` does.
#[test]
fn the_api_reference_lists_the_fields_of_the_crds() {
    let page = api_reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(API_REFERENCE), &page).unwrap();
    }
    assert!(read(API_REFERENCE) == page, "{API_REFERENCE} is stale: run make generate");
}

/// The files below a folder with one of these extensions.
fn files_below(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { files_below(&path, extensions) } else { vec![path] };
    let has_extension =
        |path: &PathBuf| extensions.iter().any(|known| path.extension().is_some_and(|own| own == *known));
    entries.flat_map(of).filter(has_extension).collect()
}

fn pages_below(folder: &Path) -> Vec<PathBuf> {
    files_below(folder, &["md"])
}

/// The lines of a page that are not code.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap();
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors that GitHub gives the headings of a page.
fn anchors(page: &Path) -> BTreeSet<String> {
    let mut known = BTreeMap::new();
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let headings = headings.filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let anchor = |heading: &str| {
        let kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
        let anchor = heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let count = known.entry(anchor.clone()).and_modify(|count| *count += 1).or_insert(0);
        if *count == 0 { anchor } else { format!("{anchor}-{count}") }
    };
    headings.map(anchor).collect()
}

#[test]
fn each_link_in_the_docs_has_its_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "charts/sync-operator/README.md"];
    let pages = pages_below(&root.join("docs")).into_iter().chain(top.map(|page| root.join(page)));
    let mut broken = Vec::new();
    for page in pages {
        let prose = prose(&page);
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let is_page = target.extension().is_some_and(|extension| extension == "md");
            let has_anchor = || anchor.is_empty() || !is_page || anchors(&target).contains(anchor);
            if !target.exists() || !has_anchor() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Checks paths in code spans, such as `src/queue/scripts/prelude.lua`, and ends of paths, such as `domain/run.rs`. Capital
/// letters stand for a part that the reader fills in.
#[test]
fn each_file_that_the_docs_name_exists() {
    const SOURCES: [&str; 3] = ["rs", "lua", "sh"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| root.join(page));
    let sources: Vec<_> = ["src", "tests", "benches", "image"]
        .iter()
        .flat_map(|folder| files_below(&root.join(folder), &SOURCES))
        .collect();
    let exists = |path: &str| root.join(path).exists() || sources.iter().any(|source| source.ends_with(path));
    let mut missing = Vec::new();
    for page in pages_below(&root.join("docs")).into_iter().chain(top) {
        let text = prose(&page);
        let spans = text.split('`').skip(1).step_by(2);
        let is_path = |span: &&str| {
            let folders = ["src/", "tests/", "benches/", "charts/", "image/", "docs/", "manifests/"];
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c);
            let is_source = span.rsplit_once('.').is_some_and(|(_, extension)| SOURCES.contains(&extension));
            (is_source || folders.iter().any(|folder| span.starts_with(folder))) && span.chars().all(is_plain)
        };
        let absent = spans.filter(is_path).filter(|path| !exists(path));
        missing.extend(absent.map(|path| format!("{}: {path}", page.display())));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
