//! Runs in the dashboard: the page of a run, searches, and actions on many runs.

use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, Resource, api::DeleteParams};

use super::*;
use crate::{
    http::auth::show_events,
    support::{condition, events, unique},
};

/// Writes the status of a failed run with failed documents.
async fn fail(env: &TestEnv, name: &str, message: &str, failures: &Value, failed: i64) {
    let at = "2026-11-25T10:00:00Z";
    let condition = condition("Failed", "TooManyFailed", message, at);
    let status = json!({
        "phase": "Failed", "completionTime": at, "startTime": "2026-11-25T09:59:00.000000Z", "conditions": [condition],
        "counts": {"total": 100, "processed": 100, "failed": failed}, "failures": failures, "attempts": 1,
        "attemptHistory": [{"number": 1, "start": "2026-11-25T09:59:00Z", "end": at, "reason": "TooManyFailed", "message": message}],
    });
    env.patch_job_status(name, status).await;
}

fn documents(count: usize, message: &str) -> Value {
    let failure = |i| json!({"key": format!("=user-{i}"), "reason": "Rejected", "message": message});
    (1..=count).map(failure).collect()
}

async fn create_event(env: &TestEnv, job: &SyncJob, note: &str) {
    let event = Event {
        metadata: kube::api::ObjectMeta {
            name: Some(format!("{}.{}", job.name_any(), unique("e"))),
            ..Default::default()
        },
        action: Some("Test".to_owned()),
        reason: Some("TestHappened".to_owned()),
        note: Some(note.to_owned()),
        type_: Some("Warning".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        regarding: Some(job.object_ref(&())),
        reporting_controller: Some("test".to_owned()),
        reporting_instance: Some("test".to_owned()),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(env.client.clone(), &env.name);
    events.create(&PostParams::default(), &event).await.unwrap();
}

async fn wait_for_runs(sidecar: &Sidecar, query: &str, count: usize) {
    eventually(&format!("the sidecar sees {count} runs of {query}"), async || {
        let runs = sidecar.get(&format!("/jobs?limit=500&{query}")).await.body;
        (runs["items"].as_array()?.len() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_run_page_shows_attempts_failures_events_and_logs() {
    let env = TestEnv::new().await;
    let logs = "https://logs.example/?q={uid}&name={name}".parse().unwrap();
    let sessions = Sessions::new(None, false).unwrap();
    let sidecar = Sidecar::with(&env, HttpSettings { logs: Some(logs), ..settings(Some(sessions)) }).await;
    let here = &env.name;
    let job = apply_job(&env, "failed", json!({"priority": 7})).await;
    let other = apply_job(&env, "other", json!({})).await;
    fail(&env, "failed", "too many users failed", &documents(20, "the email has no @"), 57).await;
    create_event(&env, &job, MARKUP).await;
    create_event(&env, &other, "about another run").await;
    wait_for_runs(&sidecar, "phase=Failed", 1).await;
    let viewer = Browser::with_token(&sidecar, &with_rights(&env, "viewer", &["list"]).await).await;
    let path = format!("/ui/runs/{here}/failed");
    let page = viewer.get(&path).await.text;
    for text in [
        "Attempt 1 failed: TooManyFailed",
        "took 1 min",
        "Ended as failed: TooManyFailed",
        "57 documents failed. A run keeps the details of the first 20.",
        "1 to 10 of 20",
        "=user-10<",
        "the email has no @",
        "priority: 7",
        &format!("https://logs.example/?q={}&#38;name=failed", job.metadata.uid.clone().unwrap()),
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(
        !page.contains("=user-11<") && !page.contains("id=\"events\"") && !page.contains("class=\"curve\""),
        "{page}"
    );
    let second = viewer.get(&format!("{path}?failures=2")).await.text;
    assert!(second.contains("11 to 20 of 20") && second.contains("=user-20<") && !second.contains("=user-10<"));

    let file = viewer.get(&format!("{path}/failures.csv")).await;
    assert_eq!(file.headers["content-type"], "text/csv; charset=utf-8");
    assert_eq!(file.headers["content-disposition"], "attachment; filename=\"failed-failures.csv\"");
    let lines: Vec<_> = file.text.split("\r\n").collect();
    assert_eq!((lines.len(), lines[0]), (22, "key,reason,message"));
    assert_eq!(lines[1], "\"'=user-1\",\"Rejected\",\"the email has no @\"", "no formula");
    assert_eq!(viewer.get(&format!("/ui/runs/{here}/other/failures.csv")).await.code, 404);

    let reader = with_rights(&env, "reader", &["list"]).await;
    show_events(&env, "reader").await;
    let reader = Browser::with_token(&sidecar, &reader).await;
    let page = reader.get(&path).await.text;
    let events = page.split("id=\"events\"").nth(1).unwrap();
    assert!(events.contains("TestHappened") && events.contains("&#60;script&#62;"), "{events}");
    assert!(!page.contains("about another run") && !page.contains("<script>"), "{page}");
    let nobody = Browser::with_token(&sidecar, &with_rights(&env, "nobody", &["get"]).await).await;
    assert_eq!(nobody.get(&format!("{path}/failures.csv")).await.code, 403);
}

#[tokio::test]
async fn a_held_run_shows_its_reason_and_can_be_approved() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::Open), 1000).await;
    apply_job(&env, "held", json!({})).await;
    let message = format!("the run would mark 1400 of 2000 documents: a1, {MARKUP}");
    let condition = condition("Held", "GuardExceeded", &message, "2026-11-25T10:00:00Z");
    let status = json!({"phase": "Held", "counts": {"held": 1400}, "conditions": [condition]});
    env.patch_job_status("held", status).await;
    wait_for_runs(&sidecar, "phase=Held", 1).await;
    let path = format!("/ui/runs/{}/held", env.name);
    let viewer = Browser::with_token(&sidecar, &with_rights(&env, "viewer", &["list"]).await).await;
    let page = viewer.get(&path).await.text;
    for text in ["GuardExceeded", "of 2000 documents: a1, &#60;script&#62;", "Waiting for an approval"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("id=\"approve\"") && !page.contains("<script>"), "{page}");
    let approval = format!("{path}/approve");
    assert_eq!(viewer.press(&approval, "removals=1400").await.code, 403);

    let editor = Browser::with_token(&sidecar, &with_rights(&env, "editor", &["list", "patch"]).await).await;
    let page = editor.get(&path).await.text;
    for text in ["id=\"approve\"", "Approve 1,400", "name=\"removals\" value=\"1400\""] {
        assert!(page.contains(text), "{text}: {page}");
    }
    for (form, code) in [("", 400), ("removals=x", 400), ("removals=0", 422), ("removals=1000", 409)] {
        assert_eq!(editor.press(&approval, form).await.code, code, "{form}");
    }
    let answer = editor.press(&approval, "removals=1400").await;
    assert_eq!((answer.code.as_u16(), answer.location()), (303, path.as_str()));
    let job = env.jobs().get("held").await.unwrap();
    assert_eq!(job.annotations()["sync.codex.dev/approve"], "1400");
    let page = editor.get(&path).await.text;
    assert!(page.contains("Approved. The run resumes soon.") && !page.contains("id=\"approve\""), "{page}");
}

#[tokio::test]
async fn runs_are_found_by_errors_and_keys_beyond_the_cache() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    for name in ["a-one", "b-two", "c-three"] {
        apply_job(&env, name, json!({})).await;
    }
    fail(&env, "a-one", "E11000 duplicate key error", &json!([]), 0).await;
    fail(&env, "b-two", "away", &json!([{"key": "65f0c0ffee", "reason": "Rejected", "message": "no <b>mail</b>"}]), 1)
        .await;
    wait_for_runs(&sidecar, "phase=Failed", 2).await;
    let browser = Browser::new(&sidecar);
    for (query, expected) in [
        ("error=dupl+e110", &["a-one"][..]),
        ("error=toomanyfailed", &["a-one", "b-two"]),
        ("error=%3Cb%3Email", &["b-two"]),
        ("key=65F0", &["b-two"]),
        ("key=65f0&phase=Complete", &[]),
        ("text=t", &["b-two", "c-three"]),
        ("text=TWO", &["b-two"]),
        ("text=e-t", &[]),
        ("error=nothing", &[]),
    ] {
        let calls = sidecar.get(&format!("/jobs?{query}")).await.body;
        let mut names: Vec<_> =
            calls["items"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{query}");
        let page = browser.get(&format!("/ui/runs?{query}")).await.text;
        for name in ["a-one", "b-two", "c-three"] {
            let shown = page.contains(&format!("href=\"/ui/runs/{}/{name}\"", env.name));
            assert_eq!(shown, expected.contains(&name), "{query} {name}");
        }
        let text = if expected.is_empty() { "No runs match." } else { &format!("{} run", expected.len()) };
        assert!(page.contains(text), "{query}: {page}");
    }
    env.jobs().delete("b-two", &DeleteParams::default()).await.unwrap();
    wait_for_runs(&sidecar, "key=65f0", 0).await;
}

/// Presses a button of the list, and then the button of the confirmation.
async fn through(browser: &Browser<'_>, action: &str, form: &str) -> (Seen, Seen) {
    let asked = browser.press("/ui/bulk", &format!("action={action}&{form}")).await;
    let done = browser.press(&format!("/ui/bulk/{action}"), form).await;
    (asked, done)
}

#[tokio::test]
async fn permitted_users_cancel_retry_and_delete_many_runs() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let here = &env.name;
    let both = format!("run={here}/open&run={here}/failed&run={here}/none&run=elsewhere/open");
    for (name, verbs) in [
        ("nobody", &["get"][..]),
        ("viewer", &["list"]),
        ("starter", &["list", "create"]),
        ("cleaner", &["list", "delete"]),
        ("editor", &["list", "create", "patch", "delete"]),
    ] {
        let browser = Browser::with_token(&sidecar, &with_rights(&env, name, verbs).await).await;
        let list = browser.get("/ui/runs").await.text;
        let all = format!("all=true&filter=namespace%3D{here}");
        for (action, verb, was) in
            [("cancel", "patch", "open"), ("retry", "create", "failed"), ("delete", "delete", "failed")]
        {
            let may = verbs.contains(&verb) && verbs.contains(&"list");
            let button = format!("name=\"action\" value=\"{action}\"");
            assert_eq!(list.contains(&button), may, "{name} {action}: {list}");
            for form in [&both, &all] {
                let (asked, done) = if may && name != "editor" && action != "retry" {
                    let asked = browser.press("/ui/bulk", &format!("action={action}&{form}")).await;
                    (asked, None)
                } else {
                    let (asked, done) = through(&browser, action, form).await;
                    (asked, Some(done))
                };
                assert_eq!(asked.code.as_u16(), if may { 200 } else { 403 }, "{name} {action} {form}: {}", asked.text);
                if let Some(done) = done {
                    assert_eq!(
                        done.code.as_u16(),
                        if may { 200 } else { 403 },
                        "{name} {action} {form}: {}",
                        done.text
                    );
                }
                if may && name != "editor" {
                    assert!(
                        asked.text.contains(&format!("/ui/runs/{here}/{was}\"")),
                        "{name} {action} {form}: {}",
                        asked.text
                    );
                    assert!(asked.text.contains(": 1 run"), "{name} {action} {form}: {}", asked.text);
                }
            }
        }
        assert_eq!(list.contains("type=\"checkbox\" name=\"run\""), verbs.len() > 1, "{name}");
    }
    assert!(env.jobs().get("open").await.unwrap().spec.cancelled);
    assert!(env.jobs().get_opt("failed").await.unwrap().is_none());
    let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(
        jobs.len(),
        2,
        "the open run, and one retry of the failed one: {:?}",
        jobs.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    );
    eventually("each action has its event", async || {
        let events = events(&env).await;
        let by = |reason: &str, who: &str| {
            let who = format!("by system:serviceaccount:{here}:{who} over HTTP");
            events.iter().any(|event| {
                event.reason.as_deref() == Some(reason) && event.note.as_ref().is_some_and(|note| note.ends_with(&who))
            })
        };
        (by("CancelledByCall", "editor") && by("RetriedByCall", "starter") && by("CleanedUpByCall", "editor"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bulk_action_covers_all_matches_and_no_later_run() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::open(&env).await;
    let create = async |name: String| apply_job(&env, &name, json!({"suspended": true})).await;
    futures::stream::iter(0..210).for_each_concurrent(16, async |i| drop(create(format!("many-{i:03}")).await)).await;
    let other = create("other".to_owned()).await;
    wait_for_runs(&sidecar, "text=many", 210).await;
    let browser = Browser::new(&sidecar);
    let list = browser.get("/ui/runs?text=many").await.text;
    assert!(
        list.contains("210 runs match.")
            && list.contains("all 210 matching runs")
            && list.contains("value=\"text=many\""),
        "{list}"
    );
    let asked = browser.press("/ui/bulk", "action=cancel&all=true&filter=text%3Dmany").await.text;
    assert!(asked.contains("Cancel: 210 runs") && asked.contains("and 200 more"), "{asked}");
    let value = |page: &str, name: &str| {
        let rest = page.split(&format!("name=\"{name}\" value=\"")).nth(1).unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let last = other.creation_timestamp().unwrap().0.as_second();
    eventually("another second", async || (Timestamp::now().as_second() > last + 1).then_some(())).await;
    create("many-late".to_owned()).await;
    wait_for_runs(&sidecar, "text=many", 211).await;
    let step = async |page: &str| {
        let form =
            format!("all=true&filter={}&from={}", value(page, "filter").replace('=', "%3D"), value(page, "from"));
        browser.press("/ui/bulk/cancel", &form).await.text
    };
    let first = step(&asked).await;
    assert!(
        first.contains("200 runs cancelled")
            && first.contains("10 runs are left.")
            && first.contains("Continue with 10"),
        "{first}"
    );
    let second = step(&first).await;
    assert!(second.contains("10 runs cancelled") && second.contains("No runs are left."), "{second}");
    let jobs = env.jobs().list(&ListParams::default()).await.unwrap().items;
    let spared: Vec<_> = jobs.iter().filter(|job| !job.spec.cancelled).map(ResourceExt::name_any).collect();
    assert_eq!(spared, ["many-late", "other"]);
}

#[tokio::test]
async fn other_sites_and_markup_cannot_change_many_runs() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &administrator(&env).await).await;
    let form = format!("action=cancel&run={}/open", env.name);
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("origin", "https://localhost")],
        &[("origin", "https://evil.example")],
    ] {
        for path in ["/ui/bulk", "/ui/bulk/cancel"] {
            assert_eq!(browser.post(path, &form, headers).await.code, 403, "{path} {headers:?}");
        }
    }
    assert!(!env.jobs().get("open").await.unwrap().spec.cancelled);
    let quoted = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22'%3E%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E";
    for (path, form) in [
        ("/ui/bulk", format!("action={quoted}&run=a/b")),
        ("/ui/bulk", format!("action=cancel&run={quoted}/{quoted}")),
        ("/ui/bulk", format!("action=cancel&all=true&filter=text%3D{}", quoted.replace('%', "%25"))),
        ("/ui/bulk", format!("action=cancel&all=true&filter={quoted}")),
        ("/ui/bulk/delete", format!("all=true&from={quoted}&filter=error%3D{}", quoted.replace('%', "%25"))),
        ("/ui/bulk/retry", format!("run={quoted}/{quoted}")),
    ] {
        let page = browser.press(path, &form).await;
        assert!(page.text.contains("<!doctype html>"), "{form}: {}", page.text);
        assert!(!page.text.contains("<script>") && !page.text.contains("<img"), "{form}: {}", page.text);
    }
    for path in [
        format!("/ui/runs?error={quoted}"),
        format!("/ui/runs?key={quoted}"),
        format!("/ui/runs/{}/failed?failures={quoted}", env.name),
    ] {
        let page = browser.get(&path).await.text;
        assert!(
            page.contains("<!doctype html>") && !page.contains("<script>") && !page.contains("<img"),
            "{path}: {page}"
        );
    }
    // Without a session, each page redirects to the login.
    let stranger = Browser::new(&sidecar);
    for path in ["/ui/bulk", "/ui/bulk/cancel"] {
        let answer = stranger.press(path, &format!("action=cancel&run={}/open", env.name)).await;
        assert_eq!((answer.code.as_u16(), answer.location()), (303, "/ui/login?next=%2F"), "{path}");
    }
}
