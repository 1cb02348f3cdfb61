//! Problem documents for errors (RFC 9457). They contain no internal data: no address, token or stack.

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{api::truncate, cluster};

/// The content type of a problem document.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";
/// Prefix of every `type`. `docs/reference/http.md` lists the types.
const TYPE_PREFIX: &str = "urn:sync-operator:problem:";

/// Kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProblemKind {
    /// The path, the query or a header cannot be read, or the body is no JSON.
    BadRequest,
    /// The request has no token, or a token that Kubernetes does not accept.
    Unauthenticated,
    /// The caller lacks a right.
    Forbidden,
    /// The object or the path does not exist.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// Several schedules match.
    Ambiguous,
    /// The call is not possible in the state of the object.
    Conflict,
    /// The body is longer than 64 KiB.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// The body is no object, or has a field that is not known or a value that is not allowed.
    InvalidBody,
    /// The Idempotency-Key was used for another call.
    KeyReused,
    /// The caller asks too often.
    TooManyRequests,
    /// Redis or the Kubernetes API does not do its part now.
    Unavailable,
    /// Too many concurrent calls for this process.
    Overloaded,
    /// An internal error.
    Internal,
}

impl ProblemKind {
    #[cfg(test)]
    const ALL: [Self; 15] = [
        Self::BadRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Ambiguous,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidBody,
        Self::KeyReused,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::Overloaded,
        Self::Internal,
    ];

    fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, "The request cannot be read"),
            Self::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED, "No valid token"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "Not allowed"),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The path has no such method")
            }
            Self::Ambiguous => ("ambiguous", StatusCode::CONFLICT, "Several schedules match"),
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "Not possible in this state"),
            Self::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too long"),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be JSON")
            }
            Self::InvalidBody => ("invalid-body", StatusCode::UNPROCESSABLE_ENTITY, "The body is not valid"),
            Self::KeyReused => {
                ("key-reused", StatusCode::UNPROCESSABLE_ENTITY, "The Idempotency-Key was used for another call")
            }
            Self::TooManyRequests => ("too-many-requests", StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Not available now"),
            Self::Overloaded => ("overloaded", StatusCode::SERVICE_UNAVAILABLE, "Too busy"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "An internal error"),
        }
    }
}

/// A call that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    kind: ProblemKind,
    detail: String,
    retry_after_s: Option<u64>,
    candidates: Vec<Candidate>,
}

/// A schedule that matches an ambiguous call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub(super) struct Candidate {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document {
    /// Kind of the problem: `urn:sync-operator:problem:` and a word.
    #[serde(rename = "type")]
    type_: String,
    /// Kind of the problem, as a title.
    title: &'static str,
    /// The status code.
    status: u16,
    /// Description of the mistake, and its fix.
    detail: String,
    /// Schedules to choose from with `?namespace=` and `?schedule=`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    candidates: Vec<Candidate>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let retry_after_s = matches!(kind, ProblemKind::Unavailable | ProblemKind::Overloaded).then_some(5);
        Self { kind, detail: detail.into(), retry_after_s, candidates: Vec::new() }
    }

    /// Kind of the problem.
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// Status code and title.
    pub fn title(&self) -> (StatusCode, &'static str) {
        let (_, status, title) = self.kind.parts();
        (status, title)
    }

    /// Description of the mistake, and its fix.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Adds the time after which a retry makes sense, in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Adds the candidates to choose from.
    pub fn with_candidates(self, candidates: Vec<Candidate>) -> Self {
        Self { candidates, ..self }
    }

    /// The objects are not listed yet.
    pub fn not_listed() -> Self {
        Self::new(ProblemKind::Unavailable, "the objects of the cluster are not listed yet")
    }
}

impl From<cluster::Error> for Problem {
    /// An error of Kubernetes about a user's object is shown to the user; other errors are logged.
    fn from(error: cluster::Error) -> Self {
        let refused = error.status().map(|status| (status.code, status.message.clone()));
        match refused {
            Some((404, _)) => Self::new(ProblemKind::NotFound, "there is no such object"),
            Some((409, _)) => Self::new(ProblemKind::Conflict, "the object was changed meanwhile; try again"),
            Some((400 | 422, message)) => {
                Self::new(ProblemKind::InvalidBody, format!("Kubernetes refuses the object: {}", truncate(&message)))
            }
            Some((403, message)) if is_over_quota(&message) => {
                Self::new(ProblemKind::Conflict, format!("Kubernetes refuses the object: {}", truncate(&message)))
            }
            Some((403, _)) => {
                tracing::error!(%error, "the service account of the operator lacks a permission");
                Self::new(ProblemKind::Unavailable, "the operator lacks a right in Kubernetes; its log has the details")
            }
            _ => {
                tracing::warn!(%error, "a call failed");
                Self::new(ProblemKind::Unavailable, "the Kubernetes API does not answer; try again")
            }
        }
    }
}

/// True for the refusal of an object by a ResourceQuota. It has the code of a missing right, without a cause.
fn is_over_quota(message: &str) -> bool {
    message.contains(" is forbidden: exceeded quota: ")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (word, status, title) = self.kind.parts();
        let problem = self.clone();
        let document = Document {
            type_: format!("{TYPE_PREFIX}{word}"),
            title,
            status: status.as_u16(),
            detail: self.detail,
            candidates: self.candidates,
        };
        let mut response = (status, Json(document)).into_response();
        let mut set = |name: HeaderName, value: HeaderValue| response.headers_mut().insert(name, value);
        set(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if problem.kind == ProblemKind::Unauthenticated {
            set(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            set(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The dashboard shows it as a page.
        response.extensions_mut().insert(problem);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_kubernetes_are_shown_except_missing_rights() {
        let quota = r#"syncjobs.sync.codex.dev "a" is forbidden: exceeded quota: teams, used: 3, limited: 3"#;
        let right = r#"syncjobs.sync.codex.dev is forbidden: User "b" cannot create resource "syncjobs""#;
        let ceiling = "spec.priority must be at most 0 in this namespace (ceiling teams): lower it";
        for (code, message, kind, is_shown) in [
            (403, quota, ProblemKind::Conflict, true),
            (403, right, ProblemKind::Unavailable, false),
            (422, ceiling, ProblemKind::InvalidBody, true),
            (409, "the object has been modified", ProblemKind::Conflict, false),
            (404, "not found", ProblemKind::NotFound, false),
            (500, "etcd", ProblemKind::Unavailable, false),
        ] {
            let status = serde_json::json!({"status": "Failure", "code": code, "message": message});
            let source = kube::Error::Api(serde_json::from_value(status).unwrap());
            let problem = Problem::from(cluster::Error::Refused { action: "create a SyncJob", source });
            assert_eq!((problem.kind, problem.detail.contains(message)), (kind, is_shown), "{message}");
        }
    }

    #[test]
    fn each_problem_is_in_the_reference_with_its_code() {
        let page = include_str!("../../docs/reference/http.md");
        for kind in ProblemKind::ALL {
            let (word, status, _) = kind.parts();
            assert!(page.contains(&format!("| `{word}` | {} |", status.as_u16())), "{kind:?}");
        }
    }
}
