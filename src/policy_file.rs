//! The policy file: reading at the start, and again when it changes.

use std::{
    fmt::Write,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use crate::{
    domain::{egress::AddressRule, policy::Policy},
    manifest::{self, file},
    policy::CurrentPolicy,
    telemetry::metrics,
};

/// Interval between reads of the file. A kubelet writes a changed ConfigMap within about a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Mistakes of a policy file, or the reason for which it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPolicy(String);

/// Settings of the process that the policy adds to.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Addresses of every namespace, in addition to those of the file.
    pub everywhere: Vec<AddressRule>,
    /// True when `ALLOWED_DATABASES` names databases.
    pub has_allowed_databases: bool,
}

/// Policy file, with its content when it was last read.
struct PolicyFile {
    path: PathBuf,
    flags: Flags,
    content: Result<String, InvalidPolicy>,
    policy: watch::Sender<Arc<Policy>>,
}

/// Reads a policy file. The future reads the file again when it changes, and never ends.
///
/// # Errors
/// When the file cannot be read, or is invalid.
pub fn open(
    path: &Path,
    flags: Flags,
) -> Result<(CurrentPolicy, impl Future<Output = ()> + Send + use<>), InvalidPolicy> {
    let content = file::read_to_string(path).map_err(InvalidPolicy)?;
    let (policy, current) = CurrentPolicy::new(parse(path, &content, &flags)?);
    metrics::policy_read(true);
    let file = PolicyFile { path: path.to_owned(), flags, content: Ok(content), policy };
    Ok((current, file.follow()))
}

fn parse(path: &Path, content: &str, flags: &Flags) -> Result<Policy, InvalidPolicy> {
    let parsed = manifest::parse_policy(&file::name(path), content);
    let policy = parsed.map_err(|findings| {
        let mut text = String::new();
        for finding in findings {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            write!(text, "{separator}{finding}").ok();
        }
        InvalidPolicy(text)
    })?;
    if policy.tenants.is_some() && flags.has_allowed_databases {
        let path = path.display();
        return Err(InvalidPolicy(format!(
            "{path}: tenants and ALLOWED_DATABASES exclude each other: move the databases to tenants[].mongodb.databases"
        )));
    }
    Ok(Policy { everywhere: flags.everywhere.clone(), ..policy })
}

impl PolicyFile {
    async fn follow(mut self) {
        loop {
            sleep(POLL_INTERVAL).await;
            match self.reload() {
                Some(Ok(())) => tracing::info!("the policy file has changed: the new policy applies"),
                Some(Err(error)) => {
                    tracing::error!(%error, "POLICY_FILE is invalid: the policy before it still applies");
                }
                None => {}
            }
        }
    }

    /// Reads the file, and applies its policy. `None`: the file is unchanged. A file that is invalid or missing changes
    /// nothing.
    fn reload(&mut self) -> Option<Result<(), InvalidPolicy>> {
        let content = file::read_to_string(&self.path).map_err(InvalidPolicy);
        if content == self.content {
            return None;
        }
        self.content.clone_from(&content);
        let policy = content.and_then(|content| parse(&self.path, &content, &self.flags));
        metrics::policy_read(policy.is_ok());
        Some(policy.map(|policy| drop(self.policy.send_replace(Arc::new(policy)))))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_file_applies_and_an_invalid_one_does_not() {
        let path = std::env::temp_dir().join(format!("sync-operator-{:016x}.yaml", rand::random::<u64>()));
        assert!(open(&path, Flags::default()).err().unwrap().to_string().starts_with("could not read"));
        let entry = |host: &str| format!("addresses: [{{name: a, hosts: [{host}]}}]");
        fs::write(&path, entry("one.example")).unwrap();
        let everywhere = vec![AddressRule::for_hosts(vec!["flag.example".to_owned()])];
        let flags = Flags { everywhere, has_allowed_databases: true };
        let content = fs::read_to_string(&path).unwrap();
        let (policy, current) = CurrentPolicy::new(parse(&path, &content, &flags).unwrap());
        let mut file = PolicyFile { path: path.clone(), flags, content: Ok(content), policy };
        let allowed = |host: &str| current.egress("team-a").get().check_host(host, false).is_ok();
        assert_eq!(file.reload(), None);
        assert!(allowed("one.example") && allowed("flag.example") && !allowed("two.example"));

        fs::write(&path, "adresses: []").unwrap();
        let error = file.reload().unwrap().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:1:1: error: adresses", path.display())), "{error}");
        assert_eq!(file.reload(), None, "an error is reported once");
        fs::remove_file(&path).unwrap();
        assert!(file.reload().unwrap().unwrap_err().to_string().starts_with("could not read"));
        assert_eq!(file.reload(), None, "an error is reported once");
        assert!(allowed("one.example"), "the policy before it still applies");

        fs::write(&path, "tenants: []").unwrap();
        let error = file.reload().unwrap().unwrap_err().to_string();
        assert!(error.contains("tenants and ALLOWED_DATABASES exclude each other"), "{error}");

        fs::write(&path, entry("two.example")).unwrap();
        assert_eq!(file.reload(), Some(Ok(())));
        assert!(allowed("two.example") && allowed("flag.example") && !allowed("one.example"));
        fs::remove_file(&path).unwrap();
    }
}
