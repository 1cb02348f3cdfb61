//! The dashboard of an operator process in the Chromium of Debian.

mod keyboard;
mod runs;

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::auth::administrator;
use crate::support::{TestEnv, apply_schedule, eventually, free_port, quiet_interval, variable};

/// The key of an element in the answers of WebDriver. <https://www.w3.org/TR/webdriver2/#elements>
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser without a window. Ends with its driver when dropped.
pub struct Chromium {
    driver: Child,
    session: String,
    http: reqwest::Client,
}

impl Chromium {
    pub async fn start() -> Self {
        assert!(
            Path::new("/usr/bin/chromedriver").exists(),
            "chromium is not installed: run tests/cluster/install.sh chromium"
        );
        let port = free_port();
        let mut driver = Command::new("/usr/bin/chromedriver");
        // In their own process group, so that both can be killed.
        driver.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let driver = driver.spawn().unwrap();
        let http = reqwest::Client::new();
        let options = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let sessions = format!("http://127.0.0.1:{port}/session");
        let session = eventually("the browser starts", async || {
            let answer = http.post(&sessions).body(options.to_string()).send().await.ok()?;
            let answer: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
            Some(format!("{sessions}/{}", answer["value"]["sessionId"].as_str()?))
        })
        .await;
        Self { driver, session, http }
    }

    pub async fn command(&self, path: &str, body: Value) -> Result<Value, String> {
        let url = format!("{}/{path}", self.session);
        let answer = self.http.post(url).body(body.to_string()).send().await.unwrap().text().await.unwrap();
        let value = serde_json::from_str::<Value>(&answer).unwrap()["value"].take();
        if value["error"].is_string() { Err(value["message"].to_string()) } else { Ok(value) }
    }

    pub async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await.unwrap();
    }

    pub async fn script(&self, script: &str) -> Value {
        self.command("execute/sync", json!({"script": script, "args": []})).await.unwrap()
    }

    pub async fn text(&self, selector: &str) -> String {
        let text = self.script(&format!("return document.querySelector({selector:?})?.textContent ?? ''")).await;
        text.as_str().unwrap().trim().to_owned()
    }

    pub async fn path(&self) -> String {
        self.script("return location.pathname + location.search").await.as_str().unwrap().to_owned()
    }

    /// Clicks an element that exists, is visible, and is not covered.
    pub async fn click(&self, selector: &str) {
        eventually(&format!("{selector} can be clicked"), async || {
            let found = self.command("element", json!({"using": "css selector", "value": selector})).await.ok()?;
            let element = found[ELEMENT].as_str()?.to_owned();
            self.command(&format!("element/{element}/click"), json!({})).await.ok()
        })
        .await;
    }

    pub async fn type_into(&self, selector: &str, text: &str) {
        let found = self.command("element", json!({"using": "css selector", "value": selector})).await.unwrap();
        let element = found[ELEMENT].as_str().unwrap();
        self.command(&format!("element/{element}/value"), json!({"text": text})).await.unwrap();
    }

    /// Presses a key: <https://www.w3.org/TR/webdriver2/#keyboard-actions> lists those without a letter.
    pub async fn press(&self, key: &str) {
        let actions = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("actions", json!({"actions": [keyboard]})).await.unwrap();
    }

    pub async fn shows(&self, selector: &str, text: &str) {
        eventually(&format!("{selector} shows {text:?}"), async || {
            self.text(selector).await.contains(text).then_some(())
        })
        .await;
    }

    pub async fn chrome(&self, method: &str, params: Value) {
        self.command("goog/cdp/execute", json!({"cmd": method, "params": params})).await.unwrap();
    }

    /// Checks a page at the sizes of a desktop, a tablet and a phone, light and dark. The page must not overflow, and
    /// axe must find no violation. Writes screenshots into the folder `SCREENSHOTS`, if that is set.
    pub async fn check_page(&self, name: &str) {
        for (size, width, height) in [("desktop", 1440, 900), ("tablet", 820, 1180), ("phone", 390, 844)] {
            let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"});
            self.chrome("Emulation.setDeviceMetricsOverride", metrics).await;
            for scheme in ["light", "dark"] {
                let feature = json!({"name": "prefers-color-scheme", "value": scheme});
                self.chrome("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
                let wide = self.script("return document.documentElement.scrollWidth - innerWidth").await;
                assert!(wide.as_i64().unwrap() <= 0, "{name} is {wide} px too wide for a {size}");
                // Only colours differ between light and dark.
                let rules: &[&str] = if scheme == "dark" { &["color-contrast"] } else { &[] };
                assert_eq!(self.violations(rules).await, json!([]), "{name} for a {size}, {scheme}");
                if let Some(folder) = env::var_os("SCREENSHOTS") {
                    let file = Path::new(&folder).join(format!("{name}-{size}-{scheme}.png"));
                    fs::write(file, self.screenshot().await).unwrap();
                }
            }
        }
        self.chrome("Emulation.clearDeviceMetricsOverride", json!({})).await;
    }

    async fn screenshot(&self) -> Vec<u8> {
        let url = format!("{}/screenshot", self.session);
        let answer: Value =
            serde_json::from_str(&self.http.get(url).send().await.unwrap().text().await.unwrap()).unwrap();
        BASE64.decode(answer["value"].as_str().unwrap()).unwrap()
    }

    /// The accessibility violations of a page, by these rules or by all. <https://github.com/dequelabs/axe-core>
    pub async fn violations(&self, rules: &[&str]) -> Value {
        if self.script("return !window.axe").await == json!(true) {
            self.script(&fs::read_to_string(variable("AXE")).unwrap()).await;
        }
        let only = if rules.is_empty() { json!({}) } else { json!({"type": "rule", "values": rules}) };
        let script = "const [only, done] = arguments; \
            axe.run({resultTypes: ['violations'], ...(only.type && {runOnly: only})}).then(({violations}) => \
            done(violations.map(({help, nodes}) => [help, ...nodes.map(({html, failureSummary}) => html + failureSummary)])))";
        self.command("execute/async", json!({"script": script, "args": [only]})).await.unwrap()
    }

    /// The errors in the console of the browser: failed scripts, and violations of the content security policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.command("se/log", json!({"type": "browser"})).await.unwrap();
        let severe = log.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let kill = |arguments: &[&str]| Command::new("kill").args(arguments).stderr(Stdio::null()).status().ok();
        let driver = self.driver.id().to_string();
        kill(&[&driver]);
        self.driver.wait().ok();
        // The driver may end without its browser.
        kill(&["-KILL", "--", &format!("-{driver}")]);
    }
}

#[tokio::test]
async fn a_user_watches_and_controls_runs() {
    let env = TestEnv::new().await;
    env.seed(30_000, 3).await;
    apply_schedules(&env).await;
    let port = free_port();
    let _operator = env.operator("all", &["--http-port", &port.to_string()]);
    let token = administrator(&env).await;
    let browser = Chromium::start().await;
    let site = format!("http://localhost:{port}");
    let page = format!("{site}/ui/schedules/{}/users", env.name);

    eventually("the operator serves", async || reqwest::get(format!("{site}/ui/login")).await.ok()).await;
    log_in(&browser, &site, &token).await;
    start_and_watch_a_run(&browser).await;
    suspend_cancel_and_retry_the_run(&browser, &site).await;
    suspend_and_resume_a_schedule(&browser, &site, &env).await;
    browser.open(&page).await;
    browser.shows(".slots", "in").await;
    browser.check_page("schedule").await;
    skip_the_header_by_keyboard(&browser).await;
    filter_runs_while_typing(&browser, &site).await;
    assert_eq!(browser.complaints().await, [""; 0]);
    watch_without_events(&browser, &page).await;

    browser.click(".who form button").await;
    browser.shows("h1", "Log in").await;
    browser.open(&site).await;
    browser.shows("h1", "Log in").await;
}

async fn apply_schedules(env: &TestEnv) {
    // The run is slow enough for the page to show its progress.
    let slow = json!({"spec": {"batchSize": 1, "parallelism": 1}});
    apply_schedule(env, "users", json!({"schedule": "0 3 * * *", "jobTemplate": slow})).await;
    let projects = json!({"interval": quiet_interval(20), "jobTemplate": {"spec": {"type": "Project"}}});
    apply_schedule(env, "projects", projects).await;
    // Two more schedules for the pages: one with short runs, and one whose runs fail.
    let soon = json!({"spec": {"type": "Issue", "target": {"collection": "issues"}}});
    apply_schedule(env, "issues", json!({"interval": "2s", "jobTemplate": soon})).await;
    let wrong = json!({"spec": {"type": "Pipeline", "backoffLimit": 0, "target": {"database": "elsewhere"}}});
    apply_schedule(env, "pipelines", json!({"interval": "7s", "jobTemplate": wrong})).await;
}

async fn log_in(browser: &Chromium, site: &str, token: &str) {
    browser.open(&format!("{site}/ui/schedules?text=user")).await;
    browser.shows("h1", "Log in").await;
    browser.check_page("login").await;
    browser.type_into("#token", token).await;
    browser.click("main button").await;
    browser.shows("h1", "Schedules").await;
    assert_eq!(browser.path().await, "/ui/schedules?text=user");
    browser.shows(".card p", "At 03:00, UTC").await;
}

/// Waits until the page shows other progress than now.
async fn wait_for_progress(browser: &Chromium) {
    let seen = browser.text("#processed").await;
    eventually("progress moves", async || (browser.text("#processed").await != seen).then_some(())).await;
}

/// The page shows the progress of the run without a reload.
async fn start_and_watch_a_run(browser: &Chromium) {
    browser.click("button[aria-label='Run full: users']").await;
    browser.shows("#phase", "Running").await;
    browser.script("window.same = true").await;
    for _ in 0..3 {
        wait_for_progress(browser).await;
    }
    browser.shows("#live", "live").await;
    browser.check_page("run").await;
    browser.click("#spec summary").await;
    wait_for_progress(browser).await;
    assert_eq!(browser.script("return [window.same, document.querySelector('#spec').open]").await, json!([true, true]));
}

async fn suspend_cancel_and_retry_the_run(browser: &Chromium, site: &str) {
    let first = browser.path().await;
    browser.click("form[action$='/suspend'] button").await;
    browser.shows("#phase", "Suspended").await;
    browser.click("form[action$='/resume'] button").await;
    browser.shows("#phase", "Running").await;
    browser.open(site).await;
    browser.shows("#workers", "users-t").await;
    browser.shows("#failures", "InvalidTarget").await;
    browser.check_page("overview").await;
    browser.open(&format!("{site}{first}")).await;
    browser.click("#cancel summary").await;
    browser.check_page("cancel").await;
    wait_for_progress(browser).await;
    browser.click("form[action$='/cancel'] button").await;
    browser.shows("#phase", "Cancelled").await;
    browser.click("form[action$='/retry'] button").await;
    eventually("the page of the new run", async || (browser.path().await != first).then_some(())).await;
    browser.shows("#phase", "Running").await;
    browser.shows(".facts", "Retry of").await;
}

async fn suspend_and_resume_a_schedule(browser: &Chromium, site: &str, env: &TestEnv) {
    browser.open(&format!("{site}/ui/schedules")).await;
    browser.click("button[aria-label='Suspend: projects']").await;
    browser.shows(".card.dim", "Suspended").await;
    assert!(env.schedules().get("projects").await.unwrap().spec.suspended);
    browser.check_page("schedules").await;
    browser.click("button[aria-label='Resume: projects']").await;
    eventually("the schedule is resumed", async || browser.text(".card.dim").await.is_empty().then_some(())).await;
}

/// The first key shows a link that skips the header.
async fn skip_the_header_by_keyboard(browser: &Chromium) {
    browser.press("\u{E004}").await;
    let seen = "const skip = document.activeElement; return [skip.className, skip.getBoundingClientRect().left >= 0]";
    assert_eq!(browser.script(seen).await, json!(["skip", true]));
    browser.press("\u{E007}").await;
    assert_eq!(browser.script("return document.activeElement.id").await, "main");
}

/// A filter applies while the user types. It stays in the address, and the cursor keeps its position.
async fn filter_runs_while_typing(browser: &Chromium, site: &str) {
    browser.open(&format!("{site}/ui/runs")).await;
    browser.check_page("runs").await;
    browser.script("window.same = true").await;
    browser.type_into("#text", "nothing").await;
    browser.shows("main", "No runs match.").await;
    assert!(browser.path().await.contains("text=nothing"), "{}", browser.path().await);
    assert_eq!(browser.script("return [window.same, document.activeElement.id]").await, json!([true, "text"]));
}

/// Without events, the page polls.
async fn watch_without_events(browser: &Chromium, page: &str) {
    browser.chrome("Network.enable", json!({})).await;
    browser.chrome("Network.setBlockedURLs", json!({"urls": ["*/ui/events*"]})).await;
    browser.open(page).await;
    browser.click("button[aria-label='Run full: users']").await;
    browser.shows("#live", "every 5 s").await;
    wait_for_progress(browser).await;
    browser.shows("#live", "every 5 s").await;
}

#[tokio::test]
async fn another_origin_is_refused() {
    let env = TestEnv::new().await;
    apply_schedule(&env, "users", json!({"interval": quiet_interval(60)})).await;
    let (operator, port) = env.all(&[]);
    let site = format!("http://localhost:{port}");
    let paused = async || {
        let status = reqwest::get(format!("{site}/jobs/status")).await.ok()?.text().await.ok()?;
        let status: Value = serde_json::from_str(&status).ok()?;
        (!status["repeatable"].as_array()?.is_empty()).then_some(status["paused"] == true)
    };
    eventually("the operator serves", paused).await;
    let browser = Chromium::start().await;
    let pause =
        format!("return fetch('{site}/jobs/pause', {{method: 'POST', mode: 'no-cors'}}).then(a => a.status, () => -1)");
    // The metrics server of the same process is another origin of this machine.
    let log = operator.log();
    let metrics = log.lines().find(|line| line.contains("METRICS_PORT")).unwrap();
    let other = metrics.rsplit_once("0.0.0.0:").unwrap().1.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    for page in ["data:text/html,<p>another page", &format!("http://localhost:{other}/livez")] {
        browser.open(page).await;
        browser.script(&pause).await;
        assert_eq!(paused().await, Some(false), "{page}");
    }
    // A link to the dashboard works, and so does a call of one of its pages.
    browser.script(&format!("location.href = '{site}/'")).await;
    browser.shows("h1", "Overview").await;
    assert_eq!(browser.script(&pause).await, json!(200));
    assert_eq!(paused().await, Some(true));
}
