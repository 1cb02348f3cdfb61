//! Runs the examples of docs/reference/http.md. The answers must have the documented shape.
//! `UPDATE_DOCS=1` updates the documented answers.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::auth::administrator;
use crate::support::{
    TestEnv, apply_job, apply_schedule, eventually, free_port, get, quiet_interval, wait_until_running,
};

const PAGE: &str = "docs/reference/http.md";
const MAX_LINE: usize = 110;

/// A command, and its documented answer.
struct Example {
    command: String,
    answer: String,
}

fn examples(page: &str) -> Vec<Example> {
    let blocks = page.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let examples = blocks.flat_map(|block| block.strip_prefix("$ ").unwrap().split("\n$ ").collect::<Vec<_>>());
    examples
        .map(|example| {
            let (command, answer) = example.split_once('\n').unwrap_or((example, ""));
            Example { command: command.to_owned(), answer: answer.to_owned() }
        })
        .collect()
}

/// True when two values have the same keys with values of the same type. `null` matches every type.
fn same_shape(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same_shape(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.is_empty() == b.is_empty() && a.iter().zip(b).all(|(a, b)| same_shape(a, b))
        }
        (Value::Null, _) | (_, Value::Null) => true,
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn pretty(answer: &Value) -> String {
    let line = answer.to_string();
    if line.len() <= MAX_LINE { line } else { serde_json::to_string_pretty(answer).unwrap() }
}

#[tokio::test]
async fn the_examples_of_the_reference_have_the_listed_answers() {
    let env = TestEnv::new().await;
    env.seed(20_000, 0).await;
    let port = free_port();
    let http = ["--http-address", "127.0.0.1", "--http-port", &port.to_string()];
    let _operator = env.operator("all", &http);
    let slow = json!({"batchSize": 1, "parallelism": 1});
    apply_schedule(&env, "user-sync", json!({"interval": quiet_interval(20), "jobTemplate": {"spec": slow}})).await;
    let mut spec = slow;
    spec["syncType"] = json!("Full");
    apply_job(&env, "nightly", spec).await;
    wait_until_running(&env, "nightly").await;
    eventually("calls are served", async || get(port, "/health").await.filter(|(code, _)| *code == 200)).await;

    let token = administrator(&env).await;
    let page = fs::read_to_string(PAGE).unwrap();
    let (mut written, mut job) = (page.clone(), String::new());
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    for Example { command, answer: documented } in examples(&page) {
        let expected: Option<Value> = serde_json::from_str(&documented).ok();
        let fits = |answer: &Value| expected.as_ref().is_some_and(|expected| same_shape(expected, answer));
        let script = format!("curl() {{ command curl -sS --noproxy '*' --max-time 30 \"$@\"; }}\n{command}");
        let ask = || {
            let mut bash = Command::new("bash");
            bash.args(["-c", &script]).env("HOST", format!("http://127.0.0.1:{port}"));
            bash.env("TOKEN", &token).env("NS", &env.name).env("JOB", &job);
            serde_json::from_slice::<Value>(&bash.output().unwrap().stdout).ok()
        };
        // A call with an effect is sent once. A run can be retried only after its end.
        let answer = if command.contains("-X POST") && !command.contains("/retry") {
            ask().unwrap()
        } else {
            let there = |answer: &Value| if update { answer["status"] != 409 } else { fits(answer) };
            eventually(&format!("{command}\nanswers {documented}"), async || ask().filter(there)).await
        };
        assert!(update || fits(&answer), "{command}\nanswers {answer}\nand not {documented}");
        if command.contains("/trigger/") {
            answer["name"].as_str().unwrap().clone_into(&mut job);
        }
        if update {
            let answer = pretty(&answer).replace(&env.name, "default");
            let old = format!("$ {command}\n{documented}");
            let rest = if documented.ends_with('\n') || documented.is_empty() { "\n" } else { "" };
            written = written.replace(&old, &format!("$ {command}\n{answer}{rest}"));
        }
    }
    if update {
        fs::write(PAGE, written).unwrap();
    }
}
