//! Random mutations of manifests: of their values, and of their text.

use std::fmt::Write as _;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Spellings that YAML 1.1 and 1.2 read differently, values of wrong types, and broken syntax.
const SPELLINGS: [&str; 46] = [
    "yes",
    "No",
    "on",
    "OFF",
    "y",
    "n",
    "~",
    "null",
    "",
    "0777",
    "0o17",
    "0x1F",
    "0b11",
    "08",
    "1_000",
    "1:30",
    "1.0",
    "1e2",
    "1e400",
    ".5",
    "5.",
    "-1",
    "+5",
    "0",
    "100001",
    "9223372036854775808",
    ".inf",
    ".nan",
    "2026-11-30",
    "'5'",
    "\"5\"",
    "!!str 5",
    "!!int 5",
    "!!int x",
    "!custom 5",
    "@x",
    "%x",
    "`x",
    "*unknown",
    "{}",
    "[]",
    "{a: b}",
    "[a, b]",
    "- a",
    "a: b",
    "\"\\q\"",
];

/// Paths of all values in a value.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            paths(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| paths(item, &format!("{path}/{index}"), found));
        }
        _ => {}
    }
}

fn any_value(random: &mut StdRng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(5),
        json!(1e9),
        json!(0.5),
        json!(""),
        json!("x"),
        json!("5m"),
        json!("Full"),
        json!("$x"),
        json!("_id"),
        json!("/a"),
        json!("https://a/{ids}"),
        json!([]),
        json!({}),
        json!(["a"]),
        json!({"a": 1}),
        json!("A b"),
        json!("x".repeat(300)),
        json!([{"to": "a"}]),
        json!({"name": "a", "key": "b"}),
    ];
    values.choose(random).unwrap().clone()
}

/// Changes a random part of an object.
fn change(object: &mut Value, random: &mut StdRng) {
    let names = [
        "batchSize",
        "batchsize",
        "staleAfter",
        "target",
        "database",
        "filter",
        "interval",
        "schedule",
        "timeZone",
        "jobTemplate",
        "mapping",
        "to",
        "from",
        "batching",
        "pagination",
        "upsert",
        "labels",
        "annotations",
        "name",
        "finalizers",
        "creationTimestamp",
        "resourceVersion",
        "$where",
        "status",
        "colour",
        "by",
        "onMissing",
        "selector",
        "template",
        "tls",
    ];
    let mut found = Vec::new();
    paths(object, "", &mut found);
    let path = found.choose(random).unwrap().clone();
    let value = object.pointer_mut(&path).unwrap();
    match (value, random.random_range(0..5)) {
        (Value::Object(fields), 0..=2) => {
            fields.insert((*names.choose(random).unwrap()).to_owned(), any_value(random));
        }
        (Value::Object(fields), 3) => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            if let Some(key) = keys.choose(random) {
                fields.remove(key);
            }
        }
        (Value::Array(items), 0..=1) => {
            let item = items.choose(random).cloned().unwrap_or_else(|| any_value(random));
            items.push(item);
        }
        (Value::Array(items), 2) => {
            items.pop();
        }
        (value, _) => *value = any_value(random),
    }
}

/// Changes a random line of a text.
fn garble(text: &str, random: &mut StdRng) -> String {
    let mut lines: Vec<String> =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned).collect();
    let index = random.random_range(0..lines.len());
    let line = lines[index].clone();
    let indent = line.len() - line.trim_start().len();
    match random.random_range(0..12) {
        0 => lines.insert(index, line),
        1 => lines[index] = format!("{}\t{}", &line[..indent], &line[indent..]),
        2 => lines[index] = format!(" {line}"),
        3 => lines[index] = format!("\t{line}"),
        4 => drop(lines.remove(index)),
        5 => lines[index] = format!("{line}\t# comment"),
        _ => {
            if let Some((key, _)) = line.split_once(": ") {
                lines[index] = format!("{key}: {}", SPELLINGS.choose(random).unwrap());
            } else if let Some((item, _)) = line.split_once("- ") {
                lines[index] = format!("{item}- {}", SPELLINGS.choose(random).unwrap());
            }
        }
    }
    let end = if random.random_ratio(1, 10) { "\r\n" } else { "\n" };
    lines.iter().fold(String::new(), |mut text, line| {
        write!(text, "{line}{end}").unwrap();
        text
    })
}

/// A random mutation of a valid manifest.
pub fn any(sources: &[(String, String)], random: &mut StdRng) -> (String, String) {
    let (kind, text) = sources.choose(random).unwrap().clone();
    let mut text = text;
    if random.random_ratio(2, 3) {
        let mut object: Value = serde_yaml_ng::from_str(&text).unwrap();
        for _ in 0..random.random_range(1..3) {
            change(&mut object, random);
        }
        text = serde_yaml_ng::to_string(&object).unwrap();
    }
    if random.random_ratio(1, 2) {
        text = garble(&text, random);
    }
    (kind, text)
}
