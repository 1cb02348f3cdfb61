//! Runs in the browser: the page of a run, and actions on many runs.

use super::*;
use crate::{
    http::auth::{show_events, with_rights},
    support::{Operator, apply_job, finished},
};

const EDIT: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];
const LOOK: [&str; 3] = ["get", "list", "watch"];

impl Chromium {
    async fn log_in(&self, site: &str, token: &str) {
        self.open(&format!("{site}/ui/login")).await;
        self.type_into("#token", token).await;
        self.click("main button").await;
        self.shows("h1", "Overview").await;
    }

    async fn sees(&self, selector: &str) -> bool {
        self.script(&format!("return !!document.querySelector({selector:?})")).await == json!(true)
    }
}

/// Starts an operator with a schedule of slow runs and a schedule whose runs fail. Returns it with the URL of its
/// dashboard.
async fn operator(env: &TestEnv) -> (Operator, String) {
    env.seed(3_000, 30).await;
    let slow = json!({"spec": {"batchSize": 10, "parallelism": 1}});
    apply_schedule(env, "users", json!({"schedule": "0 3 * * *", "jobTemplate": slow})).await;
    let wrong = json!({"spec": {"type": "Pipeline", "backoffLimit": 0, "target": {"database": "elsewhere"}}});
    apply_schedule(env, "pipelines", json!({"schedule": "0 4 * * *", "jobTemplate": wrong})).await;
    let port = free_port().to_string();
    let logs = "https://logs.example/?q={uid}&pod={pod}&from={from}&to={to}";
    let settings = ["--http-port", &port, "--dashboard-logs-url", logs, "--status-interval", "200ms"];
    let operator = env.operator("all", &settings);
    let site = format!("http://localhost:{port}");
    eventually("the operator serves", async || reqwest::get(format!("{site}/ui/login")).await.ok()).await;
    (operator, site)
}

#[tokio::test]
async fn a_user_views_a_finished_run() {
    let env = TestEnv::new().await;
    let (_operator, site) = operator(&env).await;
    let editor = with_rights(&env, "editor", &EDIT).await;
    show_events(&env, "editor").await;
    let browser = Chromium::start().await;
    browser.log_in(&site, &editor).await;
    browser.open(&format!("{site}/ui/schedules/{}/users", env.name)).await;
    browser.click("button[aria-label='Run full: users']").await;
    browser.shows("#phase", "Complete").await;
    let run = browser.path().await;
    browser.shows(".timeline", "Complete").await;
    browser.shows("h2:has(+ svg.curve)", "Documents per second").await;
    browser.shows("#failures", "30 documents failed. A run keeps the details of the first 20").await;
    eventually("the event of its end", async || {
        browser.open(&format!("{site}{run}")).await;
        browser.text("#events").await.contains("RunCompleted").then_some(())
    })
    .await;
    let link = browser.script("return document.querySelector('a[rel=noreferrer]').href").await;
    assert!(link.as_str().unwrap().starts_with("https://logs.example/?q="), "{link}");
    browser.check_page("run-ended").await;
    browser.script("document.querySelector('#failures').scrollIntoView()").await;
    browser.check_page("run-failures").await;
    browser.click("#failures .pages a").await;
    browser.shows("#failures h2", "11 to 20 of 20").await;
    browser.open(&format!("{site}/ui/schedules/{}/pipelines", env.name)).await;
    browser.click("button[aria-label='Run full: pipelines']").await;
    browser.shows("#phase", "Failed").await;
    browser.check_page("run-failed").await;

    // A user with read rights sees no events and no buttons.
    browser.click(".who form button").await;
    browser.log_in(&site, &with_rights(&env, "viewer", &LOOK).await).await;
    browser.open(&format!("{site}{run}")).await;
    browser.shows(".timeline", "Complete").await;
    assert!(!browser.sees("#events").await && !browser.sees("main form").await);
    browser.open(&format!("{site}/ui/runs")).await;
    browser.shows("#bulk [role=status]", "runs match.").await;
    assert!(!browser.sees("#bulk input[type=checkbox]").await && !browser.sees("#bulk button").await);
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_user_finds_runs_and_changes_many() {
    let env = TestEnv::new().await;
    let (_operator, site) = operator(&env).await;
    let browser = Chromium::start().await;
    browser.log_in(&site, &with_rights(&env, "editor", &EDIT).await).await;
    for _ in 0..3 {
        browser.open(&format!("{site}/ui/schedules/{}/pipelines", env.name)).await;
        browser.click("button[aria-label='Run full: pipelines']").await;
        browser.shows("#phase", "Failed").await;
    }
    browser.open(&format!("{site}/ui/runs")).await;
    browser.type_into("#error", "invalidtarget").await;
    browser.shows("#bulk [role=status]", "3 runs match.").await;
    let in_address = async || browser.path().await.contains("error=invalidtarget").then_some(());
    eventually("the address has the filter", in_address).await;
    browser.check_page("runs-found").await;

    // The selection by keyboard stays when events change the page.
    browser.open(&format!("{site}/ui/runs?phase=Failed")).await;
    browser.script("document.querySelector('td.check input').focus()").await;
    browser.press(" ").await;
    let ticked = "return document.querySelectorAll('td.check input:checked').length";
    let rows = "return document.querySelectorAll('tbody tr').length";
    assert_eq!(browser.script(ticked).await, json!(1));
    apply_job(&env, "late", json!({"target": {"database": "elsewhere"}, "backoffLimit": 0})).await;
    finished(&env, "late").await;
    browser.script("window.began = Date.now()").await;
    let waited = async || browser.script("return Date.now() - window.began").await.as_i64();
    eventually("time for some refreshes", async || waited().await.filter(|waited| *waited > 3000)).await;
    assert_eq!([browser.script(ticked).await, browser.script(rows).await], [json!(1), json!(3)]);
    browser.check_page("runs-chosen").await;
    browser.click("button[value=retry]").await;
    browser.shows("h1", "Retry: 1 run?").await;
    browser.check_page("bulk-one").await;
    browser.click("main form button").await;
    browser.shows("h1", "1 run retried").await;
    browser.shows("main", "No runs are left.").await;

    // All matching runs.
    browser.open(&format!("{site}/ui/runs?phase=Failed&schedule=pipelines")).await;
    browser.shows("#bulk [role=status]", "4 runs match.").await;
    browser.click("#all").await;
    browser.click("button[value=delete]").await;
    browser.shows("h1", "Delete: 4 runs?").await;
    browser.check_page("bulk-all").await;
    browser.click("main form button").await;
    browser.shows("h1", "runs deleted").await;
    browser.check_page("bulk-done").await;
    browser.open(&format!("{site}/ui/runs?phase=Failed&schedule=pipelines")).await;
    browser.shows("main", "No runs match.").await;
    browser.open(&format!("{site}/ui/runs")).await;
    browser.click("#all").await;
    browser.click("button[value=cancel]").await;
    browser.shows("h1", "No runs to cancel").await;
    browser.check_page("bulk-none").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}
