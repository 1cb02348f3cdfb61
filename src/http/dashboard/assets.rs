//! Files of the dashboard, inside the program. Their names have a hash of their content, so browsers can cache them.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use sha2::{Digest, Sha256};

use crate::http::problem::{Problem, ProblemKind};

/// A file.
pub(super) struct Asset {
    path: LazyLock<String>,
    content_type: &'static str,
    content: &'static str,
}

macro_rules! asset {
    ($name:literal, $extension:literal, $content_type:literal) => {
        Asset {
            path: LazyLock::new(|| {
                let content = include_str!(concat!("assets/", $name, ".", $extension));
                path($name, content, $extension)
            }),
            content_type: $content_type,
            content: include_str!(concat!("assets/", $name, ".", $extension)),
        }
    };
}

pub(super) static STYLE: Asset = asset!("style", "css", "text/css; charset=utf-8");
pub(super) static LIVE: Asset = asset!("live", "js", "text/javascript; charset=utf-8");
/// <https://htmx.org>, under the Zero-Clause BSD licence (`assets/htmx.LICENSE`).
pub(super) static HTMX: Asset = asset!("htmx.min", "js", "text/javascript; charset=utf-8");
pub(super) static ZONE: Asset = asset!("zone", "js", "text/javascript; charset=utf-8");
pub(super) static KEYS: Asset = asset!("keys", "js", "text/javascript; charset=utf-8");
pub(super) static ICON: Asset = asset!("icon", "svg", "image/svg+xml");

fn path(name: &str, content: &str, extension: &str) -> String {
    let hash = Sha256::digest(content);
    let hash = BASE64.encode(&hash[..9]);
    format!("/ui/static/{name}.{hash}.{extension}")
}

impl Asset {
    /// Path of the asset.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Answers with a file.
pub(super) async fn serve(Path(name): Path<String>) -> Result<Response, Problem> {
    let mut assets = [&STYLE, &LIVE, &HTMX, &ZONE, &KEYS, &ICON].into_iter();
    let found = assets.find(|asset| asset.path().rsplit('/').next() == Some(&name));
    let asset = found.ok_or_else(|| Problem::new(ProblemKind::NotFound, "there is no such file"))?;
    let headers = [(CONTENT_TYPE, asset.content_type), (CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((headers, asset.content).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_follows_from_what_is_in_it() {
        assert!(STYLE.path().starts_with("/ui/static/style."), "{}", STYLE.path());
        assert_ne!(path("a", "1", "js"), path("a", "2", "js"));
    }
}
