//! The values of a run as CSV: complete, whatever their number. They are read a few chunks at a time, each by a statement
//! of its own, so that a slow reader holds neither memory nor a connection, and a run may go on logging meanwhile.

use super::{
    chunk::{Key, Places, Value},
    series_of,
};
use crate::{App, Result};
use axum::{
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::Number;
use futures_util::stream;
use serde::Deserialize;
use sqlx::PgPool;
use std::{collections::VecDeque, fmt::Write};
use utoipa::IntoParams;
use uuid::Uuid;

/// Chunks read at a time.
const CHUNKS: i64 = 32;
/// Longest line without its name, bytes: to make room at once.
const LINE: usize = 40;

/// Which values to export.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// Comma-separated names; all by default.
    pub names: Option<String>,
}

/// An attempt's share of a series, and how far it has been read.
struct Share {
    series: i64,
    /// As a CSV field.
    name: String,
    attempt: i32,
    /// Values beyond this step are hidden.
    through: i64,
    read: Option<Key>,
}

/// The visible values of a run as CSV, complete and streamed: `name,step,value,attempt,n`, by name, attempt and step.
#[utoipa::path(get, path = "/api/v1/runs/{id}/metrics.csv", operation_id = "export_metrics", tag = "runs",
    params(("id" = Uuid, Path), ExportQuery),
    responses((status = 200, body = String, content_type = "text/csv"), (status = 404)))]
pub async fn export_metrics(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<ExportQuery>,
) -> Result<Response> {
    let names: Option<Vec<String>> = query.names.map(|names| names.split(',').map(str::to_owned).collect());
    let shares = shares(&app.pool, id, names.as_deref()).await?;
    let head = Bytes::from_static(b"name,step,value,attempt,n\n");
    let lines = stream::try_unfold((app.pool, shares, Some(head)), |(pool, mut shares, head)| async move {
        if let Some(head) = head {
            return Ok(Some((head, (pool, shares, None))));
        }
        while let Some(share) = shares.front_mut() {
            let values = next(&pool, share).await?;
            if !values.is_empty() {
                return Ok::<_, crate::Error>(Some((lines(share, &values), (pool, shares, None))));
            }
            shares.pop_front();
        }
        Ok(None)
    });
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], Body::from_stream(lines)).into_response())
}

async fn shares(pool: &PgPool, run: Uuid, names: Option<&[String]>) -> Result<VecDeque<Share>> {
    let series = series_of(pool, run, names).await?;
    let ids: Vec<i64> = series.iter().map(|(id, _)| *id).collect();
    let rows = sqlx::query!(
        r#"select m.series_id, m.attempt, coalesce(a.visible_through, $3) as "through!"
           from summary m join attempt a on a.run_id = $1 and a.number = m.attempt
           where m.series_id = any($2) order by m.series_id, m.attempt"#,
        run,
        &ids,
        i64::MAX
    )
    .fetch_all(pool)
    .await?;
    let shares = series.iter().flat_map(|(id, name)| {
        let own = rows.iter().filter(|row| row.series_id == *id);
        own.map(|row| Share {
            series: *id,
            name: field(name),
            attempt: row.attempt,
            through: row.through,
            read: None,
        })
    });
    Ok(shares.collect())
}

/// The next values of a share; none at its end. Chunks may be merged between two reads, so it is the place of the last
/// value that says where to go on.
async fn next(pool: &PgPool, share: &mut Share) -> Result<Vec<Value>> {
    let read = share.read.unwrap_or((i64::MIN, 0));
    let rows = sqlx::query!(
        r#"select first_step as "first_step!", stride, steps, ns, numbers as "numbers!" from
             (select * from (select * from chunk where series_id = $1 and attempt = $2 and rollback = 0
                 and first_step <= $5 and (first_step, first_n) <= ($3, $4)
               order by first_step desc, first_n desc limit 1) reaches_in
              union all
              select * from (select * from chunk where series_id = $1 and attempt = $2 and rollback = 0
                 and first_step <= $5 and (first_step, first_n) > ($3, $4)
               order by first_step, first_n limit $6) follows) c
           order by first_step, first_n"#,
        share.series,
        share.attempt,
        read.0,
        read.1,
        share.through,
        CHUNKS
    )
    .fetch_all(pool)
    .await?;
    let mut values = Vec::new();
    for row in rows {
        let places = Places { stride: row.stride, steps: row.steps, ns: row.ns };
        values.extend(places.values(row.first_step, &row.numbers));
    }
    values.retain(|value| value.step <= share.through && share.read.is_none_or(|read| value.key() > read));
    share.read = values.last().map(Value::key).or(share.read);
    Ok(values)
}

fn lines(share: &Share, values: &[Value]) -> Bytes {
    let mut text = String::with_capacity(values.len() * (share.name.len() + LINE));
    for value in values {
        let number = Number(value.number);
        let _ = writeln!(text, "{},{},{number},{},{}", share.name, value.step, share.attempt, value.n);
    }
    text.into()
}

/// A CSV field.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_back_the_number_exactly() {
        let share = Share { series: 1, name: field("a,b"), attempt: 2, through: 9, read: None };
        let values = [
            Value { step: 3, n: 0, number: 0.1 + 0.2 },
            Value { step: 4, n: 1, number: f64::NEG_INFINITY },
            Value { step: 5, n: 0, number: 1e-300 },
        ];
        let text = String::from_utf8(lines(&share, &values).to_vec()).unwrap();
        let read: Vec<&str> = text.lines().collect();
        assert_eq!(read[0], "\"a,b\",3,0.30000000000000004,2,0");
        assert_eq!(read[1], "\"a,b\",4,-Infinity,2,1");
        assert_eq!(read[2].split(',').nth(3).unwrap().parse::<f64>().unwrap(), 1e-300);
    }
}
