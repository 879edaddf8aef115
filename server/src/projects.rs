//! Projects: who shares the cluster with whom, and how much of it.

use crate::{ApiJson, App, Error, Result};
use axum::{
    Json,
    extract::{Path, State},
};
use causeway_protocol::Problem;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest name, characters.
const NAME_MAX: usize = 200;
/// Most projects.
const PROJECTS_MAX: i64 = 1000;

/// A project: who shares experiments, and devices by weight.
#[derive(Debug, Serialize, ToSchema)]
pub struct Project {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Its share of the devices while all ask for more than there is, in proportion to the others'.
    pub weight: f64,
    /// Most devices it may hold at once.
    pub devices_max: Option<i32>,
    /// Most devices that one of its users may hold at once.
    pub user_devices_max: Option<i32>,
    /// Device-hours it has used; what is a week old counts half.
    pub recent_device_hours: f64,
    /// Devices it holds now.
    pub devices: i64,
    /// Its runs that wait.
    pub queued: i64,
}

/// What a project may take.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectLimits {
    /// Its share, in proportion to the others'.
    #[serde(default = "one")]
    pub weight: f64,
    /// Most devices it may hold at once; as many as there are by default.
    #[serde(default)]
    pub devices_max: Option<i32>,
    /// Most devices that one of its users may hold at once.
    #[serde(default)]
    pub user_devices_max: Option<i32>,
}

fn one() -> f64 {
    1.0
}

/// List projects.
#[utoipa::path(get, path = "/api/v1/projects", operation_id = "list_projects", tag = "projects",
    responses((status = 200, body = Vec<Project>)))]
pub async fn list_projects(State(app): State<App>) -> Result<Json<Vec<Project>>> {
    projects(&app.pool).await.map(Json)
}

/// The projects by name.
///
/// # Errors
/// If the database does not answer.
pub async fn projects(pool: &PgPool) -> Result<Vec<Project>> {
    let rows = sqlx::query_as!(
        Project,
        r#"select p.id, p.name, p.weight, p.devices_max, p.user_devices_max, p.usage / 3600 as "recent_device_hours!",
                  (select count(*) from device d join lease l on l.id = d.lease_id join run r on r.id = l.run_id
                     where r.project_id = p.id) as "devices!",
                  (select count(*) from run r where r.state = 'queued' and r.project_id = p.id) as "queued!"
           from project p order by p.name limit $1"#,
        PROJECTS_MAX
    )
    .fetch_all(pool)
    .await?;
    Ok(rows)
}

/// Make a project, or change what it may take.
#[utoipa::path(put, path = "/api/v1/projects/{name}", operation_id = "put_project", tag = "projects",
    params(("name" = String, Path)), request_body = ProjectLimits,
    responses((status = 200, body = Project), (status = 422, body = crate::error::ProblemDetails)))]
pub async fn put_project(
    State(app): State<App>,
    Path(name): Path<String>,
    ApiJson(limits): ApiJson<ProjectLimits>,
) -> Result<Json<Project>> {
    let mut problems = Vec::new();
    let mut when = |broken: bool, field: &str, rule: String| {
        if broken {
            problems.push(Problem { field: field.to_owned(), rule });
        }
    };
    let length = name.trim().chars().count();
    when(
        !(1..=NAME_MAX).contains(&length) || name.chars().any(char::is_control),
        "name",
        format!("must have 1 to {NAME_MAX} characters and no control characters"),
    );
    when(
        !limits.weight.is_finite() || limits.weight <= 0.0,
        "weight",
        format!("must be a positive number, is {}", limits.weight),
    );
    for (field, most) in [("devices_max", limits.devices_max), ("user_devices_max", limits.user_devices_max)]
    {
        when(
            most.is_some_and(|most| most < 0),
            field,
            "must be 0 or more; leave it out for no limit".to_owned(),
        );
    }
    if !problems.is_empty() {
        return Err(Error::Invalid(problems));
    }
    sqlx::query!(
        "insert into project (id, name, weight, devices_max, user_devices_max) values ($1, $2, $3, $4, $5)
         on conflict on constraint project_name_unique do update
         set weight = $3, devices_max = $4, user_devices_max = $5",
        Uuid::now_v7(),
        name,
        limits.weight,
        limits.devices_max,
        limits.user_devices_max
    )
    .execute(&app.pool)
    .await?;
    app.wake.ring_scheduler(); // a raised limit may let a run begin
    let mut all = projects(&app.pool).await?;
    all.retain(|project| project.name == name);
    all.pop().map(Json).ok_or_else(|| Error::NotFound(format!("no project `{name}`")))
}

/// The project of a spec.
///
/// # Errors
/// 422 if there is none of that name.
pub async fn find_project(conn: &mut PgConnection, name: &str) -> Result<Uuid> {
    let found =
        sqlx::query_scalar!("select id from project where name = $1", name).fetch_optional(conn).await?;
    found.ok_or_else(|| {
        let rule =
            format!("names no project that there is: make `{name}` with `causeway projects set {name}`");
        Error::Invalid(vec![Problem { field: "project".to_owned(), rule }])
    })
}
