//! What a run will cost, told when it is submitted: from the sizes of the assets that workers have reported, and from
//! the rates that earlier runs have reached.

use crate::Result;
use causeway_protocol::{Alpha, AssetSummary, Spec};
use serde::Serialize;
use sqlx::{PgPool, types::Json};
use std::collections::HashMap;
use utoipa::ToSchema;

/// Images per second of a small ViT on two cores: used until a run has measured something better.
const TRAIN_RATE: f64 = 40.0;
/// As `TRAIN_RATE`, for forward passes.
const SWEEP_RATE: f64 = 100.0;

/// What a run will cost.
#[derive(Debug, Serialize, ToSchema)]
pub struct Estimate {
    /// Optimiser steps.
    pub steps: u64,
    /// Forward passes of one image in the α sweep, α = 0 included even if it is known already. Null while no worker
    /// has reported the datasets.
    pub forwards: Option<u64>,
    /// Minutes of work. Null with `forwards`.
    pub minutes: Option<f64>,
    /// Where the minutes come from.
    pub basis: String,
}

/// Estimates a spec.
///
/// # Errors
/// If the database does not answer.
pub async fn estimate(pool: &PgPool, spec: &Spec) -> Result<Estimate> {
    let rows = sqlx::query_scalar!(r#"select assets as "assets: Json<Vec<AssetSummary>>" from worker"#)
        .fetch_all(pool)
        .await?;
    let images: HashMap<String, u64> =
        rows.into_iter().flat_map(|assets| assets.0).map(|asset| (asset.name, asset.images)).collect();
    let steps = spec.training.as_ref().map_or(0, |training| training.steps);
    let batch = spec
        .training
        .as_ref()
        .map_or(0, |training| u64::from(training.batch_size) * u64::from(training.accumulate));
    let alphas = spec.evaluation.alphas.iter().filter(|alpha| **alpha != Alpha::ZERO).count() as u64;
    let zero = spec.evaluation.alphas.len() as u64 - alphas;
    let refined = 2 * u64::from(spec.evaluation.refine);
    let sizes: Option<Vec<u64>> =
        spec.evaluation.datasets.iter().map(|dataset| images.get(&dataset.asset).copied()).collect();
    let forwards = sizes.map(|sizes| sizes.iter().sum::<u64>() * (alphas + zero + refined));
    let method = spec.trained();
    let train = measured(pool, method, "train").await?;
    let sweep = measured(pool, method, "evaluate").await?;
    let seconds = |work: u64, rate: Option<f64>, fallback: f64| work as f64 / rate.unwrap_or(fallback);
    let minutes = forwards.map(|forwards| {
        let total = seconds(steps * batch, train, TRAIN_RATE) + seconds(forwards, sweep, SWEEP_RATE);
        (total / 6.0).round() / 10.0
    });
    let basis = match (train, sweep) {
        (None, None) => {
            "the rate of a ViT-S/14 at 98 px on two cores; no run of this method has been measured here"
        }
        _ => "the rates of the latest runs of this method here",
    };
    Ok(Estimate { steps, forwards, minutes, basis: basis.to_owned() })
}

/// Runs of a method that are looked at for a rate, those that began last.
const LATEST: i64 = 50;

/// Images per second of the latest run of this method that reported a rate in this phase.
async fn measured(pool: &PgPool, method: &str, phase: &str) -> Result<Option<f64>> {
    let rate = sqlx::query_scalar!(
        r#"select (p.progress ->> 'images_per_second')::float8 as "rate!"
           from (select id from run where method = $1 and started_at is not null order by started_at desc limit $3) r
           join run_progress p on p.run_id = r.id
           where p.progress ->> 'phase' = $2 and (p.progress ->> 'images_per_second')::float8 > 0
           order by p.updated_at desc limit 1"#,
        method,
        phase,
        LATEST
    )
    .fetch_optional(pool)
    .await?;
    Ok(rate)
}
