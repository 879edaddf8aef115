//! Reading results: curves of accuracy against α, and the datasets they belong to.

use crate::{
    App, Result,
    figures::stats::{area, mean},
    lines::{Line, lines},
};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use causeway_protocol::{Alpha, Dtype, Hits, Protocol};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Accuracy against α of one run on one dataset under one protocol.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Curve {
    /// The run.
    pub run_id: Uuid,
    /// Its name.
    pub run: String,
    /// Its method's word.
    pub method: String,
    /// Equal for runs that differ in nothing but the seed.
    pub variant: String,
    /// Its seed.
    pub seed: i64,
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of θ1.
    pub checkpoint: Option<String>,
    /// The dataset.
    pub dataset: CurveDataset,
    /// Id of the protocol.
    pub protocol: String,
    /// Its readout in words: `k 20`, `linear probe`, `zero-shot`.
    pub readout: String,
    /// Its arithmetic: `f32`, `bf16`, `f16`.
    pub dtype: Dtype,
    /// Area between the curve and the backbone over α in [0, 1], points·α (trapezoids through the measured α): the mean
    /// gain of an α drawn blindly. Null until α = 0 and 1 are measured.
    pub area: Option<f64>,
    /// The points by ascending α; α = 0 is the bare backbone and is shared by all runs.
    pub points: Vec<Point>,
}

/// The dataset of a curve.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CurveDataset {
    /// Digest.
    pub digest: String,
    /// Name of the asset.
    pub name: String,
    /// As figures show it.
    pub title: String,
    /// `id`, `target` or `ood` in this run's evaluation.
    pub role: String,
    /// Place in the run's spec, from 1.
    pub ordinal: i32,
    /// Number of classes.
    pub classes: usize,
    /// Images scored of each class; null for datasets read before this was kept.
    pub queries_per_class: Option<Vec<i32>>,
}

/// One point.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Point {
    /// α.
    pub alpha: Alpha,
    /// Share of images whose first class is right.
    pub top1: f64,
    /// Share of images whose label is among the first five classes.
    pub top5: f64,
    /// Images scored.
    pub n: i32,
    /// Images whose first class is right.
    pub correct: i32,
    /// Mean over the classes that have images of the share right inside a class; null for points of before.
    pub mean_per_class: Option<f64>,
    /// Images of each class whose first class is right; null for points of before.
    pub correct_per_class: Option<Vec<i32>>,
    /// Which ones, for paired comparisons.
    pub hits: Hits,
    /// What computed it (`NumericsStamp`).
    pub stamp: serde_json::Value,
}

/// Which curves to read.
#[derive(Clone, Debug, Default)]
pub struct CurveFilter {
    /// Of this experiment's runs.
    pub experiment: Option<Uuid>,
    /// Of these runs.
    pub runs: Option<Vec<Uuid>>,
    /// Of these checkpoints.
    pub checkpoints: Option<Vec<String>>,
    /// Under this protocol only.
    pub protocol: Option<String>,
}

/// Reads curves: by role and place of the dataset, then method, seed and run, then protocol.
///
/// # Errors
/// If the database does not answer.
pub async fn curves(pool: &PgPool, filter: &CurveFilter) -> Result<Vec<Curve>> {
    let rows = sqlx::query!(
        r#"select r.id as run_id, r.name as run, r.method, r.variant, r.seed, r.backbone as "backbone!", r.checkpoint,
                  d.digest, d.name, d.title, rd.role, rd.ordinal, jsonb_array_length(d.classes) as "classes!",
                  d.queries_per_class,
                  c.protocol, (p.alpha * 10000)::int8 as "alpha!", p.n, p.correct, p.correct_top5,
                  p.correct_per_class, p.hits, p.stamp
           from run r join run_dataset rd on rd.run_id = r.id join dataset d on d.digest = rd.dataset
           join curve c on c.backbone = r.backbone and c.dataset = d.digest
                       and c.checkpoint in ('', coalesce(r.checkpoint, ''))
           join point p on p.curve_id = c.id
           where ($1::uuid is null or r.experiment_id = $1) and ($2::uuid[] is null or r.id = any($2))
             and ($3::text[] is null or r.checkpoint = any($3)) and ($4::text is null or c.protocol = $4)
             -- A run has only the points its spec asks for, also where others share its checkpoint or backbone. Which
             -- α a refinement asks for shows in its checkpoint's points alone.
             and (r.spec -> 'evaluation' -> 'alphas' @> to_jsonb(p.alpha)
                  or c.checkpoint <> '' and coalesce((r.spec -> 'evaluation' ->> 'refine')::int, 0) > 0)
             and r.part_of is null
           order by case rd.role when 'id' then 0 when 'target' then 1 else 2 end, rd.ordinal, d.digest,
                    r.method, r.seed, r.id, length(c.protocol), c.protocol, p.alpha"#,
        filter.experiment,
        filter.runs.as_deref(),
        filter.checkpoints.as_deref(),
        filter.protocol,
    )
    .fetch_all(pool)
    .await?;
    let protocols = asked_protocols(pool, filter).await?;
    let mut list: Vec<Curve> = Vec::new();
    for row in rows {
        let asked =
            protocols.get(&row.run_id).and_then(|all| all.iter().find(|asked| asked.id == row.protocol));
        let Some(protocol) = asked else { continue };
        let continues = list.last().is_some_and(|curve| {
            curve.run_id == row.run_id && curve.dataset.digest == row.digest && curve.protocol == row.protocol
        });
        if !continues {
            list.push(Curve {
                run_id: row.run_id,
                run: row.run,
                method: row.method,
                variant: row.variant,
                seed: row.seed,
                backbone: row.backbone,
                checkpoint: row.checkpoint,
                dataset: CurveDataset {
                    digest: row.digest,
                    name: row.name,
                    title: row.title,
                    role: row.role,
                    ordinal: row.ordinal,
                    classes: usize::try_from(row.classes).unwrap_or(0),
                    queries_per_class: Some(row.queries_per_class).filter(|counts| !counts.is_empty()),
                },
                protocol: row.protocol,
                readout: protocol.readout.label(),
                dtype: protocol.dtype,
                area: None,
                points: Vec::new(),
            });
        }
        if let (Some(curve), Some(alpha)) = (list.last_mut(), Alpha::from_ten_thousandths(row.alpha)) {
            let share = |count: i32| f64::from(count) / f64::from(row.n.max(1));
            let classes = curve.dataset.queries_per_class.as_deref();
            curve.points.push(Point {
                alpha,
                top1: share(row.correct),
                top5: share(row.correct_top5),
                n: row.n,
                correct: row.correct,
                mean_per_class: classes.and_then(|queries| mean_per_class(&row.correct_per_class, queries)),
                correct_per_class: Some(row.correct_per_class).filter(|counts| !counts.is_empty()),
                hits: Hits(row.hits),
                stamp: row.stamp,
            });
        }
    }
    for curve in &mut list {
        let base = curve.points.first().filter(|point| point.alpha == Alpha::ZERO).map(|point| point.top1);
        let place = |point: &Point| Some((point.alpha.as_f64(), 100.0 * (point.top1 - base?)));
        let places: Option<Vec<(f64, f64)>> = curve.points.iter().map(place).collect();
        curve.area = places.and_then(|places| area(&places));
    }
    Ok(list)
}

/// The mean over the classes that have queries of the share right inside a class. None if the counts do not fit.
pub fn mean_per_class(correct: &[i32], queries: &[i32]) -> Option<f64> {
    if correct.is_empty() || correct.len() != queries.len() {
        return None;
    }
    let there = correct.iter().zip(queries).filter(|(_, queries)| **queries > 0);
    let shares: Vec<f64> =
        there.map(|(correct, queries)| f64::from(*correct) / f64::from(*queries)).collect();
    mean(&shares)
}

/// The protocols each run's spec asks for.
async fn asked_protocols(pool: &PgPool, filter: &CurveFilter) -> Result<BTreeMap<Uuid, Vec<Protocol>>> {
    let rows = sqlx::query!(
        r#"select id, spec as "spec: sqlx::types::Json<causeway_protocol::Spec>" from run
           where ($1::uuid is null or experiment_id = $1) and ($2::uuid[] is null or id = any($2))
             and ($3::text[] is null or checkpoint = any($3))"#,
        filter.experiment,
        filter.runs.as_deref(),
        filter.checkpoints.as_deref()
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.spec.evaluation.protocols())).collect())
}

/// Answer with curves.
#[derive(Debug, Serialize, ToSchema)]
pub struct Curves {
    /// The curves.
    pub curves: Vec<Curve>,
    /// What the curves of each line say together: runs that differ in nothing but the seed, under one protocol.
    pub lines: Vec<Line>,
}

/// Which protocol to read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct CurvesQuery {
    /// Only this protocol's.
    pub protocol: Option<String>,
}

/// The curves of an experiment's runs.
#[utoipa::path(get, path = "/api/v1/experiments/{id}/curves", operation_id = "get_experiment_curves", tag = "results",
    params(("id" = Uuid, Path), CurvesQuery), responses((status = 200, body = Curves), (status = 404)))]
pub async fn get_experiment_curves(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<CurvesQuery>,
) -> Result<Json<Curves>> {
    crate::experiments::get_experiment(&app.pool, id).await?;
    let filter = CurveFilter { experiment: Some(id), protocol: query.protocol, ..CurveFilter::default() };
    let curves = curves(&app.pool, &filter).await?;
    Ok(Json(Curves { lines: lines(&app.pool, &curves).await?, curves }))
}

/// The curves of a run.
#[utoipa::path(get, path = "/api/v1/runs/{id}/curves", operation_id = "get_run_curves", tag = "results",
    params(("id" = Uuid, Path), CurvesQuery), responses((status = 200, body = Curves), (status = 404)))]
pub async fn get_run_curves(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<CurvesQuery>,
) -> Result<Json<Curves>> {
    crate::runs::get_run(&app, id).await?;
    let filter = CurveFilter { runs: Some(vec![id]), protocol: query.protocol, ..CurveFilter::default() };
    let curves = curves(&app.pool, &filter).await?;
    Ok(Json(Curves { lines: lines(&app.pool, &curves).await?, curves }))
}

/// A dataset that an evaluation has read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Dataset {
    /// Digest over its ordered (pixel sha256, label, split) list.
    pub digest: String,
    /// Name of the asset.
    pub name: String,
    /// As figures show it.
    pub title: String,
    /// Licence of the images.
    pub licence: String,
    /// Where the images come from.
    pub source: String,
    /// Images that are scored.
    pub queries: i32,
    /// Images that are neighbours.
    pub bank: i32,
    /// Whether the two are the same images.
    pub leave_one_out: bool,
    /// Class names in label order.
    #[schema(value_type = Vec<String>)]
    pub classes: serde_json::Value,
}

/// List the datasets that evaluations have read.
#[utoipa::path(get, path = "/api/v1/datasets", operation_id = "list_datasets", tag = "results",
    responses((status = 200, body = Vec<Dataset>)))]
pub async fn list_datasets(State(app): State<App>) -> Result<Json<Vec<Dataset>>> {
    let rows = sqlx::query_as!(
        Dataset,
        "select digest, name, title, licence, source, queries, bank, leave_one_out, classes from dataset
         order by name, created_at limit 1000"
    )
    .fetch_all(&app.pool)
    .await?;
    Ok(Json(rows))
}
