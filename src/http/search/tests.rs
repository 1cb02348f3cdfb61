use super::*;
use crate::fixtures;
use proptest::prelude::*;
use serde_json::{Value, json};

const PHASES: [&str; 4] = ["Pending", "Running", "Complete", "Failed"];
const TYPES: [&str; 2] = ["User", "Project"];

fn job(name: &str, namespace: &str, created: i64, schedule: Option<&str>, type_: &str, status: &Value) -> SyncJob {
    let labels = schedule.map(|schedule| json!({"sync.codex.dev/schedule": schedule}));
    fixtures::job(json!({
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": crate::domain::from_seconds(created), "labels": labels},
        "spec": {"type": type_}, "status": status,
    }))
}

fn status(phase: &str, error: &str, key: &str) -> Value {
    let failed = fixtures::condition("Failed", "Test", error, "2026-11-25T10:00:00Z");
    json!({
        "phase": phase, "conditions": if phase == "Failed" { json!([failed]) } else { json!([]) },
        "failures": if key.is_empty() { json!([]) } else { json!([{"key": key, "reason": "Rejected", "message": error}]) },
    })
}

/// Reference implementation of a query, without an index.
fn fits(job: &SyncJob, query: &RunQuery<'_>) -> bool {
    let same = |wanted: Option<&str>, found: Option<&String>| {
        wanted.is_none_or(|wanted| found.is_some_and(|found| found == wanted))
    };
    let namespace = job.namespace().unwrap();
    same(query.namespace, job.metadata.namespace.as_ref())
        && query.namespaces.is_none_or(|some| some.contains(&namespace))
        && same(query.schedule, job.labels().get(SCHEDULE_LABEL))
        && query.phases.is_none_or(|wanted| wanted.contains(&phase_of(job)))
        && query.type_.is_none_or(|wanted| wanted == job.spec.type_)
        && query.text.is_none_or(|text| job.name_any().contains(&text.to_lowercase()))
        && word_index::split_words(query.error.unwrap_or_default())
            .iter()
            .all(|beginning| words_of(job).iter().any(|word| word.starts_with(beginning.as_str())))
        && query.key.is_none_or(|key| keys_of(job).iter().any(|found| found.starts_with(&word_index::normalize(key))))
}

fn sort_keys<'a>(jobs: impl Iterator<Item = &'a SyncJob>) -> Vec<SortKey> {
    let mut sort_keys: Vec<_> = jobs.map(SortKey::from_job).collect();
    sort_keys.sort();
    sort_keys
}

fn text() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "ab cd", "ab", "E11000 duplicate", "validation of ab", "abc/cde", "Über Größe"])
        .prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    "[ab]{1,3}-[01]{1,2}"
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Box<SyncJob>),
    Remove(String, i64),
}

fn step() -> impl Strategy<Value = Step> {
    let schedule = prop::option::of(prop::sample::select(vec!["ab", "ba"]));
    let kind = (prop::sample::select(PHASES.to_vec()), prop::sample::select(TYPES.to_vec()));
    let keys = prop::sample::select(vec!["", "u1", "u12", "7"]);
    let apply = (name(), 0..3_i64, schedule, kind, text(), keys).prop_map(
        |(name, created, schedule, (phase, type_), error, key)| {
            let namespace = if created == 0 { "one" } else { "two" };
            Step::Apply(Box::new(job(&name, namespace, created, schedule, type_, &status(phase, &error, key))))
        },
    );
    prop_oneof![4 => apply, 1 => (name(), 0..3_i64).prop_map(|(name, created)| Step::Remove(name, created))]
}

proptest! {
    #[test]
    fn a_search_finds_what_looking_at_each_run_would_find(
        steps in prop::collection::vec(step(), 0..60),
        text_ in prop::option::of("[ab01-]{0,4}"),
        error in prop::option::of(prop::sample::select(vec!["", "a", "ab", "AB c", "e110", "dup e1", "größe", "x"])),
        key in prop::option::of(prop::sample::select(vec!["u", "U1", "u12", "9"])),
        phases in prop::option::of(prop::sample::subsequence(vec![Phase::Pending, Phase::Running, Phase::Complete, Phase::Failed], 1..3)),
        (schedule, namespace) in (prop::option::of("ab|ba|c"), prop::option::of("one|two|three")),
        type_ in prop::option::of(prop::sample::select(vec![SyncType::User, SyncType::Project])),
        namespaces in prop::option::of(prop::collection::btree_set("one|two", 0..2)),
        limit in 1..5_usize,
    ) {
        let mut index = RunIndex::default();
        let mut jobs: BTreeMap<(String, String, i64), SyncJob> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Apply(job) => {
                    let created = job.creation_timestamp().unwrap().0.as_second();
                    index.apply(&job);
                    jobs.insert((job.namespace().unwrap(), job.name_any(), created), *job);
                }
                Step::Remove(name, created) => {
                    let namespace = if created == 0 { "one" } else { "two" };
                    let gone = job(&name, namespace, created, None, "User", &Value::Null);
                    index.remove(&gone);
                    jobs.remove(&(namespace.to_owned(), name, created));
                }
            }
        }
        let query = RunQuery {
            namespaces: namespaces.as_ref(), namespace: namespace.as_deref(), schedule: schedule.as_deref(),
            phases: phases.as_deref(), type_, text: text_.as_deref(), error, key,
        };
        let expected = sort_keys(jobs.values().filter(|job| fits(job, &query)));
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            prop_assert_eq!(index.count(&query, after.as_ref()), expected.len() - found.len());
            let page = index.page(&query, after.as_ref(), limit);
            after = page.last().cloned();
            found.extend(page);
            if after.is_none() || found.len() > expected.len() {
                break;
            }
        }
        prop_assert_eq!(found, expected);
        // Nothing is left when all are gone.
        for job in jobs.values() {
            index.remove(job);
        }
        prop_assert!(index.newest.is_empty() && index.phases.is_empty() && index.schedules.is_empty() && index.namespaces.is_empty());
        prop_assert_eq!(index.free.len(), index.runs.len());
        prop_assert_eq!(index.errors.with_prefix("").count() + index.keys.with_prefix("").count(), 0);
        prop_assert!(index.names.candidates("").is_none());
    }
}

#[test]
fn errors_are_found_by_the_beginnings_of_their_words() {
    let mut index = RunIndex::default();
    let error = "E11000 duplicate key error collection: app.users";
    index.apply(&job("a-1", "one", 1, None, "User", &status("Failed", error, "65f0")));
    index.apply(&job("a-2", "one", 2, None, "User", &status("Failed", "MongoDB is unavailable", "")));
    let found = |error, key| -> Vec<String> {
        let query = RunQuery { error, key, ..RunQuery::default() };
        index.page(&query, None, 10).into_iter().map(|sort_key| sort_key.name.to_string()).collect()
    };
    for (error, expected) in [
        ("duplicate", &["a-1"][..]),
        ("DUPL e110", &["a-1"]),
        ("app.users", &["a-1"]),
        ("is", &["a-2"]),
        ("test", &["a-2", "a-1"]),
        ("uplicate", &[]),
        ("duplicate unavailable", &[]),
    ] {
        assert_eq!(found(Some(error), None), expected, "{error}");
    }
    assert_eq!(found(None, Some("65F")), ["a-1"]);
    assert_eq!(found(Some("unavailable"), Some("65f0")), [""; 0]);
}

#[test]
fn an_index_without_room_is_not_whole() {
    let mut words = WordIndex::with_room(3);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    let first = words.replace_texts(Vec::new(), texts(&["a", "b"]), 0);
    assert_eq!((first.len(), words.is_whole()), (2, true));
    let second = words.replace_texts(Vec::new(), texts(&["a", "c"]), 1);
    assert_eq!((second.len(), words.is_whole()), (1, false));
    words.replace_texts(first, BTreeSet::new(), 0);
    assert_eq!(words.replace_texts(second, texts(&["a", "c"]), 1).len(), 2, "there is room again");
}

/// Measurement of 100,000 runs, a tenth of them with twenty failed documents. `docs/contributing/testing.md`
/// describes how to run it.
#[test]
#[ignore = "a measurement"]
fn speed() {
    use std::time::{Duration, Instant};
    let resident = || -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let at = "2026-11-25T10:00:00Z";
    let make = |i: i64| {
        let phase = if i % 10 == 0 { "Failed" } else { "Complete" };
        let message = format!("Document {i} failed validation of field email in namespace {}", i % 7);
        let failures: Vec<_> = (0..20)
            .map(|k| json!({"key": format!("user-{i}-{k}"), "reason": "Rejected", "message": message}))
            .collect();
        let condition = fixtures::condition("Failed", "TooManyFailed", "20 of 100 documents failed", at);
        let status = if i % 10 == 0 {
            json!({"phase": phase, "conditions": [condition], "failures": failures})
        } else {
            json!({"phase": phase})
        };
        job(
            &format!("schedule-{:05}-{}", i / 10, 1_795_000_000 + i),
            &format!("team-{}", i % 5),
            1_795_000_000 + i,
            Some(&format!("schedule-{:05}", i / 10)),
            "User",
            &status,
        )
    };
    let (before, mut index, mut took) = (resident(), RunIndex::default(), Duration::ZERO);
    for i in 0..100_000 {
        let job = make(i * 37 % 100_000);
        let began = Instant::now();
        index.apply(&job);
        took += began.elapsed();
    }
    println!("100,000 runs: {} KiB, each taken in within {:?}", resident() - before, took / 100_000);
    let teams = BTreeSet::from(["team-1".to_owned()]);
    for (what, query) in [
        ("all", RunQuery::default()),
        ("a part of each name", RunQuery { text: Some("schedule"), ..RunQuery::default() }),
        ("two letters", RunQuery { text: Some("le"), ..RunQuery::default() }),
        ("one name", RunQuery { text: Some("1795012345"), ..RunQuery::default() }),
        ("a name that is nowhere", RunQuery { text: Some("00-1795099999"), ..RunQuery::default() }),
        (
            "failed, of one namespace",
            RunQuery { phases: Some(&[Phase::Failed]), namespaces: Some(&teams), ..RunQuery::default() },
        ),
        ("an error of many", RunQuery { error: Some("valid field"), ..RunQuery::default() }),
        ("an error of one", RunQuery { error: Some("99990"), ..RunQuery::default() }),
        ("a key", RunQuery { key: Some("user-77770-1"), ..RunQuery::default() }),
        ("the beginning of many keys", RunQuery { key: Some("user"), ..RunQuery::default() }),
        (
            "a phase and a type that never meet",
            RunQuery { phases: Some(&[Phase::Complete]), type_: Some(SyncType::Issue), ..RunQuery::default() },
        ),
    ] {
        let began = Instant::now();
        let found = index.page(&query, None, 51).len();
        let (page, began) = (began.elapsed(), Instant::now());
        println!("{what}: {found} in {page:?}; {} in all in {:?}", index.count(&query, None), began.elapsed());
    }
}
