//! Kubernetes API requests: timeout, error classification and prioritisation.

use std::{future::Future, time::Duration};

use kube::{Client, Config};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::domain::failure::Cause;

/// Longest wait for one answer of the API server.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests at a time. More would not be answered any faster, and keep the renewal of the Lease waiting.
const REQUESTS: usize = 32;
/// How many of them may be reports. A run that is due must not wait behind reports of earlier ones.
const REPORTS: usize = 8;
/// A connection on which nothing comes for so long is dead, too, whatever is waited for.
const SILENCE: Duration = Duration::from_secs(40);

/// Codes of refusals that another try may not meet: a token that is renewed, a time-out, too many requests.
const PASSING: [u16; 3] = [401, 408, 429];
/// Longest wait that the API server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// A request the API server did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refused.
    #[error("could not {action}: {}", describe(source))]
    Refused {
        /// What was asked, as a verb phrase.
        action: &'static str,
        /// What it said.
        source: kube::Error,
    },
    /// It did not answer in time. What was asked may have been done.
    #[error("could not {0}: the Kubernetes API did not answer in time")]
    Timeout(&'static str),
}

impl Error {
    /// The object was changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// The object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// An object of that name is there.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// Its namespace is being deleted, and nothing is created there any more.
    #[must_use]
    pub fn is_in_terminating_namespace(&self) -> bool {
        let details = self.status().and_then(|status| status.details.as_ref());
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// What was asked, as a verb phrase.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::Refused { action, .. } | Self::Timeout(action) => action,
        }
    }

    /// Why it failed, as far as it matters for the next try. `None`: the API server cannot be reached, which all objects have
    /// in common.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        let Self::Refused { source, .. } = self else { return Some(Cause::Busy) };
        match source {
            kube::Error::Api(status) if status.is_conflict() => Some(Cause::Conflict),
            kube::Error::Api(status) if (400..500).contains(&status.code) && !PASSING.contains(&status.code) => {
                Some(Cause::Refused)
            }
            kube::Error::Api(_) => Some(Cause::Busy),
            kube::Error::SerdeError(_) => Some(Cause::Refused),
            _ => None,
        }
    }

    /// How long the API server wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let details = self.status().and_then(|status| status.details.as_ref());
        Duration::from_secs(details.map_or(0, |details| details.retry_after_seconds).into()).min(LONGEST_RETRY_AFTER)
    }

    /// What the API server said when it refused.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status),
            _ => None,
        }
    }
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => status.reason.clone(),
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::SerdeError(error) => error.to_string(),
        kube::Error::Service(_) | kube::Error::HyperError(_) => "the Kubernetes API cannot be reached".to_owned(),
        other => other.to_string(),
    }
}

/// Waits for an answer of the API server, at most for 10 s.
///
/// # Errors
/// When it refuses, cannot be reached, or does not answer in time.
pub async fn call<T>(action: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match timeout(LIMIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Refused { action, source }),
        Err(_) => Err(Error::Timeout(action)),
    }
}

/// A client from `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
///
/// # Errors
/// When none of them is there, or what is there cannot be used.
pub async fn connect() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // Each caller knows for how long a retry makes sense; the client's own go on for minutes.
    config.default_retry = false;
    Client::try_from(config)
}

/// Priority class of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Requests that the start of a run waits for.
    StartRun,
    /// Requests that report status: at most 8 at a time, each after the `StartRun` requests that were queued before it.
    ReportStatus,
}

/// Limit of the requests in flight, in all and for each class.
pub(super) struct RequestLimiter {
    requests: Semaphore,
    reports: Semaphore,
}

impl RequestLimiter {
    pub fn new() -> Self {
        Self { requests: Semaphore::new(REQUESTS), reports: Semaphore::new(REPORTS) }
    }

    /// Waits for a permit to send a request.
    pub async fn acquire(&self, class: RequestClass) -> RequestPermit<'_> {
        // These fail only when the semaphore was closed, and nobody does that.
        let report = match class {
            RequestClass::StartRun => None,
            RequestClass::ReportStatus => self.reports.acquire().await.ok(),
        };
        RequestPermit { _request: self.requests.acquire().await.ok(), _report: report }
    }
}

/// Permit to send a request, until it is dropped.
#[derive(Debug)]
pub struct RequestPermit<'a> {
    _request: Option<SemaphorePermit<'a>>,
    _report: Option<SemaphorePermit<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_the_next_try_may_expect() {
        let error = |code: u16, reason: &str| {
            let status = serde_json::json!({"status": "Failure", "code": code, "reason": reason, "message": "no",
                "details": {"retryAfterSeconds": 7}});
            let source = kube::Error::Api(serde_json::from_value(status).unwrap());
            Error::Refused { action: "create a SyncJob", source }
        };
        for (code, reason, cause) in [
            (403, "Forbidden", Cause::Refused),
            (422, "Invalid", Cause::Refused),
            (400, "BadRequest", Cause::Refused),
            (401, "Unauthorized", Cause::Busy),
            (429, "TooManyRequests", Cause::Busy),
            (500, "InternalError", Cause::Busy),
            (503, "ServiceUnavailable", Cause::Busy),
            (409, "Conflict", Cause::Conflict),
            (404, "NotFound", Cause::Refused),
        ] {
            let error = error(code, reason);
            assert_eq!((error.cause(), error.retry_after()), (Some(cause), Duration::from_secs(7)), "{code}");
            assert_eq!(error.to_string(), "could not create a SyncJob: no");
        }
        assert_eq!(Error::Timeout("write").cause(), Some(Cause::Busy));
    }

    #[tokio::test]
    async fn reports_leave_room_for_starts() {
        let limiter = RequestLimiter::new();
        let mut permits = Vec::new();
        for _ in 0..REPORTS {
            permits.push(limiter.acquire(RequestClass::ReportStatus).await);
        }
        let now = Duration::from_millis(1);
        assert!(timeout(now, limiter.acquire(RequestClass::ReportStatus)).await.is_err(), "no more reports");
        for _ in REPORTS..REQUESTS {
            permits.push(limiter.acquire(RequestClass::StartRun).await);
        }
        assert!(timeout(now, limiter.acquire(RequestClass::StartRun)).await.is_err(), "no more at all");
        permits.pop();
        assert!(timeout(now, limiter.acquire(RequestClass::StartRun)).await.is_ok());
    }
}
