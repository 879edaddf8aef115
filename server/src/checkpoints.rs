//! Checkpoints: which there are, their files, and several of them side by side.

use crate::{
    App, Error, Result, analysis, blobs,
    curves::{Curve, CurveFilter, curves},
    error::found,
    lines::{Line, lines},
    page::{self, Page},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use causeway_protocol::{SimilarityReport, SpectrumReport};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Most checkpoints side by side.
const COMPARE_MAX: usize = 5;

/// A checkpoint.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Checkpoint {
    /// Digest: the sha256 of its file.
    pub digest: String,
    /// Digest of the θ0 it was made from.
    pub backbone: String,
    /// The method's word.
    pub method: String,
    /// Size of its file, bytes; null if the server does not hold it.
    pub bytes: Option<i64>,
    /// The run that made it, or the first that evaluated it.
    pub run_id: Option<Uuid>,
    /// When it was first seen.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Which checkpoints to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFilter {
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<String>,
}

/// List checkpoints by digest.
#[utoipa::path(get, path = "/api/v1/checkpoints", operation_id = "list_checkpoints", tag = "results",
    params(CheckpointFilter), responses((status = 200, body = Page<Checkpoint>)))]
pub async fn list_checkpoints(
    State(app): State<App>,
    Query(filter): Query<CheckpointFilter>,
) -> Result<Json<Page<Checkpoint>>> {
    let limit = page::limit(filter.limit)?;
    let rows = sqlx::query_as!(
        Checkpoint,
        r#"select c.digest, c.backbone, c.method, b.bytes as "bytes?",
                  (select r.id from run r where r.checkpoint = c.digest order by r.id limit 1) as run_id, c.created_at
           from checkpoint c left join blob b on b.sha256 = c.digest
           where $1::text is null or c.digest > $1 order by c.digest limit $2"#,
        filter.cursor,
        limit + 1
    )
    .fetch_all(&app.pool)
    .await?;
    Ok(Json(Page::new(rows, limit, |checkpoint| checkpoint.digest.clone())))
}

/// One checkpoint, by its digest or a unique beginning of it.
#[utoipa::path(get, path = "/api/v1/checkpoints/{digest}", operation_id = "get_checkpoint", tag = "results",
    params(("digest" = String, Path)), responses((status = 200, body = Checkpoint), (status = 404)))]
pub async fn get_checkpoint_handler(
    State(app): State<App>,
    Path(digest): Path<String>,
) -> Result<Json<Checkpoint>> {
    get_checkpoint(&app.pool, &digest).await.map(Json)
}

/// Reads a checkpoint by its digest or a unique beginning of it.
///
/// # Errors
/// 404 if there is none, 400 if the beginning is not unique or too short.
pub async fn get_checkpoint(pool: &PgPool, digest: &str) -> Result<Checkpoint> {
    let hex = digest.len() >= 6 && digest.len() <= 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex {
        return Err(Error::BadRequest(format!("`{digest}` is no digest: give 6 to 64 of its hex digits")));
    }
    let mut rows = sqlx::query_as!(
        Checkpoint,
        r#"select c.digest, c.backbone, c.method, b.bytes as "bytes?",
                  (select r.id from run r where r.checkpoint = c.digest order by r.id limit 1) as run_id, c.created_at
           from checkpoint c left join blob b on b.sha256 = c.digest
           where c.digest like $1 || '%' limit 2"#,
        digest.to_ascii_lowercase()
    )
    .fetch_all(pool)
    .await?;
    if rows.len() > 1 {
        return Err(Error::BadRequest(format!(
            "several checkpoints begin with `{digest}`: give more digits"
        )));
    }
    found(rows.pop(), || format!("no checkpoint {digest}"))
}

/// Download a checkpoint: a safetensors file.
#[utoipa::path(get, path = "/api/v1/checkpoints/{digest}/file", operation_id = "download_checkpoint", tag = "results",
    params(("digest" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404)))]
pub async fn download_checkpoint(
    State(app): State<App>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let checkpoint = get_checkpoint(&app.pool, &digest).await?;
    let mut response = blobs::file(&app, &checkpoint.digest, &headers).await?;
    let name =
        format!("attachment; filename=\"{}-{}.safetensors\"", checkpoint.method, &checkpoint.digest[..12]);
    if let Ok(value) = name.parse() {
        response.headers_mut().insert(axum::http::header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Which checkpoints to put side by side.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct CompareQuery {
    /// Comma-separated digests, or unique beginnings of them; at most five, the first is the baseline.
    pub checkpoints: String,
    /// Only this protocol's curves.
    pub protocol: Option<String>,
}

/// Checkpoints side by side.
#[derive(Debug, Serialize, ToSchema)]
pub struct Comparison {
    /// The checkpoints in the order asked for.
    pub checkpoints: Vec<Checkpoint>,
    /// Their curves.
    pub curves: Vec<Curve>,
    /// Each checkpoint's best α and robustness, under each protocol; a checkpoint is a line of its own here.
    pub lines: Vec<Line>,
    /// The spectra of each, null where no run was asked for them.
    pub spectra: Vec<Option<SpectrumReport>>,
    /// The similarity of each with its θ0, null where no run was asked for it.
    pub similarities: Vec<Option<SimilarityReport>>,
    /// Paths in the specs whose values are not all equal, with the value of each checkpoint's run.
    pub differing: BTreeMap<String, Vec<Option<serde_json::Value>>>,
}

/// Compare checkpoints: their curves, and what differs in the specs that made them.
#[utoipa::path(get, path = "/api/v1/compare", operation_id = "compare_checkpoints", tag = "results",
    params(CompareQuery), responses((status = 200, body = Comparison), (status = 404)))]
pub async fn compare_handler(
    State(app): State<App>,
    Query(query): Query<CompareQuery>,
) -> Result<Json<Comparison>> {
    let digests: Vec<&str> =
        query.checkpoints.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let mut comparison = compare(&app.pool, &digests, query.protocol).await?;
    // Each checkpoint by itself, also where several are seeds of one variant.
    for checkpoint in &comparison.checkpoints {
        let own = comparison.curves.iter().filter(|curve| Some(curve.run_id) == checkpoint.run_id);
        let own: Vec<Curve> = own.cloned().collect();
        comparison.lines.extend(lines(&app.pool, &own).await?);
    }
    Ok(Json(comparison))
}

/// Puts checkpoints side by side.
///
/// # Errors
/// 400 for none or more than five, 404 for an unknown one.
pub async fn compare(pool: &PgPool, digests: &[&str], protocol: Option<String>) -> Result<Comparison> {
    if digests.is_empty() || digests.len() > COMPARE_MAX {
        return Err(Error::BadRequest(format!("name 1 to {COMPARE_MAX} checkpoints")));
    }
    let mut checkpoints = Vec::new();
    let mut specs = Vec::new();
    for digest in digests {
        let checkpoint = get_checkpoint(pool, digest).await?;
        let spec = sqlx::query_scalar!(
            "select spec from run where checkpoint = $1 order by id limit 1",
            checkpoint.digest
        )
        .fetch_optional(pool)
        .await?;
        specs.push(spec.unwrap_or_default());
        checkpoints.push(checkpoint);
    }
    let filter = CurveFilter {
        checkpoints: Some(checkpoints.iter().map(|checkpoint| checkpoint.digest.clone()).collect()),
        protocol,
        ..CurveFilter::default()
    };
    let digests: Vec<String> = checkpoints.iter().map(|checkpoint| checkpoint.digest.clone()).collect();
    let spectra = analysis::spectra(pool, &digests).await?;
    let similarities = analysis::similarities(pool, &digests).await?;
    Ok(Comparison {
        curves: curves(pool, &filter).await?,
        lines: Vec::new(),
        // A checkpoint may be named twice.
        spectra: digests.iter().map(|digest| spectra.get(digest).cloned()).collect(),
        similarities: digests.iter().map(|digest| similarities.get(digest).cloned()).collect(),
        differing: differing(&specs),
        checkpoints,
    })
}

/// The leaves in which documents differ, by path; lists are leaves.
pub fn differing(documents: &[serde_json::Value]) -> BTreeMap<String, Vec<Option<serde_json::Value>>> {
    let mut leaves: BTreeMap<String, Vec<Option<serde_json::Value>>> = BTreeMap::new();
    for (index, document) in documents.iter().enumerate() {
        flatten(document, String::new(), &mut |path, value| {
            leaves.entry(path).or_insert_with(|| vec![None; documents.len()])[index] = Some(value.clone());
        });
    }
    leaves.retain(|_, values| values.windows(2).any(|pair| pair[0] != pair[1]));
    leaves
}

/// Visits the leaves of a document, each with its dotted path.
pub fn flatten(
    document: &serde_json::Value,
    path: String,
    visit: &mut impl FnMut(String, &serde_json::Value),
) {
    match document {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, path, visit);
            }
        }
        leaf => visit(path, leaf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_leaves_that_differ_are_kept() {
        let a = json!({"method": {"kind": "adapter", "rank": 8}, "seed": 0, "evaluation": {"k": [1, 5]}});
        let b = json!({"method": {"kind": "film"}, "seed": 0, "evaluation": {"k": [1, 5]}});
        let found = differing(&[a, b]);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["method.kind", "method.rank"]);
        assert_eq!(found["method.rank"], [Some(json!(8)), None]);
    }
}
