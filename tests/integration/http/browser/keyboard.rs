//! Keyboard shortcuts.

use super::*;

const ESCAPE: &str = "\u{E00C}";

impl Chromium {
    async fn list_is_open(&self) -> bool {
        self.script("return document.querySelector('#keys').open").await == json!(true)
    }

    async fn focus(&self) -> String {
        self.script("return document.activeElement.id").await.as_str().unwrap().to_owned()
    }

    async fn is_at(&self, path: &str) {
        eventually(&format!("the browser is at {path}"), async || (self.path().await == path).then_some(())).await;
        self.shows("h1", "").await;
    }
}

#[tokio::test]
async fn keys_open_pages_and_the_list_of_keys() {
    let env = TestEnv::new().await;
    let port = free_port();
    let _operator = env.operator("all", &["--http-port", &port.to_string(), "--insecure-no-auth"]);
    let site = format!("http://localhost:{port}/");
    eventually("the operator serves", async || {
        reqwest::get(format!("{site}ui/runs")).await.ok()?.error_for_status().ok()
    })
    .await;
    let browser = Chromium::start().await;
    browser.open(&site).await;
    browser.shows("#slots", "kubectl explain syncschedule.spec").await;

    // The list opens by key or button. Escape closes it, and the focus returns.
    browser.script("document.querySelector('.brand').id = 'brand'; document.querySelector('.brand').focus()").await;
    browser.press("?").await;
    assert!(browser.list_is_open().await);
    browser.check_page("keys").await;
    browser.press(ESCAPE).await;
    assert!(!browser.list_is_open().await);
    assert_eq!(browser.focus().await, "brand");
    browser.click("#help").await;
    assert!(browser.list_is_open().await);
    browser.press(ESCAPE).await;
    assert_eq!((browser.list_is_open().await, browser.focus().await.as_str()), (false, "help"));

    for (keys, path) in [("gs", "/ui/schedules"), ("gr", "/ui/runs"), ("go", "/"), ("/", "/ui/runs")] {
        for key in keys.chars() {
            browser.press(&key.to_string()).await;
        }
        browser.is_at(path).await;
    }
    eventually("the search field has the focus", async || (browser.focus().await == "text").then_some(())).await;
    // Text in a field is no shortcut.
    for key in ["?", "g", "s"] {
        browser.press(key).await;
    }
    assert_eq!(browser.script("return document.querySelector('#text').value").await, "?gs");
    assert!(!browser.list_is_open().await);

    // The setting remains on other pages. The button works without shortcuts.
    browser.click("#help").await;
    browser.click("#keys-on").await;
    browser.press(ESCAPE).await;
    browser.open(&site).await;
    browser.press("?").await;
    assert!(!browser.list_is_open().await);
    browser.click("#help").await;
    browser.click("#keys-on").await;
    browser.press(ESCAPE).await;
    browser.press("?").await;
    assert!(browser.list_is_open().await);
    assert_eq!(browser.complaints().await, [""; 0]);
}
