//! Experiments: named groups of runs that answer one question. A run's spec names its experiment, which is made when
//! it does not exist.

use crate::{
    ApiJson, App, Error, Result,
    error::{OnConstraint, found},
    page::{self, Page},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// The one project there always is.
pub const DEFAULT_PROJECT: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

/// An experiment with the number of its runs by state.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Experiment {
    /// Id.
    pub id: Uuid,
    /// Name, unique in its project.
    pub name: String,
    /// The question, in prose.
    pub description: String,
    /// The project's name.
    pub project: String,
    /// Runs in all.
    pub runs: i64,
    /// Runs waiting.
    pub queued: i64,
    /// Runs at work.
    pub running: i64,
    /// Runs that ended well.
    pub succeeded: i64,
    /// Runs that failed or were lost.
    pub failed: i64,
    /// Runs set aside.
    pub paused: i64,
    /// Runs that were cancelled.
    pub cancelled: i64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A new experiment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewExperiment {
    /// Name.
    pub name: String,
    /// The question, in prose.
    #[serde(default)]
    pub description: String,
}

/// Which experiments to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ExperimentFilter {
    /// Only the one of this name.
    pub name: Option<String>,
    /// At most so many, 1 to 500; 100 by default.
    pub limit: Option<i64>,
    /// The `next` of the page before.
    pub cursor: Option<Uuid>,
}

/// List experiments, newest first.
#[utoipa::path(get, path = "/api/v1/experiments", operation_id = "list_experiments", tag = "experiments",
    params(ExperimentFilter), responses((status = 200, body = Page<Experiment>)))]
pub async fn list_experiments(
    State(app): State<App>,
    Query(filter): Query<ExperimentFilter>,
) -> Result<Json<Page<Experiment>>> {
    let limit = page::limit(filter.limit)?;
    let rows = experiments(&app.pool, None, &filter, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |experiment| experiment.id.to_string())))
}

/// One experiment.
#[utoipa::path(get, path = "/api/v1/experiments/{id}", operation_id = "get_experiment", tag = "experiments",
    params(("id" = Uuid, Path)), responses((status = 200, body = Experiment), (status = 404)))]
pub async fn get_experiment_handler(
    State(app): State<App>,
    Path(id): Path<Uuid>,
) -> Result<Json<Experiment>> {
    get_experiment(&app.pool, id).await.map(Json)
}

/// Reads one experiment.
///
/// # Errors
/// 404 if there is none.
pub async fn get_experiment(pool: &PgPool, id: Uuid) -> Result<Experiment> {
    let rows = experiments(pool, Some(id), &ExperimentFilter::default(), 1).await?;
    found(rows.into_iter().next(), || format!("no experiment {id}"))
}

async fn experiments(
    pool: &PgPool,
    id: Option<Uuid>,
    filter: &ExperimentFilter,
    limit: i64,
) -> Result<Vec<Experiment>> {
    let rows = sqlx::query_as!(
        Experiment,
        r#"select e.id, e.name, e.description, p.name as project, e.created_at,
                  count(r.experiment_id) as "runs!",
                  count(*) filter (where r.state = 'queued') as "queued!",
                  count(*) filter (where r.state = 'running') as "running!",
                  count(*) filter (where r.state = 'succeeded') as "succeeded!",
                  count(*) filter (where r.state in ('failed', 'lost')) as "failed!",
                  count(*) filter (where r.state = 'paused') as "paused!",
                  count(*) filter (where r.state = 'cancelled') as "cancelled!"
           from (select * from experiment e
                 where ($1::uuid is null or e.id = $1) and ($2::text is null or e.name = $2)
                   and ($3::uuid is null or e.id < $3)
                 order by e.id desc limit $4) e
           join project p on p.id = e.project_id left join run r on r.experiment_id = e.id and r.part_of is null
           group by e.id, e.name, e.description, p.name, e.created_at order by e.id desc"#,
        id,
        filter.name,
        filter.cursor,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows)
}

/// Make an experiment.
#[utoipa::path(post, path = "/api/v1/experiments", operation_id = "create_experiment", tag = "experiments",
    request_body = NewExperiment,
    responses((status = 201, body = Experiment), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn create_experiment(
    State(app): State<App>,
    ApiJson(new): ApiJson<NewExperiment>,
) -> Result<impl IntoResponse> {
    let length = new.name.trim().chars().count();
    if !(1..=200).contains(&length) {
        return Err(Error::Invalid(vec![causeway_protocol::Problem {
            field: "name".into(),
            rule: "must have 1 to 200 characters".into(),
        }]));
    }
    let id = Uuid::now_v7();
    sqlx::query!(
        "insert into experiment (id, project_id, name, description) values ($1, $2, $3, $4)",
        id,
        DEFAULT_PROJECT,
        new.name,
        new.description
    )
    .execute(&app.pool)
    .await
    .on_constraint("experiment_name_unique", || {
        Error::Conflict(format!("there is an experiment called `{}` already", new.name))
    })?;
    Ok((StatusCode::CREATED, Json(get_experiment(&app.pool, id).await?)))
}

/// The experiment of that name in the default project, made if it is not there.
///
/// # Errors
/// If the database does not answer.
pub async fn ensure_experiment(conn: &mut PgConnection, project: Uuid, name: &str) -> Result<Uuid> {
    sqlx::query!(
        "insert into experiment (id, project_id, name) values ($1, $2, $3) on conflict do nothing",
        Uuid::now_v7(),
        project,
        name
    )
    .execute(&mut *conn)
    .await?;
    let id =
        sqlx::query_scalar!("select id from experiment where project_id = $1 and name = $2", project, name)
            .fetch_one(conn)
            .await?;
    Ok(id)
}
