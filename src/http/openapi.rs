//! `/openapi.json`: OpenAPI document of the handlers, with the parts that all of them share.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use utoipa::{
    PartialSchema,
    openapi::{
        ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
        SecurityRequirement,
        path::{Operation, PathItem},
        security::{Http, HttpAuthScheme, SecurityScheme},
        server::Server,
    },
};

use super::{
    prefix::Prefix,
    problem::{Candidate, Document, PROBLEM_JSON},
};

const TOKEN: &str = "token";

/// The document as text, of calls below a prefix or not.
pub(super) fn finish(mut document: OpenApi, prefix: Option<&Prefix>) -> String {
    document.servers = prefix.map(|prefix| vec![Server::new(prefix.as_str())]);
    document.info = InfoBuilder::new()
        .title("sync-operator")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("The calls of the HTTP API. docs/reference/http.md shows each with an answer."))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = document.components.get_or_insert_default();
    for (name, schema) in [("Problem", Document::schema()), ("Candidate", Candidate::schema())] {
        components.schemas.insert(name.to_owned(), schema);
    }
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme(TOKEN, scheme);
    for item in document.paths.paths.values_mut() {
        for (method, operation) in operations(item) {
            complete(&method, operation);
        }
    }
    document.to_pretty_json().unwrap_or_default()
}

/// Adds the problems to each call, and the token to each call that changes an object.
fn complete(method: &HttpMethod, operation: &mut Operation) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description("A problem document (RFC 9457)").content(PROBLEM_JSON, problem);
    operation.responses.responses.insert("default".to_owned(), RefOr::T(problem.build()));
    if *method == HttpMethod::Post {
        operation.security = Some(vec![SecurityRequirement::new(TOKEN, [""; 0])]);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let get = item.get.as_mut().map(|operation| (HttpMethod::Get, operation));
    let post = item.post.as_mut().map(|operation| (HttpMethod::Post, operation));
    get.into_iter().chain(post)
}

pub(super) fn answer(document: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], document).into_response()
}
