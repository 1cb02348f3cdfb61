//! Table tests of reading and validation.

mod definitions;

use serde_json::{Map, Value, json};

use super::*;

const JOB: &str = "apiVersion: sync.codex.dev/v1alpha1\nkind: SyncJob\nmetadata:\n  name: a\n";
const ALERT: &str = "apiVersion: sync.codex.dev/v1alpha1\nkind: SyncAlert\nmetadata: {name: a}\nspec:\n";
const SCHEDULE: &str = "apiVersion: sync.codex.dev/v1alpha1\nkind: SyncSchedule\nmetadata: {name: a}\nspec:\n";

/// The findings as lines, without the name of the file.
fn lines(text: &str) -> Vec<String> {
    let strip = |finding: &Finding| finding.to_string().strip_prefix("a.yaml:").map(str::to_owned);
    parse("a.yaml", text).findings.iter().filter_map(strip).collect()
}

fn assert_found(text: &str, expected: &[&str]) {
    let found = lines(text);
    let is_expected = |(found, expected): (&String, &&str)| found.starts_with(*expected);
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(is_expected),
        "{text}\nfound {found:#?}\nexpected {expected:#?}"
    );
}

#[test]
fn samples_are_valid_and_need_what_they_say() {
    for (sample, warnings) in [
        (include_str!("../../manifests/samples/alert.yaml"), 1),
        (include_str!("../../manifests/samples/incremental.yaml"), 0),
        (include_str!("../../manifests/samples/one-off.yaml"), 0),
        (include_str!("../../manifests/samples/user-sync.yaml"), 0),
        (include_str!("../../manifests/samples/gitlab/users.yaml"), 1),
        (include_str!("../../manifests/samples/gitlab/group-projects.yaml"), 1),
        (include_str!("../../manifests/samples/rest/users.yaml"), 1),
    ] {
        let parsed = parse("a.yaml", sample);
        assert_eq!((parsed.manifests.len(), parsed.findings.len()), (1, warnings), "{:#?}", parsed.findings);
        assert!(parsed.findings.iter().all(|finding| finding.level == Severity::Warning));
    }
}

#[test]
fn a_valid_object_has_its_defaults() {
    let parsed = parse("a.yaml", &format!("# comment\n---\n{JOB}spec: {{priority: 0b11, backoff: {{factor: 2.0}}}}\n"));
    assert_eq!(parsed.findings, []);
    let [Manifest { origin, object: Object::SyncJob(job) }] = parsed.manifests.as_slice() else {
        panic!("{parsed:#?}")
    };
    assert_eq!(origin.to_string(), "a.yaml:3:1");
    assert_eq!((job.spec.priority, job.spec.batch_size, job.spec.backoff.factor), (3, 100, 2));
}

#[test]
fn structural_mistakes_have_position_field_and_fix() {
    for (spec, expected) in [
        (
            "  batchSize: \"5\"\n",
            &["6:3: error: spec.batchSize: must be of type integer, not a string: remove the quotes"][..],
        ),
        ("  batchSize: 1.5\n", &["6:3: error: spec.batchSize: must be of type integer, not a number with a fraction"]),
        ("  staleAfter: 20\n", &["6:3: error: spec.staleAfter: must be of type string, not a number: quote it"]),
        ("  dryRun: \"yes\"\n", &["6:3: error: spec.dryRun: must be of type boolean, not a string: correct it"]),
        ("  dryRun: yes\n", &[]),
        (
            "  syncType: full\n",
            &[
                "6:3: error: spec.syncType: unsupported value \"full\": supported values are \"Full\", \"Incremental\"; did you mean \"Full\"?",
            ],
        ),
        (
            "  batchsize: 5\n",
            &["6:3: error: spec.batchsize: unknown field \"spec.batchsize\": did you mean \"batchSize\"?"],
        ),
        ("  colour: red\n", &["6:3: error: spec.colour: unknown field \"spec.colour\": remove it"]),
        (
            "  on: true\n",
            &["6:3: error: spec.true: unknown field \"spec.true\": YAML reads the key on as true, so quote it"],
        ),
        (
            "  target:\n    filter: all\n",
            &["7:5: error: spec.target.filter: must be of type object, not a single value"],
        ),
        (
            "  target:\n    filter:\n      $or:\n      - $where: {a: 1}\n",
            &["9:9: error: spec.target.filter.$or[0].$where: runs code on the server"],
        ),
        ("  mapping: {to: a}\n", &["6:3: error: spec.mapping: must be of type array, not a single value"]),
        (
            "  source: {graphQL: {endpoint: \"https://a/\", query: \"\"}}\n",
            &[
                "6:12: error: spec.source.graphQL.resultPath: is required: add it",
                "6:46: error: spec.source.graphQL.query: must have at least 1 characters, not 0",
            ],
        ),
        ("  batchSize: null\n  source: null\n", &[]),
        ("  batchSize: 5\n  batchSize: 6\n", &["7:3: error: duplicate key \"batchSize\": line 6 has it already"]),
        (
            "  batchSize: 0\n  parallelism: 99\n  backoff: {jitter: 2, initial: x}\n",
            &[
                "6:3: error: spec.batchSize: must be from 1 to 10000",
                "7:3: error: spec.parallelism: must be from 1 to 64",
                "8:13: error: spec.backoff.jitter: must be from 0 to 1",
                "8:24: error: spec.backoff.initial: must be a duration from 100ms to 24h, such as 5s",
            ],
        ),
        ("  backoff: {jitter: 0}\n  batchSize: 1e2\n", &[]),
        (
            "  onFailure: Rollback\n",
            &["6:3: error: spec.onFailure: Rollback needs transaction Batch: set both, or neither"],
        ),
    ] {
        assert_found(&format!("{JOB}spec:\n{spec}"), expected);
    }
}

#[test]
fn rules_beside_an_invalid_field_are_still_checked() {
    let spec = "spec:\n  batchSize: x\n  parallelism: 0\n  target: {keyField: $a, extra: 1}\n";
    assert_found(
        &format!("{JOB}{spec}"),
        &[
            "6:3: error: spec.batchSize: must be of type integer",
            "7:3: error: spec.parallelism: must be from 1 to 64",
            "8:12: error: spec.target.keyField: must be a field path without $",
            "8:26: error: spec.target.extra: unknown field",
        ],
    );
}

#[test]
fn a_rule_of_several_fields_is_found_at_one_of_them() {
    for (spec, expected) in [
        ("  timeZone: UTC\n", "5:3: error: spec.timeZone: needs schedule"),
        (
            "  interval: 5m\n  schedule: 0 * * * *\n",
            "5:3: error: spec.interval: interval and schedule exclude each other",
        ),
        ("  interval: null\n  timeZone: null\n  jitter: 25h\n", "7:3: error: spec.jitter: must be a duration"),
        ("  jobTemplate: {spec: {batchSize: 0}}\n", "5:24: error: spec.jobTemplate.spec.batchSize: must be from 1"),
    ] {
        assert_found(&format!("{SCHEDULE}{spec}"), &[expected]);
    }
    let sink = "  sinks: [{name: a, slack: {urlSecretRef: {name: b, key: c}}}]\n";
    for (when, expected) in [
        (
            "  when: [{type: RunFailed}, {type: RunFailed}]\n",
            "5:29: error: spec.when[1]: duplicate item: spec.when[0] has type \"RunFailed\" already",
        ),
        ("  when: []\n", "5:3: error: spec.when: must have at least 1 items"),
        (
            "  when: [{type: RunFailed, percent: 5}]\n",
            "5:28: error: spec.when[0].percent: when[].percent and type FailedDocumentsAbove go together",
        ),
    ] {
        assert_found(&format!("{ALERT}{when}{sink}"), &[expected]);
    }
}

#[test]
fn what_the_operator_refuses_later_is_found() {
    let source = "  source: {graphQL: {endpoint: \"https://gitlab.com/\", query: \"{a}\", resultPath: \"\"}}\n";
    for (spec, expected) in [
        ("  target: {filter: {a: {$not: {$where: x}}}}\n", "6:12: error: spec.target.filter: $where runs code"),
        (
            &format!("{source}  mapping:\n  - {{from: /a, to: b}}\n  - {{from: /c, to: b.c}}\n"),
            "9:16: error: spec.mapping[1].to: b.c and b overlap",
        ),
        (
            "  source: {graphQL: {endpoint: \"https://a.example/\", query: \"{ a(\", resultPath: \"\"}}\n",
            "6:54: error: spec.source.graphQL.query: is no GraphQL document: correct it at line 1, column 5",
        ),
    ] {
        assert_found(&format!("{JOB}spec:\n{spec}"), &[expected]);
    }
    for (spec, expected) in [
        ("  schedule: 61 * * * *\n", "5:3: error: spec.schedule: \"61 * * * *\" is not a cron expression"),
        ("  schedule: 0 0 30 2 *\n", "5:3: error: spec.schedule: \"0 0 30 2 *\" never fires"),
        ("  schedule: 0 0 * * *\n  timeZone: Mars/Base\n", "6:3: error: spec.timeZone: \"Mars/Base\" is not known"),
        (
            "  jobTemplate: {metadata: {labels: {a: b c}}}\n",
            "5:37: error: spec.jobTemplate.metadata.labels.a: \"b c\" must have",
        ),
    ] {
        assert_found(&format!("{SCHEDULE}{spec}"), &[expected]);
    }
    let smtp = "  when: [{type: RunFailed}]\n  sinks: [{name: a, smtp: {host: smtp.example.com, from: operator, to: [a@example.com]}}]\n";
    assert_found(
        &format!("{ALERT}{smtp}"),
        &["6:52: error: spec.sinks[0].smtp.from: \"operator\" is not a mail address"],
    );
    let template = "  when: [{type: RunFailed}]\n  sinks: [{name: a, cloudEvents: {url: \"https://a.example/\"}}]\n  template: {title: \"{{\"}\n";
    assert_found(&format!("{ALERT}{template}"), &["7:14: error: spec.template.title: "]);
}

#[test]
fn settings_that_an_object_needs_are_warnings() {
    let secret = "tokenSecretRef: {name: t, key: k}, headersFrom: [{name: X-A, secretRef: {name: t, key: k}}]";
    for (endpoint, more, expected) in [
        ("https://gitlab.com/", "", &[][..]),
        (
            "https://gitlab.com/",
            secret,
            &["spec.source.tokenSecretRef: Secret t must allow gitlab.com: kubectl annotate"],
        ),
        (
            "https://gitlab.com/",
            "caSecretRef: {name: ca, key: k}",
            &[
                "spec.source.caSecretRef: Secret ca must allow gitlab.com: kubectl annotate secret ca sync.codex.dev/hosts=gitlab.com",
            ],
        ),
        (
            "http://gitlab.com:8080/",
            "tokenSecretRef: {name: t, key: k}, caSecretRef: {name: t, key: c}",
            &[
                "spec.source.graphQL.endpoint: the operator uses http:// only",
                "spec.source.tokenSecretRef: Secret t must allow http://gitlab.com:8080: kubectl annotate secret t sync.codex.dev/hosts=http://gitlab.com:8080",
            ],
        ),
        ("http://gitlab.com/", "", &["spec.source.graphQL.endpoint: the operator uses http:// only"]),
        (
            "http://10.0.0.1/",
            "",
            &["spec.source.graphQL.endpoint: the operator connects to hosts outside the internet only"],
        ),
        ("https://users.default.svc/", "", &["spec.source.graphQL.endpoint: the operator connects"]),
        ("https://users.svc.cluster.local/", "", &["spec.source.graphQL.endpoint: the operator connects"]),
        ("https://localhost/", "", &["spec.source.graphQL.endpoint: the operator connects"]),
        (
            "https://127.0.0.1/",
            "",
            &["spec.source.graphQL.endpoint: the operator connects to 127.0.0.1 only if --source-allowed-cidrs"],
        ),
        ("https://8.8.8.8/", "", &[]),
    ] {
        let spec = format!(
            "spec: {{source: {{graphQL: {{endpoint: \"{endpoint}\", query: \"{{a}}\", resultPath: \"\"}}, {more}}}}}\n"
        );
        let found = parse("a.yaml", &format!("{JOB}{spec}"));
        assert_eq!(found.manifests.len(), 1, "{:#?}", found.findings);
        let found: Vec<_> = lines(&format!("{JOB}{spec}"))
            .into_iter()
            .map(|line| line.split_once("warning: ").unwrap().1.to_owned())
            .collect();
        assert!(
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)),
            "{found:#?}"
        );
    }
    assert_found(
        &format!("{JOB}spec: {{target: {{database: other}}}}\n"),
        &["5:17: warning: spec.target.database: the operator uses the database other only if --allowed-databases"],
    );
}

#[test]
fn operations_other_than_queries_are_warnings() {
    let [token, header] =
        ["tokenSecretRef: {name: t, key: k}", "headersFrom: [{name: X-A, secretRef: {name: h, key: k}}]"];
    let operations = "sync.codex.dev/graphql-operations=query,mutation";
    for (secrets, expected) in [
        (
            String::new(),
            vec![format!(
                "spec.source.graphQL.query: the operator sends a mutation only with a Secret that allows it: add tokenSecretRef, and annotate the Secret with {operations}"
            )],
        ),
        (
            format!("{token}, {header}, caSecretRef: {{name: ca, key: k}}"),
            ["tokenSecretRef: Secret t", "headersFrom[0].secretRef: Secret h"]
                .map(|at| {
                    let name = at.rsplit(' ').next().unwrap();
                    format!("spec.source.{at} must allow a mutation: kubectl annotate secret {name} {operations}")
                })
                .to_vec(),
        ),
    ] {
        let text = format!(
            "{JOB}spec: {{source: {{graphQL: {{endpoint: \"https://a.example/\", query: \"mutation {{a}}\", resultPath: \"\"}}, {secrets}}}}}\n"
        );
        let found = lines(&text);
        let found: Vec<_> = found.iter().filter(|line| line.contains("mutation")).collect();
        let is_expected = |(line, expected): (&&String, &String)| line.ends_with(&format!("warning: {expected}"));
        assert!(found.len() == expected.len() && found.iter().zip(&expected).all(is_expected), "{found:#?}");
    }
}

#[test]
fn annotations_that_sinks_need_are_warnings() {
    let [ca, key] = ["caSecretRef: {name: ca, key: c}", "SecretRef: {name: k, key: k}"];
    for (sink, item) in [
        (format!("slack: {{url{key}, {ca}}}"), "HOST"),
        (format!("webhook: {{url: \"https://a.example/x\", hmac{key}, {ca}}}"), "a.example"),
        (format!("cloudEvents: {{url: \"https://a.example:8443/\", token{key}, {ca}}}"), "a.example:8443"),
        (
            format!("smtp: {{host: a.example, from: a@b.c, to: [a@b.c], username{key}, password{key}, {ca}}}"),
            "a.example",
        ),
        (
            format!(
                "smtp: {{host: a.example, port: 465, tls: Tls, from: a@b.c, to: [a@b.c], username{key}, password{key}, {ca}}}"
            ),
            "a.example",
        ),
    ] {
        let text = format!("{ALERT}  when: [{{type: RunFailed}}]\n  sinks: [{{name: a, {sink}}}]\n");
        let found = lines(&text);
        assert_eq!(found.len(), 2, "{found:#?}");
        for (name, line) in ["k", "ca"].into_iter().zip(found) {
            assert!(line.ends_with(&format!("kubectl annotate secret {name} sync.codex.dev/hosts={item}")), "{line}");
        }
    }
}

#[test]
fn other_kinds_are_skipped_and_wrong_versions_refused() {
    for (text, expected) in [
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nextra: 1\n", &[][..]),
        ("apiVersion: example.com/v1\nkind: SyncJob\n", &[]),
        (
            "apiVersion: sync.codex.dev/v1\nkind: SyncJob\n",
            &["1:1: error: apiVersion: must be sync.codex.dev/v1alpha1, not sync.codex.dev/v1"],
        ),
        ("apiVersion: v1\nkind: SyncJob\n", &["1:1: error: apiVersion: must be sync.codex.dev/v1alpha1"]),
        (
            "kind: syncjob\napiVersion: sync.codex.dev/v1alpha1\n",
            &[
                "1:1: error: kind: unsupported value \"syncjob\": supported values are SyncJob, SyncSchedule, SyncAlert; did you mean SyncJob?",
            ],
        ),
        ("kind: SyncJob\n", &["1:1: error: apiVersion: is required"]),
        ("- a\n", &["1:1: error: a manifest must be a mapping"]),
        ("\n# nothing\n---\n---\n", &[]),
    ] {
        assert_found(text, expected);
    }
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n- apiVersion: sync.codex.dev/v1alpha1\n  kind: SyncJob\n  metadata: {name: A}\n  spec: {}\n";
    assert_found(list, &["8:14: error: metadata.name: \"A\" must have"]);
    assert_eq!(parse("a.yaml", list).documents, 2);
}

#[test]
fn a_document_with_an_error_does_not_hide_others() {
    let bad = format!("{JOB}spec:\n\tbatchSize: 5\n");
    let good = format!("{JOB}spec: {{}}\n");
    let wrong = format!("{JOB}spec: {{batchSize: 0}}\n");
    let parsed = parse("a.yaml", &format!("{good}---\n{bad}--- # next\n{wrong}---\n{good}"));
    assert_eq!((parsed.documents, parsed.manifests.len()), (4, 2));
    let found: Vec<_> = parsed.findings.iter().map(ToString::to_string).collect();
    assert!(
        found[0].starts_with("a.yaml:12:1: error: not valid YAML: ") && found[0].contains("spaces instead of tabs"),
        "{found:#?}"
    );
    assert_eq!(found[1], "a.yaml:18:8: error: spec.batchSize: must be from 1 to 10000");
    assert_eq!(found.len(), 2);
}

#[test]
fn syntax_errors_have_position_and_fix() {
    let deep = format!("a: {}{}\n", "[".repeat(200), "]".repeat(200));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    for (text, expected) in [
        ("a: [1\nb: 2\n", "not valid YAML: "),
        ("a: 'x\n", "not valid YAML: "),
        ("a: *b\n", "1:4: error: not valid YAML: "),
        ("a: &a [*a]\n", "1:8: error: an anchor must not contain itself"),
        ("a: {{ .Values.x }}\n", "1:5: error: a key must be text: quote a value that begins with {"),
        ("~: 1\n", "1:1: error: a key must be text"),
        ("a: |\n  \tb\n", "a block of text must not begin with a tab"),
        ("a:\n  \tb: 1\n", "2:3: error: not valid YAML: a tab in the indentation: indent with spaces instead of tabs"),
        ("a:\n-\tb: 1\n", "2:2: error: not valid YAML: a tab in the indentation"),
        ("a: .inf\n", "1:4: error: .inf is a number that JSON does not have"),
        ("a: !!int x\n", "\"x\" is not of the type that its tag !!int names"),
        ("a: 1\n...\nb: 2\n", "kubectl ignores a document after ..."),
        ("<<: 1\n", "1:1: error: the merge key << needs a mapping"),
        ("--- a: 1\n", "1:4: error: a separator of documents must be alone on its line"),
        (&deep, "nested deeper than 100 levels"),
        (bomb, "larger than 100000 values"),
    ] {
        let found = lines(text);
        assert!(found.first().is_some_and(|found| found.contains(expected)), "{text}: {found:#?}");
    }
}

#[test]
fn merge_keys_bring_in_what_is_not_set() {
    let text = format!(
        "{JOB}  annotations: &base {{example.com/a: \"1\", example.com/b: \"2\"}}\n  labels:\n    <<: *base\n    example.com/a: own\nspec: {{}}\n"
    );
    let parsed = parse("a.yaml", &text);
    assert_eq!(parsed.findings, []);
    let Object::SyncJob(job) = &parsed.manifests[0].object else { panic!("{parsed:#?}") };
    let labels = job.metadata.labels.clone().unwrap();
    assert_eq!(
        labels.into_iter().collect::<Vec<_>>(),
        [("example.com/a".to_owned(), "own".to_owned()), ("example.com/b".to_owned(), "2".to_owned())]
    );
    assert_found(
        "a: &a {x: 1}\nb: {x: 2, <<: *a}\nkind: SyncJob\napiVersion: sync.codex.dev/v1alpha1\n",
        &[
            "1:1: error: spec: is required",
            "1:1: error: a: unknown field \"a\"",
            "1:1: error: metadata.name: is required",
            "2:1: error: b: unknown field \"b\"",
            "2:11: error: the merge key << would replace \"x\" of line 2: write << before the other keys",
        ],
    );
}

#[test]
fn json_is_read_as_yaml() {
    let object: Map<String, Value> = serde_json::from_value(json!({
        "apiVersion": API_VERSION, "kind": "SyncJob", "metadata": {"name": "a", "creationTimestamp": null},
        "spec": {"batchSize": 0}, "status": {"anything": 1},
    }))
    .unwrap();
    let text = serde_json::to_string_pretty(&object).unwrap();
    assert_eq!(
        lines(&text),
        lines(&text.replace("  ", "\t")).iter().map(|line| line.replacen(":3:", ":5:", 1)).collect::<Vec<_>>()
    );
    let found = lines(&text);
    assert_eq!(
        found,
        [
            "9:5: error: spec.batchSize: must be from 1 to 10000",
            "12:5: error: status.anything: unknown field \"status.anything\": remove it"
        ]
    );
}
