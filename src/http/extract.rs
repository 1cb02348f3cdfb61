//! Parts of a request, with problem documents for invalid parts.

use std::{fmt, marker::PhantomData, sync::Arc};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use utoipa::IntoParams;

use super::{
    App,
    auth::{Caller, ProxyIdentity},
    problem::{Problem, ProblemKind},
};

/// Longest body.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// A body with a JSON object. None, an empty one and `null` are the default.
pub(super) struct Body<T>(pub T);

/// JSON object, or `null`. Serde would also read the fields of a struct from an array, in their order.
struct Object<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let bytes = Bytes::from_request(request, state).await.map_err(|error| unreadable(&error))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        if !is_json {
            return Err(Problem::new(
                ProblemKind::UnsupportedMediaType,
                "send the header Content-Type: application/json",
            ));
        }
        let body = serde_json::from_slice::<Object<T>>(&bytes).map(|Object(body)| body.unwrap_or_default());
        body.map(Self).map_err(|error| {
            let kind = if error.is_data() { ProblemKind::InvalidBody } else { ProblemKind::BadRequest };
            Problem::new(kind, format!("the body: {error}"))
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn unreadable(error: &BytesRejection) -> Problem {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(ProblemKind::TooLarge, "the body must have at most 64 KiB")
    } else {
        Problem::new(ProblemKind::BadRequest, "the body is incomplete")
    }
}

/// Parameters after the `?`.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(Problem::new(ProblemKind::BadRequest, format!("the query: {}", error.body_text()))),
        }
    }
}

/// Parts of the path.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(_) => Err(Problem::new(ProblemKind::NotFound, "there is no such path")),
        }
    }
}

/// Authenticates the caller: the identity of a trusted proxy, or a valid token.
pub(super) async fn caller(parts: &Parts, app: &App) -> Result<Arc<Caller>, Problem> {
    match parts.extensions.get() {
        Some(ProxyIdentity(caller)) => Ok(Arc::clone(caller)),
        None => app.access.caller(&parts.headers).await,
    }
}

/// Extractor for an authenticated caller; rejects anonymous requests.
pub(super) struct Authenticated(pub Arc<Caller>);

impl FromRequestParts<App> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        caller(parts, app).await.map(Self)
    }
}

/// Extractor for a reader; accepts anonymous requests where reading is open.
pub(super) struct Reader(pub Arc<Caller>);

impl FromRequestParts<App> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        app.access.reader(&parts.headers).await.map(Self)
    }
}

/// Namespace and name of an object, from the path of a request.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ObjectPath {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}
