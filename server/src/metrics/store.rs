//! Values into chunks, in the transaction that holds the lease's row lock.
//!
//! What always holds for an attempt's share of a series: its standing chunks follow each other by place without
//! overlapping, and all but the last few are full, or were split to make room. Those last ones are *open*: a batch that
//! brings few values extends the last of them while that is small, or adds another, and once they hold 1,024 values
//! they become one. So a value is written about twice, whatever the size of the batches, and a chart reads a row for
//! each 1,024 values. Values that arrive out of order are merged into the chunk they belong to.

use super::{
    batch::Batch,
    chunk::{CHUNK_MAX, Conflict, Key, Rollup, Value, cut, merge, split},
    rows::{self, ChunkRows, SummaryRows},
};
use crate::{Result, leases::Fenced};
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// A last chunk that holds at most so many values with the new ones is written again; else another is begun.
const SMALL: usize = 128;

/// Chunks that are not full: where they begin, and how many values they hold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stretch {
    /// Place of the first value.
    pub from: Key,
    /// Number of values.
    pub count: usize,
}

/// What is known of an attempt's share of a series before any value is read.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share {
    /// What its visible values come to.
    pub rollup: Rollup,
    /// The open chunks together, and the last of them.
    pub open: Option<(Stretch, Stretch)>,
}

/// What is done with values that come at the end.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Plan {
    /// They are a chunk of their own.
    Begin,
    /// They extend the last chunk, which is small.
    Extend(Key),
    /// They and the open chunks become full ones and a rest.
    Rebuild(Key),
}

impl Plan {
    fn of(share: Option<&Share>, values: &[Value]) -> Plan {
        let (Some(share), Some(first)) = (share, values.first()) else { return Plan::Begin };
        let Some((open, tail)) = share.open else { return Plan::Begin };
        if first.key() <= share.rollup.last_key || open.count + values.len() >= CHUNK_MAX {
            Plan::Rebuild(open.from)
        } else if tail.count + values.len() <= SMALL {
            Plan::Extend(tail.from)
        } else {
            Plan::Begin
        }
    }

    /// From which place on chunks must be read for it.
    fn reads_from(self) -> Option<Key> {
        match self {
            Plan::Begin => None,
            Plan::Extend(from) | Plan::Rebuild(from) => Some(from),
        }
    }
}

/// Takes the values of a batch, and leaves it empty.
///
/// # Errors
/// If the database does not answer.
pub async fn insert(conn: &mut PgConnection, lease: &Fenced, batch: &mut Batch) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let by_name = batch.take();
    let mut writer = Writer { attempt: lease.attempt, ..Writer::default() };
    let mut ends = Vec::with_capacity(by_name.len());
    for ((series, share), values) in rows::shares(conn, lease.run_id, lease.attempt, by_name).await? {
        let values = writer.take_late(conn, series, share.as_ref(), values).await?;
        ends.push((series, share, Plan::of(share.as_ref(), &values), values));
    }
    let wanted: Vec<(i64, Key)> =
        ends.iter().filter_map(|(series, _, plan, _)| Some((*series, plan.reads_from()?))).collect();
    let mut there = rows::chunks_from(conn, lease.attempt, &wanted).await?;
    for (series, share, plan, values) in ends {
        writer.append(series, share, plan, &there.remove(&series).unwrap_or_default(), &values);
    }
    writer.write(conn).await
}

/// What a batch changes, gathered so that each table is written once.
#[derive(Default)]
struct Writer {
    attempt: i32,
    chunks: ChunkRows,
    /// Open chunks that are written anew: those of a series from a place on.
    gone: Vec<(i64, Key)>,
    summaries: SummaryRows,
    conflicts: Vec<(i64, Conflict)>,
    /// What came late, by series.
    late: BTreeMap<i64, Rollup>,
}

impl Writer {
    /// Merges what belongs before the open chunks into the chunks there; gives back the rest.
    async fn take_late(
        &mut self,
        conn: &mut PgConnection,
        series: i64,
        share: Option<&Share>,
        values: Vec<Value>,
    ) -> Result<Vec<Value>> {
        let Some(share) = share else { return Ok(values) };
        let is_late = |value: &Value| match share.open {
            Some((open, _)) => value.key() < open.from,
            None => value.key() <= share.rollup.last_key,
        };
        let (mut late, on_time) = values.split_at(values.partition_point(is_late));
        let open = share.open.map(|(open, _)| open.from);
        while let Some(first) = late.first() {
            let Some(chunk) = rows::closed_chunk(conn, series, self.attempt, first.key(), open).await? else {
                break; // all chunks are open, and take it
            };
            let belongs = |value: &Value| chunk.next.is_none_or(|next| value.key() < next);
            let (here, later) = late.split_at(late.partition_point(belongs));
            late = later;
            let merged = merge(&chunk.values, here);
            self.conflicts.extend(merged.conflicts.into_iter().map(|conflict| (series, conflict)));
            let Some(taken) = Rollup::of(&merged.taken) else { continue };
            rows::delete_chunk(conn, series, self.attempt, chunk.first).await?;
            let mut parts = ChunkRows::default();
            split(&merged.values).for_each(|part| parts.push(series, self.attempt, 0, part));
            parts.write(conn).await?;
            self.late.entry(series).and_modify(|before| *before = before.and(taken)).or_insert(taken);
        }
        Ok([late, on_time].concat())
    }

    /// Puts values at the end, or among the open chunks that were read.
    fn append(&mut self, series: i64, share: Option<Share>, plan: Plan, there: &[Value], values: &[Value]) {
        let merged = merge(there, values);
        self.conflicts.extend(merged.conflicts.into_iter().map(|conflict| (series, conflict)));
        let taken = [share.map(|share| share.rollup), self.late.remove(&series), Rollup::of(&merged.taken)];
        let any = taken[1].is_some() || taken[2].is_some();
        let Some(rollup) = taken.into_iter().flatten().reduce(Rollup::and).filter(|_| any) else { return };
        let mut open = share.and_then(|share| share.open);
        if !merged.taken.is_empty() {
            if let Plan::Rebuild(from) = plan {
                self.gone.push((series, from));
                open = None;
            }
            for part in cut(&merged.values) {
                self.chunks.push(series, self.attempt, 0, part);
                let last = Stretch { from: part[0].key(), count: part.len() };
                open = match (plan, open) {
                    (Plan::Rebuild(_), _) | (_, None) => (part.len() < CHUNK_MAX).then_some((last, last)),
                    (_, Some((all, _))) => {
                        Some((Stretch { count: all.count + merged.taken.len(), ..all }, last))
                    }
                };
            }
        }
        self.summaries.push(series, self.attempt, &Share { rollup, open });
    }

    async fn write(self, conn: &mut PgConnection) -> Result<()> {
        rows::delete_from(conn, self.attempt, &self.gone).await?;
        self.chunks.write(conn).await?;
        self.summaries.write(conn).await?;
        rows::note_conflicts(conn, self.attempt, &self.conflicts).await
    }
}
