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
/// Largest number of concurrent requests. The API server would not answer more requests any faster, and the renewal of
/// the Lease would wait behind them.
const REQUESTS: usize = 32;
/// Largest number of concurrent requests that report a status. A run that is due must not wait behind reports of
/// earlier runs.
const REPORTS: usize = 8;
/// Longest silence of a connection: a connection without data for this time counts as broken.
const SILENCE: Duration = Duration::from_secs(40);

/// Codes of refusals that another try may not meet: a token that is renewed, a time-out, too many requests.
const PASSING: [u16; 3] = [401, 408, 429];
/// Longest wait that the API server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// A request the API server did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused the request.
    #[error("could not {action}: {}", describe(source))]
    Refused {
        /// The request, as a verb phrase.
        action: &'static str,
        /// Error of the API server.
        source: kube::Error,
    },
    /// The API server did not answer in time. The request may have been executed.
    #[error("could not {0}: the Kubernetes API did not answer in time")]
    Timeout(&'static str),
}

impl Error {
    /// The object was changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// True when the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// True when an object of that name exists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// True when the namespace of the object is being deleted, so that no object can be created there.
    #[must_use]
    pub fn is_in_terminating_namespace(&self) -> bool {
        let details = self.status().and_then(|status| status.details.as_ref());
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// The request, as a verb phrase.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::Refused { action, .. } | Self::Timeout(action) => action,
        }
    }

    /// Cause of the failure, as far as retries depend on it. `None`: the API server cannot be reached, which affects
    /// all objects.
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

    /// Delay that the API server asks for.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let details = self.status().and_then(|status| status.details.as_ref());
        Duration::from_secs(details.map_or(0, |details| details.retry_after_seconds).into()).min(LONGEST_RETRY_AFTER)
    }

    /// Status with which the API server refused the request.
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

/// Awaits the answer of the API server for at most 10 s.
///
/// # Errors
/// When the API server refuses, cannot be reached, or does not answer in time.
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
/// When none of these exists, or the first that exists cannot be used.
pub async fn connect() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // Each caller decides how long a retry makes sense. The retries of the client would continue for minutes.
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
        // These fail only when the semaphore is closed, which never happens.
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
