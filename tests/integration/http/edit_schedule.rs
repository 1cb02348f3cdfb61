//! Changes of a schedule in the dashboard: its due times, and its suspension with a note.

use kube::ResourceExt;
use serde_json::json;
use sync_operator::{api::SUSPEND_NOTE_ANNOTATION, http::ReadAccess};

use super::{
    Sidecar,
    auth::{administrator, with_rights},
    browser::Chromium,
    dashboard::{Browser, MARKUP, start_sidecar},
};
use crate::support::{TestEnv, apply_schedule, events, eventually, free_port};

/// Percent-encodes a field of a form.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"))
}

async fn notes(env: &TestEnv, reason: &str) -> Vec<String> {
    let about = events(env).await.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
    about.filter_map(|event| event.note).collect()
}

#[tokio::test]
async fn a_note_explains_a_suspension_until_it_ends() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &administrator(&env).await).await;
    let page = format!("/ui/schedules/{}/users", env.name);
    let noted = async |name: &str| {
        let schedule = env.schedules().get(name).await.unwrap();
        (schedule.spec.suspended, schedule.annotations().get(SUSPEND_NOTE_ANNOTATION).cloned())
    };
    let suspend = async |note: &str| {
        browser.press(&format!("{page}/suspend"), &format!("note={}&next={page}", encoded(note))).await
    };
    assert!(browser.get(&page).await.text.contains("resume"));
    assert_eq!(browser.press(&format!("{page}/resume"), "").await.code, 303);

    // The next page shows the note as text.
    assert_eq!(suspend(MARKUP).await.location(), page);
    assert_eq!(noted("users").await, (true, Some(MARKUP.to_owned())));
    for path in [&page, "/ui/schedules"] {
        let text = eventually("the note is shown", async || {
            let text = browser.get(path).await.text;
            text.contains("&#60;script&#62;alert(1)").then_some(text)
        })
        .await;
        assert!(!text.contains("<script>") && !text.contains("<img"), "{text}");
    }
    assert_eq!(suspend("a better reason").await.code, 303, "the note of a suspended object can be changed");
    assert_eq!(noted("users").await, (true, Some("a better reason".to_owned())));
    let open = env.jobs().get("open").await.unwrap();
    assert!(!open.spec.suspended, "the run does not belong to this schedule");
    eventually("the event", async || {
        let notes = notes(&env, "PausedByCall").await;
        notes.iter().any(|note| note.starts_with("Suspended: a better reason, by system:serviceaccount:")).then_some(())
    })
    .await;

    assert_eq!(browser.press(&format!("{page}/resume"), "note=ignored").await.code, 303);
    assert_eq!(noted("users").await, (false, None));
    for wrong in ["x".repeat(257), "a\nb".to_owned()] {
        assert_eq!(suspend(&wrong).await.code, 400, "{wrong}");
    }
    assert_eq!(noted("users").await, (false, None));
}

#[tokio::test]
async fn the_due_time_of_a_schedule_can_be_changed() {
    let env = TestEnv::new().await;
    let sidecar = start_sidecar(&env).await;
    let browser = Browser::with_token(&sidecar, &administrator(&env).await).await;
    let page = format!("/ui/schedules/{}/users", env.name);
    let edit = format!("{page}/edit");
    let spec = async || {
        let schedule = env.schedules().get("users").await.unwrap();
        let spec = serde_json::to_value(&schedule.spec).unwrap();
        [spec["interval"].clone(), spec["schedule"].clone(), spec["timeZone"].clone()]
    };
    let generation = async || env.schedules().get("users").await.unwrap().metadata.generation.unwrap();
    let save = async |fields: &str| browser.press(&edit, &format!("generation={}&{fields}", generation().await)).await;

    let form = browser.get(&edit).await.text;
    assert!(form.contains("value=\"20m\"") && form.contains("Every 20 minutes"), "{form}");
    let preview =
        browser.get(&format!("{edit}?grid=cron&schedule=0+3+*+*+*&timeZone=Europe%2FBerlin&interval=20m")).await;
    assert!(preview.text.contains("At 03:00, Europe/Berlin") && preview.text.contains(" 03:00 CE"), "{}", preview.text);
    let preview = browser.get(&format!("{edit}?grid=cron&schedule={}", encoded(MARKUP))).await.text;
    assert!(preview.contains("cron-wrong") && !preview.contains("<script>") && !preview.contains("<img"), "{preview}");

    let saved = save("grid=cron&schedule=0+3+*+*+*&timeZone=Europe%2FBerlin&interval=20m").await;
    assert_eq!((saved.code.as_u16(), saved.location()), (303, page.as_str()));
    assert_eq!(spec().await, [json!(null), json!("0 3 * * *"), json!("Europe/Berlin")]);
    assert!(browser.get(&page).await.text.contains("At 03:00, Europe/Berlin"));
    eventually("the event", async || {
        let changed = "Changed from Every 20 minutes to At 03:00, Europe/Berlin, by system:serviceaccount:";
        notes(&env, "RescheduledByCall").await.iter().any(|note| note.starts_with(changed)).then_some(())
    })
    .await;
    assert_eq!(save("grid=interval&interval=5m&schedule=0+3+*+*+*&timeZone=Europe%2FBerlin").await.code, 303);
    assert_eq!(spec().await, [json!("5m"), json!(null), json!(null)]);

    // Mistakes that the sidecar finds, and one that only the API server finds: the limit of 128 characters.
    let minutes = (0..60).map(|minute| minute.to_string()).collect::<Vec<_>>().join(",");
    let long = format!("grid=cron&schedule={minutes}+0+1+*+*");
    for (fields, place) in [
        ("grid=interval&interval=5", "interval-wrong"),
        ("grid=interval&interval=9000h", "interval-wrong"),
        ("grid=cron&schedule=0+0+31+2+*", "cron-wrong"),
        ("grid=cron&schedule=", "cron-wrong"),
        (&long, "cron-wrong"),
        ("grid=cron&schedule=@daily&timeZone=Mars%2FOlympus", "zone-wrong"),
    ] {
        let answer = save(fields).await;
        assert_eq!(answer.code, 422, "{fields}: {}", answer.text);
        assert!(answer.text.contains(&format!("id=\"{place}\"")), "{fields}: {}", answer.text);
    }
    assert_eq!(spec().await, [json!("5m"), json!(null), json!(null)]);

    // Another client has changed the schedule in the meantime.
    let seen = generation().await;
    env.patch_schedule("users", json!({"spec": {"interval": "7m"}})).await;
    let late = browser.press(&edit, &format!("generation={seen}&grid=interval&interval=9m")).await;
    assert_eq!((late.code.as_u16(), spec().await[0].clone()), (409, json!("7m")), "{}", late.text);
    // A change of the status is no conflict.
    env.patch_schedule_status("users", json!({"activeCount": 3})).await;
    assert_eq!(save("grid=interval&interval=9m").await.code, 303);
}

#[tokio::test]
async fn a_change_requires_the_right_to_patch_the_schedule() {
    let env = TestEnv::new().await;
    let sidecar = Sidecar::new(&env, Some(ReadAccess::Open), 1000).await;
    apply_schedule(&env, "users", json!({})).await;
    eventually("the sidecar has seen the schedule", async || {
        (sidecar.get("/jobs/status").await.body["repeatable"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let page = format!("/ui/schedules/{}/users", env.name);
    let edit = format!("{page}/edit");
    let form = "generation=1&grid=interval&interval=5m";
    for (name, verbs) in [("viewer", &["list", "create"][..]), ("editor", &["list", "patch"])] {
        let browser = Browser::with_token(&sidecar, &with_rights(&env, name, verbs).await).await;
        let may = verbs.contains(&"patch");
        assert_eq!(browser.get(&page).await.text.contains(&edit), may, "{name}");
        assert_eq!(browser.get(&edit).await.code.as_u16(), if may { 200 } else { 403 }, "{name}");
        for site in ["cross-site", "same-site", "none"] {
            assert_eq!(browser.post(&edit, form, &[("sec-fetch-site", site)]).await.code, 403, "{name} {site}");
        }
        assert_eq!(browser.press(&edit, form).await.code.as_u16(), if may { 303 } else { 403 }, "{name}");
    }
    assert_eq!(Browser::new(&sidecar).press(&edit, form).await.location(), "/ui/login?next=%2F");
}

#[tokio::test]
async fn a_user_edits_the_due_time_and_suspends_with_a_note() {
    let env = TestEnv::new().await;
    apply_schedule(&env, "users", json!({"interval": "20m"})).await;
    let port = free_port();
    let _operator = env.operator("all", &["--http-port", &port.to_string(), "--leader-lease-namespace", &env.name]);
    let token = administrator(&env).await;
    let browser = Chromium::start().await;
    browser.chrome("Emulation.setTimezoneOverride", json!({"timezoneId": "Asia/Tokyo"})).await;
    let site = format!("http://localhost:{port}");
    eventually("the operator serves", async || reqwest::get(format!("{site}/ui/login")).await.ok()).await;
    browser.open(&format!("{site}/ui/schedules/{}/users", env.name)).await;
    browser.type_into("#token", &token).await;
    browser.click("main button").await;
    browser.shows("h1", "users").await;

    browser.click("a[href$='/edit']").await;
    browser.shows("#preview", "Every 20 minutes").await;
    browser.click("[value=cron]").await;
    browser.type_into("#cron", "0 3 * * *").await;
    browser.shows("#preview", "At 03:00, UTC").await;
    // The preview is in the time zone of the browser, also after the browser fetched a part of the page again.
    browser.shows("#preview .yours", "12:00 GMT+9").await;
    browser.type_into("#zone", "Mars/Olympus").await;
    browser.shows("#preview", "is not known").await;
    browser.click("button.primary").await;
    browser.shows("#zone-wrong", "use an IANA name").await;
    browser.check_page("edit-wrong").await;
    browser.script("document.getElementById('zone').value = ''").await;
    browser.type_into("#zone", "Europe/Berlin").await;
    browser.shows("#preview", "At 03:00, Europe/Berlin").await;
    browser.check_page("edit").await;
    browser.click("button.primary").await;
    browser.shows(".slots", "03:00 CE").await;
    browser.shows(".slots .yours", "GMT+9").await;

    browser.click("#suspend summary").await;
    browser.type_into("#note", "until the import <b>is</b> over").await;
    browser.check_page("suspend").await;
    browser.click("#suspend button").await;
    browser.shows(".note", "until the import <b>is</b> over").await;
    browser.check_page("schedule-suspended").await;
    browser.open(&format!("{site}/ui/schedules")).await;
    browser.shows(".card .note", "until the import <b>is</b> over").await;
    browser.click("button[aria-label='Resume: users']").await;
    eventually("the schedule is resumed", async || browser.text(".note").await.is_empty().then_some(())).await;
    assert_eq!(browser.complaints().await.iter().filter(|text| !text.contains("422")).count(), 0);
}
