//! SyncAlerts, with real sinks.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use ring::hmac;
use serde_json::{Value, json};
use sync_operator::api::{SyncAlert, SyncAlertStatus};

use crate::{
    servers::DedicatedServer,
    sinks::{Delivery, HttpSink, Instead, MailSink, PASSWORD, USER},
    support::{
        ALLOWED, Operator, SIGNING_KEY, TestEnv, apply_alert, apply_once, eventually, secret, signing_key,
        wait_for_events, webhook,
    },
};

const HOOK: &str = "/hook";

fn alerts(env: &TestEnv) -> Api<SyncAlert> {
    Api::namespaced(env.client.clone(), &env.name)
}

async fn status(env: &TestEnv) -> SyncAlertStatus {
    alerts(env).get("team").await.unwrap().status.unwrap_or_default()
}

/// Creates a schedule whose only run fails.
async fn fail(env: &TestEnv, name: &str) {
    apply_once(env, name, json!({"syncType": "Full", "target": {"filter": {"age": {"$bigger": 3}}}})).await;
}

/// Triggers another run of the schedule, which fails if `is_wrong`.
async fn run_again(env: &TestEnv, name: &str, token: &str, is_wrong: bool) {
    let filter = if is_wrong { json!({"age": {"$bigger": 3}}) } else { json!({}) };
    let template = json!({"spec": {"target": {"filter": Value::Null}}});
    let clear = json!({"spec": {"jobTemplate": template}});
    let patch = json!({"metadata": {"annotations": {"sync.codex.dev/trigger": token}},
        "spec": {"jobTemplate": {"spec": {"target": {"filter": filter}}}}});
    for patch in [clear, patch] {
        env.patch_schedule(name, patch).await;
    }
}

/// Adds users, and a server with the Secret for its webhooks.
async fn world_on(env: TestEnv) -> (TestEnv, HttpSink) {
    let http = HttpSink::start().await;
    env.seed(10, 0).await;
    signing_key(&env, &http).await;
    (env, http)
}

async fn world() -> (TestEnv, HttpSink) {
    world_on(TestEnv::new().await).await
}

/// Creates a Secret with a login and the CA bundle of a mail server.
async fn mail_secret(env: &TestEnv, mail: &MailSink, name: &str, password: &str) {
    let ca = mail.authority.pem();
    let entries = [("user", USER), ("password", password), ("ca.crt", &*ca)];
    secret(env, name, &entries, &format!("localhost:{}", mail.port)).await;
}

fn assert_signed(taken: &Delivery) {
    let given = taken.headers["x-signature"].to_str().unwrap().strip_prefix("sha256=").unwrap();
    let tag: Vec<u8> =
        (0..given.len()).step_by(2).map(|at| u8::from_str_radix(&given[at..at + 2], 16).unwrap()).collect();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, SIGNING_KEY.as_bytes()), taken.body.as_bytes(), &tag).unwrap();
}

#[tokio::test]
async fn each_kind_of_sink_receives_a_failure_and_its_end() {
    let ((env, http), mail) = (world().await, MailSink::start().await);
    let slack = format!("{}/services", http.url);
    secret(&env, "slack", &[("url", &format!("{slack}/T0/secret-path"))], &slack).await;
    secret(&env, "token", &[("token", "secret-token")], &http.url).await;
    mail_secret(&env, &mail, "mail", PASSWORD).await;
    let entry = |name: &str, key: &str| json!({"name": name, "key": key});
    let sinks = json!([
        webhook(&http, HOOK),
        {"name": "slack", "slack": {"urlSecretRef": entry("slack", "url")}},
        {"name": "events", "cloudEvents": {"url": format!("{}/events", http.url), "tokenSecretRef": entry("token", "token")}},
        {"name": "mail", "smtp": {"host": "localhost", "port": mail.port, "from": "Sync <sync@example.com>",
            "to": ["ops@example.com", "Ada <ada@example.com>"], "caSecretRef": entry("mail", "ca.crt"),
            "usernameSecretRef": entry("mail", "user"), "passwordSecretRef": entry("mail", "password")}},
    ]);
    let template = json!({"template": {"title": "{{ firing|length }} at {{ name|upper }}"}});
    apply_alert(&env, &sinks, &template).await;
    let (operator, _) = env.all(&ALLOWED);
    fail(&env, "user-sync").await;

    let taken = http.wait_for_deliveries(HOOK, 1).await;
    assert_signed(&taken[0]);
    let body = taken[0].json();
    assert_eq!((&body["title"], &body["namespace"]), (&json!("1 at TEAM"), &json!(env.name)));
    let alert = &body["firing"][0];
    assert_eq!((&alert["type"], &alert["schedule"]), (&json!("RunFailed"), &json!("user-sync")));
    assert!(alert["message"].as_str().unwrap().contains("InvalidTarget"), "{alert}");
    let slack = http.wait_for_deliveries("/services/T0/secret-path", 1).await[0].json();
    assert!(slack["text"].as_str().unwrap().starts_with("*1 at TEAM*\nFIRING RunFailed user-sync"), "{slack}");
    let event = &http.wait_for_deliveries("/events", 1).await[0];
    assert_eq!(event.headers["authorization"], "Bearer secret-token");
    assert!(event.headers["content-type"].to_str().unwrap().starts_with("application/cloudevents+json"));
    let event = event.json();
    assert_eq!((&event["specversion"], &event["type"]), (&json!("1.0"), &json!("dev.codex.sync.alert.v1")));
    assert_eq!(event["data"]["firing"][0]["id"], alert["id"]);
    let mails = mail.wait_for_mails(1).await;
    for part in ["To: ops@example.com,ada@example.com", "Subject: 1 at TEAM", "FIRING RunFailed user-sync"] {
        assert!(mails[0].contains(part), "{part}: {}", mails[0]);
    }

    run_again(&env, "user-sync", "1", false).await;
    http.wait_for_deliveries("/services/T0/secret-path", 2).await;
    http.wait_for_deliveries("/events", 2).await;
    assert_signed(&http.wait_for_deliveries(HOOK, 2).await[1]);
    assert_eq!(http.notifications(HOOK), ["firing RunFailed user-sync", "resolved RunFailed user-sync"]);
    assert!(mail.wait_for_mails(2).await[1].contains("RESOLVED RunFailed user-sync"));

    let status = eventually("no alert is left to send", async || {
        Some(status(&env).await).filter(|status| status.alerts.is_empty() && status.firing == Some(0))
    });
    let status = status.await;
    assert!(
        status.last_sent_time.is_some()
            && status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
    );
    for sink in &status.sinks {
        let ready = sink.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert!(ready.status == "True" && sink.last_sent_time.is_some() && sink.last_error.is_none(), "{sink:?}");
    }
    let shown = format!("{}{}", operator.log(), serde_json::to_string(&status).unwrap());
    for secret in ["secret-path", "secret-token", PASSWORD, SIGNING_KEY] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn each_sink_gets_each_alert_once_despite_failing_sinks() {
    let (env, http) = world().await;
    http.answer("/bad", [Instead::Status(500), Instead::Silence(Duration::from_secs(40)), Instead::Wait(3)]);
    apply_alert(&env, &json!([webhook(&http, "/bad"), webhook(&http, "/good")]), &json!({})).await;
    let (_operator, _) = env.all(&ALLOWED);
    fail(&env, "first").await;
    eventually("the bad sink stalls", async || {
        (http.state().requests.iter().filter(|path| *path == "/bad").count() == 2).then_some(())
    })
    .await;
    fail(&env, "second").await;
    http.wait_for_deliveries("/good", 2).await;
    assert!(http.deliveries("/bad").is_empty());
    eventually("the failure of the sink is reported", async || {
        let status = status(&env).await;
        let bad = status.sinks.first()?;
        ((bad.name.as_str(), bad.last_error.as_deref()) == ("bad", Some("it answered with 500"))).then_some(())
    })
    .await;
    wait_for_events(&env, "team", &["SinkFailing"]).await;

    http.wait_for_deliveries("/bad", 1).await;
    eventually("both sinks are recorded as notified", async || {
        let is_sent = |alert: &sync_operator::api::syncalert::Alert| alert.notified.len() == 2;
        status(&env).await.alerts.iter().all(is_sent).then_some(())
    })
    .await;
    for path in ["/bad", "/good"] {
        let mut messages = http.notifications(path);
        messages.sort();
        assert_eq!(messages, ["firing RunFailed first", "firing RunFailed second"], "{path}");
    }
    wait_for_events(&env, "team", &["SinkRecovered"]).await;
}

#[tokio::test]
async fn mail_is_retried_during_an_outage_and_a_refusal_reported() {
    let ((env, _), mail) = (world().await, MailSink::start().await);
    mail_secret(&env, &mail, "mail", PASSWORD).await;
    mail_secret(&env, &mail, "wrong", "wrong").await;
    let entry = |name: &str, key: &str| json!({"name": name, "key": key});
    let smtp = |name: &str, login: &str| {
        json!({"name": name, "smtp": {"host": "localhost", "port": mail.port, "from": "sync@example.com",
            "to": ["ops@example.com"], "caSecretRef": entry("mail", "ca.crt"),
            "usernameSecretRef": entry(login, "user"), "passwordSecretRef": entry(login, "password")}})
    };
    mail.answer(Some("451 later"));
    apply_alert(&env, &json!([smtp("right", "mail"), smtp("wrong", "wrong")]), &json!({})).await;
    let (_operator, _) = env.all(&ALLOWED);
    fail(&env, "user-sync").await;
    let failing = eventually("both sinks have failed", async || {
        let status = status(&env).await;
        let have_failed = status.sinks.len() == 2 && status.sinks.iter().all(|sink| sink.last_error.is_some());
        have_failed.then_some(status.sinks)
    });
    let failing = failing.await;
    let reasons: Vec<_> = failing.iter().map(|sink| sink.conditions[0].reason.as_str()).collect();
    assert_eq!(reasons, ["SinkUnavailable", "InvalidSink"], "{failing:?}");
    assert_eq!(failing[0].last_error.as_deref(), Some("it answered with 451"));
    let refused = failing[1].last_error.clone().unwrap();
    assert!(refused.contains("refuses the login"), "{refused}");
    mail.answer(None);
    mail.wait_for_mails(1).await;
    assert_eq!(mail.mails().len(), 1);
}

/// Waits until the operator has counted the last run of a schedule.
async fn wait_until_counted(env: &TestEnv, name: &str, runs: i64) {
    eventually("the run is counted", async || {
        let runs_so_far = env.schedules().get(name).await.ok()?.status?.runs;
        (runs_so_far.succeeded + runs_so_far.failed >= runs).then_some(())
    })
    .await;
}

/// Waits until the status says that each alert fires and was sent.
async fn wait_until_sent(env: &TestEnv, firing: i32) {
    eventually("all alerts were sent", async || {
        let status = status(env).await;
        let is_sent = status.alerts.iter().all(|alert| alert.resolved.is_none() && !alert.notified.is_empty());
        (status.firing == Some(firing) && is_sent).then_some(())
    })
    .await;
}

#[tokio::test]
async fn alerts_are_sent_at_most_twice_after_kills_and_redis_loss() {
    let (_own, servers) = DedicatedServer::up("redis");
    let url = servers.redis.clone();
    let (env, http) = world_on(TestEnv::on(servers).await).await;
    http.answer(HOOK, [Instead::Status(503), Instead::Status(500)]);
    apply_alert(&env, &json!([webhook(&http, HOOK)]), &json!({})).await;
    let start = || -> Operator { env.all(&ALLOWED).0 };

    // The operator is killed while the sink is unavailable: the alert is not lost.
    let mut operator = start();
    fail(&env, "user-sync").await;
    eventually("the sink was asked", async || (!http.state().requests.is_empty()).then_some(())).await;
    operator.kill();
    // The operator is killed when the message has arrived.
    let mut operator = start();
    http.wait_for_deliveries(HOOK, 1).await;
    operator.kill();
    let operator = start();
    wait_until_sent(&env, 1).await;
    assert!(http.notifications(HOOK).len() <= 2, "{:?}", http.notifications(HOOK));

    // The status has the sent alerts, so they are not lost with Redis.
    drop(operator);
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    let firing = http.notifications(HOOK).len();
    let operator = start();
    run_again(&env, "user-sync", "1", true).await;
    wait_until_counted(&env, "user-sync", 2).await;
    wait_until_sent(&env, 1).await;
    assert_eq!(http.notifications(HOOK).len(), firing, "a problem that lasts is not sent again");

    run_again(&env, "user-sync", "2", false).await;
    http.wait_for_deliveries(HOOK, firing + 1).await;
    drop(operator);
    let _operator = start();
    wait_until_sent(&env, 0).await;
    let sent = http.notifications(HOOK);
    let (before, after) = sent.split_at(firing);
    assert!(before.iter().all(|sent| sent == "firing RunFailed user-sync"), "{sent:?}");
    assert!(
        (1..=2).contains(&after.len()) && after.iter().all(|sent| sent == "resolved RunFailed user-sync"),
        "{sent:?}"
    );
}

#[tokio::test]
async fn a_requested_test_is_sent_once() {
    let (env, http) = world().await;
    apply_alert(&env, &json!([webhook(&http, HOOK)]), &json!({"groupWindow": "1h"})).await;
    let (_operator, _) = env.all(&ALLOWED);
    let ask = async |token: &str| {
        let patch = json!({"metadata": {"annotations": {"sync.codex.dev/test": token}}});
        alerts(&env).patch("team", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        eventually("the test was sent", async || {
            (status(&env).await.last_handled_test.as_deref() == Some(token)).then_some(())
        })
        .await;
    };
    ask("1").await;
    http.wait_for_deliveries(HOOK, 1).await;
    ask("1").await;
    ask("2").await;
    http.wait_for_deliveries(HOOK, 2).await;
    assert_eq!(http.notifications(HOOK), ["firing Test ", "firing Test "]);
    wait_for_events(&env, "team", &["TestDelivered"]).await;
}

#[tokio::test]
async fn a_sinks_condition_has_its_error_without_secrets() {
    let (env, http) = world().await;
    let path = "/services/secret-path";
    secret(&env, "other-host", &[("url", &format!("{}{path}", http.url))], "hooks.slack.com").await;
    secret(&env, "other-path", &[("url", &format!("{}{path}", http.url))], &format!("{}/services/T0", http.url)).await;
    secret(&env, "no-url", &[("url", "secret-path")], "127.0.0.1").await;
    let slack = |name: &str, secret: &str, key: &str| json!({"name": name, "slack": {"urlSecretRef": {"name": secret, "key": key}}});
    http.answer("/gone", std::iter::repeat_n(Instead::Status(404), 100));
    let mut metadata_server = webhook(&http, "/inside");
    metadata_server["webhook"]["url"] = json!("https://169.254.169.254/latest");
    secret(&env, "inside", &[("key", SIGNING_KEY)], "169.254.169.254").await;
    metadata_server["webhook"]["hmacSecretRef"]["name"] = json!("inside");
    let sinks = json!([
        slack("a", "other-host", "url"),
        slack("b", "no-url", "url"),
        slack("c", "nowhere", "url"),
        slack("d", "no-url", "key"),
        slack("e", "other-path", "url"),
        webhook(&http, "/gone"),
        metadata_server,
    ]);
    apply_alert(&env, &sinks, &json!({"template": {"text": "{% include 'x' %}"}})).await;
    let (operator, _) = env.all(&ALLOWED);
    fail(&env, "user-sync").await;
    let failed = eventually("every sink has failed", async || {
        let status = status(&env).await;
        let is_known = status.sinks.iter().all(|sink| sink.conditions.iter().any(|it| it.status != "Unknown"));
        (status.sinks.len() == 7 && is_known).then_some(status)
    });
    let failed = failed.await;
    for (sink, part) in failed.sinks.iter().zip([
        "Secret other-host may not be used for http://127.0.0.1:",
        "the value in Secret no-url is no http or https URL",
        "there is no Secret nowhere",
        "Secret no-url has no key key",
        "Secret other-path may not be used for the path of a request to http://127.0.0.1:",
        "it refuses messages with 404",
        "it is at a link-local address, which the operator does not allow: only a network allows it",
    ]) {
        let ready = &sink.conditions[0];
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSink"), "{sink:?}");
        assert!(ready.message.contains(part), "{part}: {}", ready.message);
    }
    let ready = failed.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSink"));
    let shown = format!("{}{}", operator.log(), serde_json::to_string(&failed).unwrap());
    assert!(!shown.contains("secret-path"));
    assert!(http.deliveries(path).is_empty());

    // When the Secret allows the host, a change of the spec or a test causes a delivery at once.
    let secrets: Api<Secret> = Api::namespaced(env.client.clone(), &env.name);
    let allow = json!({"metadata": {"annotations": {"sync.codex.dev/hosts": http.url}}});
    secrets.patch("other-host", &PatchParams::default(), &Patch::Merge(allow)).await.unwrap();
    let change = json!({"spec": {"repeatInterval": "2h"}});
    alerts(&env).patch("team", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    let slack = http.wait_for_deliveries(path, 1).await[0].json();
    assert!(slack["text"].as_str().unwrap().contains("FIRING RunFailed user-sync"), "in the usual words: {slack}");
}
