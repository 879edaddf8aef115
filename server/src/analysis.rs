//! What runs were told of their weights and features: taken from the journal as whole documents, and read again by run
//! and by checkpoint.

use crate::{App, Error, Result, blobs, error::found, ingest, leases::Fenced, runs};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use causeway_protocol::{AnalysisKind, SimilarityReport, Spec, SpectrumReport};
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most layers of one document: a hundred times a ViT-B's.
const LAYERS_MAX: usize = 5000;

fn word(kind: AnalysisKind) -> &'static str {
    match kind {
        AnalysisKind::Spectrum => "spectrum",
        AnalysisKind::Similarity => "similarity",
    }
}

/// Keeps a run's spectra; those of a later attempt take their place.
///
/// # Errors
/// 400 for a document that contradicts itself.
pub async fn insert_spectrum(conn: &mut PgConnection, lease: &Fenced, report: SpectrumReport) -> Result<()> {
    let whole = report.layers.iter().all(|layer| {
        layer.values.len() == if layer.moved { report.alphas.len() } else { 1 } && !layer.shape.is_empty()
    });
    if !whole || report.layers.len() > LAYERS_MAX || report.alphas.is_empty() {
        return Err(Error::BadRequest(format!(
            "spectra are of 1 to {LAYERS_MAX} layers, each at every α where it moved and once where it did not"
        )));
    }
    let checkpoint = report.checkpoint.clone().unwrap_or_default();
    let document = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
    insert(conn, lease, AnalysisKind::Spectrum, (&report.backbone, &checkpoint), document, None).await
}

/// Keeps a run's similarity; that of a later attempt takes its place.
///
/// # Errors
/// 400 for a document that contradicts itself, 409 if its images have not been uploaded.
pub async fn insert_similarity(
    conn: &mut PgConnection,
    lease: &Fenced,
    report: SimilarityReport,
) -> Result<()> {
    let rows = report.alphas.len();
    let tiles = report.tiles.as_ref().map_or(0, |tiles| u64::from(tiles.columns) * u64::from(tiles.rows));
    let classes = report.classes.len();
    let known = |tile: u32, label: u32| u64::from(tile) < tiles && (label as usize) < classes;
    let whole = report.cka.len() == rows
        && report.cka.iter().all(|row| row.class.len() == row.patches.len())
        && report.distances.len() <= LAYERS_MAX
        && report.queries.iter().all(|query| {
            query.neighbours.len() == rows
                && known(query.tile, query.label)
                && query.neighbours.iter().flatten().all(|near| known(near.tile, near.label))
        });
    if !whole {
        return Err(Error::BadRequest("the parts of the similarity contradict each other".into()));
    }
    let blob = report.tiles.as_ref().map(|tiles| tiles.blob.sha256.clone());
    if let Some(sha256) = &blob {
        ingest::require_blob(conn, sha256).await?;
    }
    let document = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
    let ends = (report.backbone.as_str(), report.checkpoint.as_str());
    insert(conn, lease, AnalysisKind::Similarity, ends, document, blob).await
}

async fn insert(
    conn: &mut PgConnection,
    lease: &Fenced,
    kind: AnalysisKind,
    (backbone, checkpoint): (&str, &str),
    document: serde_json::Value,
    blob: Option<String>,
) -> Result<()> {
    sqlx::query!(
        "insert into analysis (run_id, kind, backbone, checkpoint, document, blob) values ($1, $2, $3, $4, $5, $6)
         on conflict (run_id, kind) do update
         set backbone = $3, checkpoint = $4, document = $5, blob = $6, computed_at = now()",
        lease.run_id,
        word(kind),
        backbone,
        checkpoint,
        document,
        blob
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The analyses that a run has brought.
///
/// # Errors
/// If the database does not answer.
pub async fn analysed(conn: &mut PgConnection, run_id: Uuid) -> Result<Vec<AnalysisKind>> {
    let kinds = sqlx::query_scalar!("select kind from analysis where run_id = $1 order by kind", run_id)
        .fetch_all(conn)
        .await?;
    let known = [AnalysisKind::Spectrum, AnalysisKind::Similarity];
    Ok(known.into_iter().filter(|kind| kinds.iter().any(|there| there == word(*kind))).collect())
}

/// What a run that says it succeeded still lacks of the analyses it was asked for.
///
/// # Errors
/// If the database does not answer.
pub async fn missing(conn: &mut PgConnection, run_id: Uuid, spec: &Spec) -> Result<Option<String>> {
    let Some(asked) = &spec.analysis else { return Ok(None) };
    let there = analysed(conn, run_id).await?;
    let asked = [
        (AnalysisKind::Spectrum, asked.spectrum.is_some()),
        (AnalysisKind::Similarity, asked.similarity.is_some()),
    ];
    let lacking: Vec<&str> = asked
        .iter()
        .filter(|(kind, asked)| *asked && !there.contains(kind))
        .map(|(kind, _)| word(*kind))
        .collect();
    Ok((!lacking.is_empty()).then(|| format!("the attempt ended without its {}", lacking.join(" and "))))
}

async fn document<T: DeserializeOwned>(pool: &PgPool, run_id: Uuid, kind: AnalysisKind) -> Result<Option<T>> {
    let document = sqlx::query_scalar!(
        "select document from analysis where run_id = $1 and kind = $2",
        run_id,
        word(kind)
    )
    .fetch_optional(pool)
    .await?;
    Ok(document.map(serde_json::from_value).transpose().map_err(anyhow::Error::from)?)
}

/// A run's spectra, if it has brought them.
///
/// # Errors
/// If the database does not answer.
pub async fn spectrum(pool: &PgPool, run_id: Uuid) -> Result<Option<SpectrumReport>> {
    document(pool, run_id, AnalysisKind::Spectrum).await
}

/// A run's similarity, if it has brought it.
///
/// # Errors
/// If the database does not answer.
pub async fn similarity(pool: &PgPool, run_id: Uuid) -> Result<Option<SimilarityReport>> {
    document(pool, run_id, AnalysisKind::Similarity).await
}

/// The newest document of a kind for each checkpoint.
async fn of_checkpoints<T: DeserializeOwned>(
    pool: &PgPool,
    digests: &[String],
    kind: AnalysisKind,
) -> Result<BTreeMap<String, T>> {
    let rows = sqlx::query!(
        "select distinct on (checkpoint) checkpoint, document from analysis
         where checkpoint = any($1) and kind = $2 order by checkpoint, computed_at desc",
        digests,
        word(kind)
    )
    .fetch_all(pool)
    .await?;
    let read = rows.into_iter().map(|row| {
        let document = serde_json::from_value(row.document).map_err(anyhow::Error::from)?;
        Ok((row.checkpoint, document))
    });
    read.collect()
}

/// The newest spectra of each checkpoint that has any.
///
/// # Errors
/// If the database does not answer.
pub async fn spectra(pool: &PgPool, digests: &[String]) -> Result<BTreeMap<String, SpectrumReport>> {
    of_checkpoints(pool, digests, AnalysisKind::Spectrum).await
}

/// The newest similarity of each checkpoint that has any.
///
/// # Errors
/// If the database does not answer.
pub async fn similarities(pool: &PgPool, digests: &[String]) -> Result<BTreeMap<String, SimilarityReport>> {
    of_checkpoints(pool, digests, AnalysisKind::Similarity).await
}

/// `GET /tiles/{sha256}`: the small images of an analysis, for pages. No other blob is sent as an image.
///
/// # Errors
/// 404 if no analysis shows it.
pub async fn tiles(State(app): State<App>, Path(sha256): Path<String>) -> Result<Response> {
    let shown =
        sqlx::query_scalar!(r#"select exists (select from analysis where blob = $1) as "shown!""#, sha256)
            .fetch_one(&app.pool)
            .await?;
    if !shown {
        return Err(Error::NotFound(format!("no analysis shows images {sha256}")));
    }
    blobs::image(&app, &sha256, "image/jpeg").await
}

/// The spectra of a run's layers: eigenvalues and the power law of their tail, at each α asked for.
#[utoipa::path(get, path = "/api/v1/runs/{id}/spectrum", operation_id = "get_run_spectrum", tag = "results",
    params(("id" = Uuid, Path)), responses((status = 200, body = SpectrumReport), (status = 404)))]
pub async fn get_run_spectrum(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<SpectrumReport>> {
    runs::get_run(&app, id).await?;
    let report = spectrum(&app.pool, id).await?;
    found(report, || format!("run {id} has no spectrum: ask for one with [analysis.spectrum] in its spec"))
        .map(Json)
}

/// How similar a run's θ_α is to its θ0: linear CKA by block, distances by layer, nearest neighbours.
#[utoipa::path(get, path = "/api/v1/runs/{id}/similarity", operation_id = "get_run_similarity", tag = "results",
    params(("id" = Uuid, Path)), responses((status = 200, body = SimilarityReport), (status = 404)))]
pub async fn get_run_similarity(
    State(app): State<App>,
    Path(id): Path<Uuid>,
) -> Result<Json<SimilarityReport>> {
    runs::get_run(&app, id).await?;
    let report = similarity(&app.pool, id).await?;
    found(report, || {
        format!("run {id} has no similarity: ask for one with [analysis.similarity] in its spec")
    })
    .map(Json)
}
