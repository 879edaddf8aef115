//! The stylesheet and the scripts, embedded at build time from `web/dist`, which esbuild writes.

use axum::{
    extract::{Path, RawQuery},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use rust_embed::RustEmbed;

#[derive(RustEmbed)]
#[folder = "../web/dist"]
#[allow_missing = true]
struct Dist;

/// Address of an asset: its digest is part of it, so that a browser may keep it for ever.
pub fn address(name: &str) -> String {
    format!("/assets/{name}?v={}", digest(name).unwrap_or_default())
}

fn digest(name: &str) -> Option<String> {
    let file = Dist::get(name)?;
    Some(causeway_protocol::hex(&file.metadata.sha256_hash()[..6]))
}

/// `GET /assets/{name}`.
pub async fn show(Path(name): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let (Some(file), Some(digest)) = (Dist::get(&name), digest(&name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let named = query.is_some_and(|query| query == format!("v={digest}"));
    let cache = if named { "public, max-age=31536000, immutable" } else { "no-cache" };
    let etag = format!("W/\"{digest}\"");
    let fresh = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let describe = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CACHE_CONTROL, cache.to_owned()),
        (header::ETAG, etag),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    if fresh {
        return (StatusCode::NOT_MODIFIED, describe).into_response();
    }
    (describe, file.data.into_owned()).into_response()
}
