//! Values that are done again: a resumed attempt hides what earlier ones did beyond the step it resumes from, and a
//! rollback what its own attempt did. Both are kept. What a run's values come to is said anew in the same transaction.

use super::{
    chunk::{CHUNK_MAX, Extreme, Places, Rollup, Value},
    rows::{self, ChunkRows, SummaryRows},
    store::{Share, Stretch},
};
use crate::{Result, leases::Fenced};
use futures_util::TryStreamExt;
use sqlx::PgConnection;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Hides the values of earlier attempts beyond a step: this attempt does them again.
///
/// # Errors
/// If the database does not answer.
pub async fn resume_from(conn: &mut PgConnection, lease: &Fenced, step: i64) -> Result<()> {
    if lease.attempt == 1 {
        return Ok(()); // there is none before it
    }
    let hidden = sqlx::query!(
        r#"update attempt set visible_through = least(coalesce(visible_through, $3), $3)
           where run_id = $1 and number < $2
             and exists (select from run where id = $1 and phase = 'train')
           returning number, visible_through as "visible_through!""#,
        lease.run_id,
        lease.attempt,
        step
    )
    .fetch_all(&mut *conn)
    .await?;
    for attempt in hidden {
        recount(conn, lease.run_id, attempt.number, attempt.visible_through).await?;
    }
    Ok(())
}

/// Hides the values of this attempt beyond a step, which are going to come again: kept, under the number of the
/// rollback.
///
/// # Errors
/// If the database does not answer.
pub async fn take_back(conn: &mut PgConnection, lease: &Fenced, step: i64, rollbacks: i32) -> Result<()> {
    let (run, attempt) = (lease.run_id, lease.attempt);
    // A number that was told before would mix two courses.
    let rollback = sqlx::query_scalar!(
        r#"select greatest($3, 1 + coalesce(max(c.rollback), 0)) as "rollback!"
           from series s join chunk c on c.series_id = s.id and c.attempt = $2 where s.run_id = $1"#,
        run,
        attempt,
        rollbacks
    )
    .fetch_one(&mut *conn)
    .await?;
    for (series, values) in chunks_across(conn, run, attempt, step).await? {
        let (stays, goes) = values.split_at(values.partition_point(|value| value.step <= step));
        rows::delete_chunk(conn, series, attempt, values[0].key()).await?;
        let mut parts = ChunkRows::default();
        parts.push(series, attempt, 0, stays);
        parts.push(series, attempt, rollback, goes);
        parts.write(conn).await?;
    }
    sqlx::query!(
        "update chunk c set rollback = $4 from series s
         where s.run_id = $1 and c.series_id = s.id and c.attempt = $2 and c.rollback = 0 and c.first_step > $3",
        run,
        attempt,
        step,
        rollback
    )
    .execute(&mut *conn)
    .await?;
    recount(conn, run, attempt, step).await
}

/// Says anew what an attempt's visible values come to, after those beyond a step were hidden.
async fn recount(conn: &mut PgConnection, run: Uuid, attempt: i32, through: i64) -> Result<()> {
    let changed = sqlx::query_scalar!(
        "delete from summary m using series s
         where s.run_id = $1 and m.series_id = s.id and m.attempt = $2 and m.last_step > $3
         returning m.series_id",
        run,
        attempt,
        through
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut across = chunks_across(conn, run, attempt, through).await?;
    let mut summaries = SummaryRows::default();
    for series in changed {
        let whole = rollup_through(conn, series, attempt, through).await?;
        let mut partly = across.remove(&series).unwrap_or_default();
        partly.truncate(partly.partition_point(|value| value.step <= through));
        let sum = [whole.map(|(sum, _)| sum), Rollup::of(&partly)].into_iter().flatten().reduce(Rollup::and);
        let Some(rollup) = sum else { continue };
        // Values go on after a rollback only, and that leaves no chunk across the step.
        let last = whole.map(|(_, last)| last).filter(|last| last.count < CHUNK_MAX && partly.is_empty());
        summaries.push(series, attempt, &Share { rollup, open: last.map(|last| (last, last)) });
    }
    summaries.write(conn).await
}

/// The standing chunks that begin at or before a step and end after it: one of a series at most.
async fn chunks_across(
    conn: &mut PgConnection,
    run: Uuid,
    attempt: i32,
    step: i64,
) -> Result<BTreeMap<i64, Vec<Value>>> {
    let rows = sqlx::query!(
        r#"select c.series_id, c.first_step, c.stride, c.steps, c.ns, c.numbers
           from series s cross join lateral
                (select * from chunk c where c.series_id = s.id and c.attempt = $2 and c.rollback = 0
                   and c.first_step <= $3 order by c.first_step desc, c.first_n desc limit 1) c
           where s.run_id = $1 and c.last_step > $3"#,
        run,
        attempt,
        step
    )
    .fetch_all(conn)
    .await?;
    let chunks = rows.into_iter().map(|row| {
        let places = Places { stride: row.stride, steps: row.steps, ns: row.ns };
        (row.series_id, places.values(row.first_step, &row.numbers))
    });
    Ok(chunks.collect())
}

/// What the standing chunks up to a step come to, and the last of them. Read as a stream: there may be many.
async fn rollup_through(
    conn: &mut PgConnection,
    series: i64,
    attempt: i32,
    step: i64,
) -> Result<Option<(Rollup, Stretch)>> {
    let mut rows = sqlx::query!(
        "select first_step, first_n, last_step, last_n, first, last, count, non_finite, min, min_step, max, max_step
         from chunk where series_id = $1 and attempt = $2 and rollback = 0 and first_step <= $3 and last_step <= $3
         order by first_step, first_n",
        series,
        attempt,
        step
    )
    .fetch(conn);
    let mut sum: Option<(Rollup, Stretch)> = None;
    while let Some(row) = rows.try_next().await? {
        let rollup = Rollup {
            first_key: (row.first_step, row.first_n),
            last_key: (row.last_step, row.last_n),
            first: row.first,
            last: row.last,
            count: row.count.into(),
            non_finite: row.non_finite.into(),
            min: Extreme::of(row.min, row.min_step),
            max: Extreme::of(row.max, row.max_step),
        };
        let last = Stretch { from: rollup.first_key, count: usize::try_from(row.count).unwrap_or(0) };
        sum = Some((sum.map_or(rollup, |(before, _)| before.and(rollup)), last));
    }
    Ok(sum)
}
