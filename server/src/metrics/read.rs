//! Reading values: those that stand and are visible, by step. A chunk that a resumed attempt hides in part, or that lies
//! across the end of what is asked for, is read value by value; of all others a chart reads what they come to.

use super::{
    Series, Shown,
    chart::points,
    chunk::{Extreme, Key, Places, Rollup, Value},
};
use crate::{Error, Result, error::found};
use causeway_protocol::Number;
use sqlx::PgPool;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most values in one complete answer.
pub const VALUES_MAX: usize = 100_000;
/// Most chunks that a chart is made of.
const CHUNKS_MAX: i64 = 100_000;
/// Most chunks of which a chart reads every value, of all its series together and of one: more than that are as fine as
/// a screen by what they come to.
const READ_WHOLE: (usize, usize) = (1024, 256);
/// Points of a chart for each column of its resolution: the first, the least, the greatest and the last value.
const POINTS: usize = 4;

/// Steps from the first to the last, both included.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first.
    pub from: i64,
    /// The last.
    pub to: i64,
}

impl Span {
    /// All steps.
    pub const ALL: Span = Span { from: i64::MIN, to: i64::MAX };

    fn holds(self, step: i64) -> bool {
        (self.from..=self.to).contains(&step)
    }
}

/// Refuses the name of no run.
///
/// # Errors
/// 404 if there is none.
pub async fn require_run(pool: &PgPool, run: Uuid) -> Result<()> {
    let there = sqlx::query_scalar!("select 1 from run where id = $1", run).fetch_optional(pool).await?;
    found(there, || format!("no run {run}")).map(drop)
}

/// The series of a run by name; all, or those asked for.
///
/// # Errors
/// 404 for an unknown run.
pub async fn series_of(pool: &PgPool, run: Uuid, names: Option<&[String]>) -> Result<Vec<(i64, String)>> {
    require_run(pool, run).await?;
    let rows = sqlx::query!(
        "select id, name from series where run_id = $1 and ($2::text[] is null or name = any($2)) order by name",
        run,
        names
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Where a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    series: i64,
    attempt: i32,
    first: Key,
}

/// A chunk without its values.
struct Head {
    place: Place,
    rollup: Rollup,
    /// Values beyond this step are hidden.
    through: i64,
}

impl Head {
    /// Whether all its values are visible and asked for.
    fn whole(&self, span: Span) -> bool {
        let last = self.rollup.last_key.0;
        self.rollup.first_key.0 >= span.from && last <= span.to && last <= self.through
    }
}

/// The visible chunks that have steps in a span, by series, attempt and step.
async fn heads(pool: &PgPool, ids: &[i64], span: Span) -> Result<Vec<Head>> {
    let rows = sqlx::query!(
        r#"select c.series_id, c.attempt, c.first_step, c.first_n, c.last_step, c.last_n, c.first, c.last, c.count,
                  c.non_finite, c.min, c.min_step, c.max, c.max_step, m.through as "through!"
           from (select m.series_id, m.attempt, least(coalesce(a.visible_through, $3), $3) as through
                 from summary m join series s on s.id = m.series_id
                 join attempt a on a.run_id = s.run_id and a.number = m.attempt
                 where m.series_id = any($1)) m
           join chunk c on c.series_id = m.series_id and c.attempt = m.attempt and c.rollback = 0
             and c.first_step <= m.through and c.last_step >= $2
           order by c.series_id, c.attempt, c.first_step, c.first_n limit $4"#,
        ids,
        span.from,
        span.to,
        CHUNKS_MAX + 1
    )
    .fetch_all(pool)
    .await?;
    if rows.len() as i64 > CHUNKS_MAX {
        return Err(Error::TooLarge(format!(
            "more than {CHUNKS_MAX} chunks of values: ask for fewer names or fewer steps"
        )));
    }
    let heads = rows.into_iter().map(|row| {
        let first_key = (row.first_step, row.first_n);
        Head {
            place: Place { series: row.series_id, attempt: row.attempt, first: first_key },
            rollup: Rollup {
                first_key,
                last_key: (row.last_step, row.last_n),
                first: row.first,
                last: row.last,
                count: row.count.into(),
                non_finite: row.non_finite.into(),
                min: Extreme::of(row.min, row.min_step),
                max: Extreme::of(row.max, row.max_step),
            },
            through: row.through,
        }
    });
    Ok(heads.collect())
}

/// The values of some chunks that are visible and in a span.
async fn values(pool: &PgPool, heads: &[&Head], span: Span) -> Result<BTreeMap<Place, Vec<Value>>> {
    let series: Vec<i64> = heads.iter().map(|head| head.place.series).collect();
    let attempts: Vec<i32> = heads.iter().map(|head| head.place.attempt).collect();
    let steps: Vec<i64> = heads.iter().map(|head| head.place.first.0).collect();
    let ns: Vec<i32> = heads.iter().map(|head| head.place.first.1).collect();
    let through: Vec<i64> = heads.iter().map(|head| head.through).collect();
    let rows = sqlx::query!(
        r#"select c.series_id, c.attempt, c.first_step, c.first_n, c.stride, c.steps, c.ns, c.numbers,
                  w.through as "through!"
           from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[], $5::bigint[])
                w(series_id, attempt, step, n, through) cross join lateral
                (select * from chunk c where c.series_id = w.series_id and c.attempt = w.attempt and c.rollback = 0
                   and c.first_step = w.step and c.first_n = w.n limit 1) c"#,
        &series,
        &attempts,
        &steps,
        &ns,
        &through
    )
    .fetch_all(pool)
    .await?;
    let chunks = rows.into_iter().map(|row| {
        let place =
            Place { series: row.series_id, attempt: row.attempt, first: (row.first_step, row.first_n) };
        let places = Places { stride: row.stride, steps: row.steps, ns: row.ns };
        let mut values = places.values(row.first_step, &row.numbers);
        values.retain(|value| span.holds(value.step) && value.step <= row.through);
        (place, values)
    });
    Ok(chunks.collect())
}

/// All visible values of a run in a span, by step.
///
/// # Errors
/// 404 for an unknown run, 413 for more values than one answer holds.
pub async fn complete(pool: &PgPool, run: Uuid, names: Option<&[String]>, span: Span) -> Result<Vec<Series>> {
    let too_many = || {
        let advice = "ask for fewer names or steps, for a resolution, or for metrics.csv, which has no limit";
        Error::TooLarge(format!("more than {VALUES_MAX} values: {advice}"))
    };
    let list = series_of(pool, run, names).await?;
    let ids: Vec<i64> = list.iter().map(|(id, _)| *id).collect();
    let heads = heads(pool, &ids, span).await?;
    let sure = heads.iter().filter(|head| head.whole(span)).map(|head| head.rollup.count).sum::<i64>();
    if sure > VALUES_MAX as i64 {
        return Err(too_many());
    }
    let mut by_series: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    for (place, mut values) in values(pool, &heads.iter().collect::<Vec<_>>(), span).await? {
        by_series.entry(place.series).or_default().append(&mut values);
    }
    if by_series.values().map(Vec::len).sum::<usize>() > VALUES_MAX {
        return Err(too_many());
    }
    let series = list.into_iter().filter_map(|(id, name)| {
        let mut values = by_series.remove(&id).filter(|values| !values.is_empty())?;
        values.sort_by_key(|value| value.step); // attempts follow each other, unless none is hidden
        Some(Series::new(name, values.into_iter().map(|value| (value.step, value.number)), None))
    });
    Ok(series.collect())
}

/// The visible values of a run in a span as a chart of so many columns needs them: all if they are few, else of each
/// column the first, the least, the greatest and the last. Every point is a value at its own step.
///
/// # Errors
/// 404 for an unknown run, 413 for more chunks than a chart is made of.
pub async fn chart(
    pool: &PgPool,
    run: Uuid,
    names: Option<&[String]>,
    span: Span,
    resolution: usize,
) -> Result<Vec<Series>> {
    let list = series_of(pool, run, names).await?;
    let ids: Vec<i64> = list.iter().map(|(id, _)| *id).collect();
    let heads = heads(pool, &ids, span).await?;
    let mut by_series: BTreeMap<i64, Vec<&Head>> = BTreeMap::new();
    for head in &heads {
        by_series.entry(head.place.series).or_default().push(head);
    }
    // Few chunks are read value by value, so that columns may be finer than they are; of many only those across an end.
    let whole_read = (READ_WHOLE.0 / by_series.len().max(1)).min(READ_WHOLE.1);
    let parts = by_series.values().flat_map(|heads| {
        let all = heads.len() <= whole_read;
        heads.iter().filter(move |head| all || !head.whole(span)).copied()
    });
    let mut read = values(pool, &parts.collect::<Vec<_>>(), span).await?;
    let series = list.into_iter().filter_map(|(id, name)| {
        let mut rollups: Vec<Rollup> = Vec::new();
        for head in by_series.get(&id)? {
            match read.remove(&head.place) {
                Some(values) => rollups.extend(values.iter().map(Rollup::of_one)),
                None if head.whole(span) => rollups.push(head.rollup),
                None => {} // merged into another chunk meanwhile
            }
        }
        rollups.sort_by_key(|rollup| rollup.first_key.0);
        let shown = Shown {
            exact: rollups.iter().all(|rollup| rollup.count == 1) && rollups.len() <= POINTS * resolution,
            count: rollups.iter().map(|rollup| rollup.count).sum(),
            non_finite: rollups.iter().map(|rollup| rollup.non_finite).sum(),
        };
        let points = if shown.exact {
            rollups.iter().map(|rollup| (rollup.first_key.0, rollup.first)).collect()
        } else {
            points(&rollups, resolution)
        };
        (shown.count > 0).then(|| Series::new(name, points.into_iter(), Some(shown)))
    });
    Ok(series.collect())
}

impl Series {
    pub(super) fn new(
        name: String,
        points: impl Iterator<Item = (i64, f64)>,
        shown: Option<Shown>,
    ) -> Series {
        let (steps, values) = points.map(|(step, number)| (step, Number(number))).unzip();
        Series { name, steps, values, shown }
    }
}
