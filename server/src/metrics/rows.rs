//! The statements of `store`: chunks, summaries and conflicts as rows. What a batch writes goes into each table in one
//! statement, whatever the number of its series.

use super::{
    chunk::{Conflict, Extreme, Key, Places, Rollup, Value},
    store::{Share, Stretch},
};
use crate::Result;
use sqlx::PgConnection;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Open chunks of a series at most: each holds a value at least, and together they hold less than a full one.
const OPEN_MAX: i64 = 1024;

/// A series, and what is known of an attempt's share of it.
type Found = (i64, Option<Share>);

/// The series of a run by these names, made where they are not there, each with what came along.
pub async fn shares<T>(
    conn: &mut PgConnection,
    run: Uuid,
    attempt: i32,
    mut by_name: BTreeMap<String, T>,
) -> Result<Vec<(Found, T)>> {
    let names: Vec<String> = by_name.keys().cloned().collect();
    let rows = sqlx::query!(
        r#"select s.id, s.name, m.count as "count?", m.non_finite as "non_finite?", m.first as "first?",
                  m.first_step as "first_step?", m.first_n as "first_n?", m.last as "last?",
                  m.last_step as "last_step?", m.last_n as "last_n?", m.min, m.min_step, m.max, m.max_step,
                  m.open_step, m.open_n, m.open_count as "open_count?", m.tail_step, m.tail_n,
                  m.tail_count as "tail_count?"
           from series s left join summary m on m.series_id = s.id and m.attempt = $3
           where s.run_id = $1 and s.name = any($2)"#,
        run,
        &names,
        attempt
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut found = Vec::with_capacity(names.len());
    for row in rows {
        let Some(rest) = by_name.remove(&row.name) else { continue };
        let share = (|| {
            let rollup = Rollup {
                first_key: (row.first_step?, row.first_n?),
                last_key: (row.last_step?, row.last_n?),
                first: row.first?,
                last: row.last?,
                count: row.count?,
                non_finite: row.non_finite?,
                min: Extreme::of(row.min, row.min_step),
                max: Extreme::of(row.max, row.max_step),
            };
            let open = stretch(row.open_step, row.open_n, row.open_count);
            Some(Share { rollup, open: open.zip(stretch(row.tail_step, row.tail_n, row.tail_count)) })
        })();
        found.push(((row.id, share), rest));
    }
    if !by_name.is_empty() {
        let names: Vec<String> = by_name.keys().cloned().collect();
        let made = sqlx::query!(
            "insert into series (run_id, name) select $1, unnest($2::text[])
             on conflict (run_id, name) do update set name = excluded.name returning id, name",
            run,
            &names
        )
        .fetch_all(conn)
        .await?;
        found.extend(made.into_iter().filter_map(|row| Some(((row.id, None), by_name.remove(&row.name)?))));
    }
    Ok(found)
}

fn stretch(step: Option<i64>, n: Option<i32>, count: Option<i32>) -> Option<Stretch> {
    Some(Stretch { from: (step?, n?), count: usize::try_from(count?).ok()? })
}

/// Keys as the arrays that statements take.
fn columns(keys: &[(i64, Key)]) -> (Vec<i64>, Vec<i64>, Vec<i32>) {
    let series = keys.iter().map(|(series, _)| *series).collect();
    (series, keys.iter().map(|(_, key)| key.0).collect(), keys.iter().map(|(_, key)| key.1).collect())
}

/// The standing values of each series from a place on, which must be the beginning of an open chunk.
pub async fn chunks_from(
    conn: &mut PgConnection,
    attempt: i32,
    wanted: &[(i64, Key)],
) -> Result<BTreeMap<i64, Vec<Value>>> {
    let mut found: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let (series, steps, ns) = columns(wanted);
    // The limit also keeps the planner to one look at the index for each series.
    let rows = sqlx::query!(
        "select c.series_id, c.first_step, c.stride, c.steps, c.ns, c.numbers
         from unnest($2::bigint[], $3::bigint[], $4::integer[]) w(series_id, step, n) cross join lateral
              (select * from chunk c
               where c.series_id = w.series_id and c.attempt = $1 and c.rollback = 0
                 and (c.first_step, c.first_n) >= (w.step, w.n)
               order by c.first_step, c.first_n limit $5) c
         order by c.series_id, c.first_step, c.first_n",
        attempt,
        &series,
        &steps,
        &ns,
        OPEN_MAX
    )
    .fetch_all(conn)
    .await?;
    for row in rows {
        let places = Places { stride: row.stride, steps: row.steps, ns: row.ns };
        found.entry(row.series_id).or_default().append(&mut places.values(row.first_step, &row.numbers));
    }
    Ok(found)
}

/// A chunk with its values, and where the next one begins.
pub struct ClosedChunk {
    /// Place of its first value.
    pub first: Key,
    /// Its values.
    pub values: Vec<Value>,
    /// Place of the next chunk's first value.
    pub next: Option<Key>,
}

/// The standing chunk before the open ones that a value at this place belongs to, if there is any.
pub async fn closed_chunk(
    conn: &mut PgConnection,
    series: i64,
    attempt: i32,
    key: Key,
    open: Option<Key>,
) -> Result<Option<ClosedChunk>> {
    let (open_step, open_n) = open.unzip();
    let row = sqlx::query!(
        r#"select c.first_step as "first_step!", c.first_n as "first_n!", c.stride, c.steps, c.ns,
                  c.numbers as "numbers!", next.first_step as "next_step?", next.first_n as "next_n?"
           from (select * from
                   (select * from chunk where series_id = $1 and attempt = $2 and rollback = 0
                      and (first_step, first_n) <= ($3, $4) order by first_step desc, first_n desc limit 1) before
                 union all select * from
                   (select * from chunk where series_id = $1 and attempt = $2 and rollback = 0
                    order by first_step, first_n limit 1) begin_of_all
                 limit 1) c
           left join lateral (select n.first_step, n.first_n from chunk n
              where n.series_id = $1 and n.attempt = $2 and n.rollback = 0
                and (n.first_step, n.first_n) > (c.first_step, c.first_n)
              order by n.first_step, n.first_n limit 1) next on true
           where $5::bigint is null or (c.first_step, c.first_n) < ($5, $6::integer)"#,
        series,
        attempt,
        key.0,
        key.1,
        open_step,
        open_n
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let places = Places { stride: row.stride, steps: row.steps, ns: row.ns };
        ClosedChunk {
            first: (row.first_step, row.first_n),
            values: places.values(row.first_step, &row.numbers),
            next: row.next_step.zip(row.next_n),
        }
    }))
}

/// Deletes one standing chunk.
pub async fn delete_chunk(conn: &mut PgConnection, series: i64, attempt: i32, first: Key) -> Result<()> {
    sqlx::query!(
        "delete from chunk where series_id = $1 and attempt = $2 and rollback = 0 and first_step = $3 and first_n = $4",
        series,
        attempt,
        first.0,
        first.1
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the standing chunks of each series from a place on.
pub async fn delete_from(conn: &mut PgConnection, attempt: i32, gone: &[(i64, Key)]) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let (series, steps, ns) = columns(gone);
    sqlx::query!(
        "delete from chunk c using unnest($2::bigint[], $3::bigint[], $4::integer[]) w(series_id, step, n)
         where c.series_id = w.series_id and c.attempt = $1 and c.rollback = 0
           and (c.first_step, c.first_n) >= (w.step, w.n)",
        attempt,
        &series,
        &steps,
        &ns
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A rollup, column by column.
#[derive(Default)]
struct RollupRows {
    first_step: Vec<i64>,
    first_n: Vec<i32>,
    last_step: Vec<i64>,
    last_n: Vec<i32>,
    first: Vec<f64>,
    last: Vec<f64>,
    count: Vec<i64>,
    non_finite: Vec<i64>,
    min: Vec<Option<f64>>,
    min_step: Vec<Option<i64>>,
    max: Vec<Option<f64>>,
    max_step: Vec<Option<i64>>,
}

impl RollupRows {
    fn push(&mut self, rollup: &Rollup) {
        self.first_step.push(rollup.first_key.0);
        self.first_n.push(rollup.first_key.1);
        self.last_step.push(rollup.last_key.0);
        self.last_n.push(rollup.last_key.1);
        self.first.push(rollup.first);
        self.last.push(rollup.last);
        self.count.push(rollup.count);
        self.non_finite.push(rollup.non_finite);
        self.min.push(rollup.min.map(|min| min.number));
        self.min_step.push(rollup.min.map(|min| min.step));
        self.max.push(rollup.max.map(|max| max.number));
        self.max_step.push(rollup.max.map(|max| max.step));
    }
}

/// Chunks to be written.
#[derive(Default)]
pub struct ChunkRows {
    series: Vec<i64>,
    attempt: Vec<i32>,
    rollback: Vec<i32>,
    rollups: RollupRows,
    stride: Vec<Option<i64>>,
    /// Where a chunk's part of the long arrays ends; it has as many as its values, or none.
    numbers_end: Vec<i32>,
    steps_end: Vec<Option<i32>>,
    ns_end: Vec<Option<i32>>,
    numbers: Vec<f64>,
    steps: Vec<i64>,
    ns: Vec<i32>,
}

impl ChunkRows {
    /// Adds one; of no values there is none.
    pub fn push(&mut self, series: i64, attempt: i32, rollback: i32, values: &[Value]) {
        let Some(rollup) = Rollup::of(values) else { return };
        let places = Places::of(values);
        self.series.push(series);
        self.attempt.push(attempt);
        self.rollback.push(rollback);
        self.rollups.push(&rollup);
        self.stride.push(places.stride);
        self.numbers.extend(values.iter().map(|value| value.number));
        self.numbers_end.push(self.numbers.len() as i32);
        let steps = places.steps.map(|mut steps| self.steps.append(&mut steps));
        self.steps_end.push(steps.map(|()| self.steps.len() as i32));
        let ns = places.ns.map(|mut ns| self.ns.append(&mut ns));
        self.ns_end.push(ns.map(|()| self.ns.len() as i32));
    }

    /// Writes them; one that begins where another does takes its place.
    pub async fn write(self, conn: &mut PgConnection) -> Result<()> {
        if self.series.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "insert into chunk (series_id, attempt, rollback, first_step, first_n, last_step, last_n, first, last, count,
                                non_finite, min, min_step, max, max_step, stride, steps, ns, numbers)
             select r.series_id, r.attempt, r.rollback, r.first_step, r.first_n, r.last_step, r.last_n, r.first, r.last,
                    r.count, r.non_finite, r.min, r.min_step, r.max, r.max_step, r.stride,
                    ($20::bigint[])[r.steps_end - r.count::integer + 1 : r.steps_end],
                    ($21::integer[])[r.ns_end - r.count::integer + 1 : r.ns_end],
                    ($22::float8[])[r.numbers_end - r.count::integer + 1 : r.numbers_end]
             from unnest($1::bigint[], $2::integer[], $3::integer[], $4::bigint[], $5::integer[], $6::bigint[],
                         $7::integer[], $8::float8[], $9::float8[], $10::bigint[], $11::bigint[], $12::float8[],
                         $13::bigint[], $14::float8[], $15::bigint[], $16::bigint[], $17::integer[], $18::integer[],
                         $19::integer[])
                  r(series_id, attempt, rollback, first_step, first_n, last_step, last_n, first, last, count, non_finite,
                    min, min_step, max, max_step, stride, numbers_end, steps_end, ns_end)
             on conflict (series_id, attempt, rollback, first_step, first_n) do update
             set last_step = excluded.last_step, last_n = excluded.last_n, first = excluded.first, last = excluded.last,
                 count = excluded.count, non_finite = excluded.non_finite, min = excluded.min,
                 min_step = excluded.min_step, max = excluded.max, max_step = excluded.max_step,
                 stride = excluded.stride, steps = excluded.steps, ns = excluded.ns, numbers = excluded.numbers",
            &self.series,
            &self.attempt,
            &self.rollback,
            &self.rollups.first_step,
            &self.rollups.first_n,
            &self.rollups.last_step,
            &self.rollups.last_n,
            &self.rollups.first,
            &self.rollups.last,
            &self.rollups.count,
            &self.rollups.non_finite,
            &self.rollups.min as &[Option<f64>],
            &self.rollups.min_step as &[Option<i64>],
            &self.rollups.max as &[Option<f64>],
            &self.rollups.max_step as &[Option<i64>],
            &self.stride as &[Option<i64>],
            &self.numbers_end,
            &self.steps_end as &[Option<i32>],
            &self.ns_end as &[Option<i32>],
            &self.steps,
            &self.ns,
            &self.numbers
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Summaries to be written.
#[derive(Default)]
pub struct SummaryRows {
    series: Vec<i64>,
    attempt: Vec<i32>,
    rollups: RollupRows,
    open_step: Vec<Option<i64>>,
    open_n: Vec<Option<i32>>,
    open_count: Vec<i32>,
    tail_step: Vec<Option<i64>>,
    tail_n: Vec<Option<i32>>,
    tail_count: Vec<i32>,
}

impl SummaryRows {
    /// Adds one.
    pub fn push(&mut self, series: i64, attempt: i32, share: &Share) {
        let (open, tail) = share.open.unzip();
        let count = |stretch: Option<Stretch>| stretch.map_or(0, |stretch| stretch.count as i32);
        self.series.push(series);
        self.attempt.push(attempt);
        self.rollups.push(&share.rollup);
        self.open_step.push(open.map(|open| open.from.0));
        self.open_n.push(open.map(|open| open.from.1));
        self.open_count.push(count(open));
        self.tail_step.push(tail.map(|tail| tail.from.0));
        self.tail_n.push(tail.map(|tail| tail.from.1));
        self.tail_count.push(count(tail));
    }

    /// Writes them in place of those that are there.
    pub async fn write(self, conn: &mut PgConnection) -> Result<()> {
        if self.series.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "insert into summary (series_id, attempt, first_step, first_n, last_step, last_n, first, last, count,
                                  non_finite, min, min_step, max, max_step, open_step, open_n, open_count, tail_step,
                                  tail_n, tail_count)
             select * from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[], $5::bigint[], $6::integer[],
                                  $7::float8[], $8::float8[], $9::bigint[], $10::bigint[], $11::float8[],
                                  $12::bigint[], $13::float8[], $14::bigint[], $15::bigint[], $16::integer[],
                                  $17::integer[], $18::bigint[], $19::integer[], $20::integer[])
             on conflict (series_id, attempt) do update
             set first_step = excluded.first_step, first_n = excluded.first_n, last_step = excluded.last_step,
                 last_n = excluded.last_n, first = excluded.first, last = excluded.last, count = excluded.count,
                 non_finite = excluded.non_finite, min = excluded.min, min_step = excluded.min_step,
                 max = excluded.max, max_step = excluded.max_step, open_step = excluded.open_step,
                 open_n = excluded.open_n, open_count = excluded.open_count, tail_step = excluded.tail_step,
                 tail_n = excluded.tail_n, tail_count = excluded.tail_count",
            &self.series,
            &self.attempt,
            &self.rollups.first_step,
            &self.rollups.first_n,
            &self.rollups.last_step,
            &self.rollups.last_n,
            &self.rollups.first,
            &self.rollups.last,
            &self.rollups.count,
            &self.rollups.non_finite,
            &self.rollups.min as &[Option<f64>],
            &self.rollups.min_step as &[Option<i64>],
            &self.rollups.max as &[Option<f64>],
            &self.rollups.max_step as &[Option<i64>],
            &self.open_step as &[Option<i64>],
            &self.open_n as &[Option<i32>],
            &self.open_count,
            &self.tail_step as &[Option<i64>],
            &self.tail_n as &[Option<i32>],
            &self.tail_count
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Notes values that came again with another number.
pub async fn note_conflicts(
    conn: &mut PgConnection,
    attempt: i32,
    conflicts: &[(i64, Conflict)],
) -> Result<()> {
    if conflicts.is_empty() {
        return Ok(());
    }
    let keys: Vec<(i64, Key)> = conflicts.iter().map(|(series, conflict)| (*series, conflict.key)).collect();
    let (series, steps, ns) = columns(&keys);
    let kept: Vec<f64> = conflicts.iter().map(|(_, conflict)| conflict.kept).collect();
    let refused: Vec<f64> = conflicts.iter().map(|(_, conflict)| conflict.refused).collect();
    let times: Vec<i64> = conflicts.iter().map(|(_, conflict)| conflict.times).collect();
    sqlx::query!(
        "insert into conflict (series_id, attempt, step, n, kept, refused, times)
         select c.series_id, $1, c.step, c.n, c.kept, c.refused, c.times
         from unnest($2::bigint[], $3::bigint[], $4::integer[], $5::float8[], $6::float8[], $7::bigint[])
              c(series_id, step, n, kept, refused, times)
         on conflict (series_id, attempt, step, n) do update
         set kept = excluded.kept, refused = excluded.refused, times = conflict.times + excluded.times,
             noted_at = now()",
        attempt,
        &series,
        &steps,
        &ns,
        &kept,
        &refused,
        &times
    )
    .execute(conn)
    .await?;
    Ok(())
}
