//! The log of a process.

use std::{env, fs};

use crate::support::{TestEnv, eventually, probe_port, unique};

#[tokio::test]
async fn the_log_filter_changes_with_a_file_and_on_sighup() {
    let env = TestEnv::new().await;
    let file = env::temp_dir().join(unique("filter"));
    let name = file.to_str().unwrap();
    let mut worker = env.operator("worker", &["--log-filter-file", name]);
    probe_port(&worker).await;
    let wait_for_log = async |what: &str| {
        eventually(what, async || {
            let log = worker.log();
            log.lines().any(|line| line.contains(what)).then_some(())
        })
        .await;
    };
    fs::write(&file, "warn,sync_operator=trace\n").unwrap();
    worker.signal("HUP");
    wait_for_log(r#"log filter changed filter="warn,sync_operator=trace""#).await;
    fs::write(&file, "sync_operator=loud").unwrap();
    wait_for_log(r#"the log filter is not changed filter="sync_operator=loud""#).await;
    fs::write(&file, "error").unwrap();
    wait_for_log(r#"log filter changed filter="error""#).await;
    fs::remove_file(&file).unwrap();
    wait_for_log(r#"log filter changed filter="warn,sync_operator=info""#).await;
    assert!(worker.is_running());
}
