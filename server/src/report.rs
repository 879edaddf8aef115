//! A command reports through the API instead of its file: values and progress, under the token that its environment has.
//! The fence is the lease's, as for everything that an attempt says.

use crate::{ApiJson, App, Error, Result, ingest, leases::fence};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use causeway_protocol::{Report, ReportToken};

/// What is wrong with a request that brings none.
const NO_TOKEN: Error =
    Error::Unauthorized("send `Authorization: Bearer …` with what CAUSEWAY_REPORT_TOKEN holds");

/// Report values and progress from within a command, with the token in its `CAUSEWAY_REPORT_TOKEN`. Sent again, the same
/// values change nothing.
#[utoipa::path(post, path = "/api/v1/report", operation_id = "report", tag = "commands", request_body = Report,
    responses((status = 204), (status = 401), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn report(
    State(app): State<App>,
    headers: HeaderMap,
    ApiJson(report): ApiJson<Report>,
) -> Result<StatusCode> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).ok_or(NO_TOKEN)?;
    let ReportToken { lease, epoch } = token.trim().parse().map_err(|_| NO_TOKEN)?;
    let mut tx = app.pool.begin().await?;
    let lease = fence(&mut tx, lease, epoch).await?;
    ingest::report(&mut tx, &lease, report).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
