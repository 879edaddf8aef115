//! The next step of a search. One transaction, under the lock of the search's row, reads everything that was decided,
//! takes in what the runs have come to, and submits what may be submitted: all of it happens or none, so that a server
//! may die between any two statements, and several servers may step the same search. Nothing is kept in memory.

use super::{
    asha::{Rungs, Verdict, promotion, stopping},
    history::{self, Made},
    observe::{Seen, Worth, observe},
};
use crate::{App, Error, Result, runs};
use causeway_protocol::{Search, SearchPoint};
use sqlx::{PgConnection, PgPool, types::Json};
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Pause between two looks at all open searches.
const PERIOD: Duration = Duration::from_secs(1);
/// Most searches looked at in one pass.
const PASS_MAX: i64 = 1000;

/// Steps every open search once a second until told to stop.
pub async fn run(app: App, stop: CancellationToken) {
    loop {
        match pass(&app.pool).await {
            Ok(true) => app.wake.ring(),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "searches could not be read; the next pass tries again"),
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One step of every open search; true if any of them decided something.
///
/// # Errors
/// If the database does not answer. A search that fails does not hold up the others.
pub async fn pass(pool: &PgPool) -> Result<bool> {
    let open = sqlx::query_scalar!(
        "select id from search where state in ('running', 'paused') order by id limit $1",
        PASS_MAX
    )
    .fetch_all(pool)
    .await?;
    let mut any = false;
    for id in open {
        match step(pool, id).await {
            Ok(decided) => any |= decided,
            Err(error) => {
                tracing::warn!(search = %id, %error, "a search's step failed; the next one tries again")
            }
        }
    }
    Ok(any)
}

/// One step of one search; true if it decided something.
///
/// # Errors
/// If the database does not answer; nothing has changed then.
pub async fn step(pool: &PgPool, id: Uuid) -> Result<bool> {
    let row = sqlx::query!(
        r#"select s.document as "document: Json<Search>", s.state,
                  (select count(*) from search_trial t where t.search_id = s.id and t.state = 'running') as "running!",
                  (select count(*) from search_run o join run r on r.id = o.run_id where o.search_id = s.id
                     and r.state not in ('succeeded', 'failed', 'cancelled', 'lost')) as "active!"
           from search s where s.id = $1 and s.state in ('running', 'paused')"#,
        id
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let seen = observe(pool, id, &row.document).await?;
    let room = row.state == "running" && has_room(&row.document, row.active);
    if seen.is_empty() && !room && row.running > 0 {
        return Ok(false);
    }
    let mut tx = pool.begin().await?;
    let Some(mut course) = Course::load(&mut tx, id).await? else { return Ok(false) };
    for found in seen {
        course.take(&mut tx, found).await?;
    }
    course.submit(&mut tx).await?;
    course.end(&mut tx).await?;
    tx.commit().await?;
    Ok(course.decided > 0)
}

fn has_room(search: &Search, active: i64) -> bool {
    active + i64::try_from(search.seeds.len()).unwrap_or(i64::MAX) <= i64::from(search.parallel)
}

#[derive(Debug)]
struct Trial {
    point: SearchPoint,
    state: String,
    rung: usize,
}

/// A search whose row is locked, with all that it has decided.
#[derive(Debug)]
struct Course {
    id: Uuid,
    search: Search,
    token_id: Uuid,
    paused: bool,
    trials: BTreeMap<i32, Trial>,
    rungs: Rungs,
    /// Runs waiting or running.
    active: i64,
    decided: usize,
}

impl Course {
    /// Locks and reads an open search; none if it has ended, or if another server is at it.
    async fn load(conn: &mut PgConnection, id: Uuid) -> Result<Option<Course>> {
        let row = sqlx::query!(
            r#"select document as "document: Json<Search>", state, token_id from search
               where id = $1 and state in ('running', 'paused') for update skip locked"#,
            id
        )
        .fetch_optional(&mut *conn)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let trials = sqlx::query!(
            r#"select trial, point as "point: Json<SearchPoint>", state, rung from search_trial
               where search_id = $1 order by trial"#,
            id
        )
        .fetch_all(&mut *conn)
        .await?;
        let trials = trials.into_iter().map(|row| {
            let rung = usize::try_from(row.rung).unwrap_or(0);
            (row.trial, Trial { point: row.point.0, state: row.state, rung })
        });
        let active = sqlx::query_scalar!(
            r#"select count(*) as "active!" from search_run o join run r on r.id = o.run_id
               where o.search_id = $1 and r.state not in ('succeeded', 'failed', 'cancelled', 'lost')"#,
            id
        )
        .fetch_one(&mut *conn)
        .await?;
        let search = row.document.0;
        let mut rungs = Rungs::new(search.stages());
        for decision in history::recorded(conn, id).await? {
            rungs.note(&decision);
        }
        Ok(Some(Course {
            id,
            token_id: row.token_id,
            paused: row.state == "paused",
            trials: trials.collect(),
            rungs,
            active,
            decided: 0,
            search,
        }))
    }

    async fn record(&mut self, conn: &mut PgConnection, made: Made) -> Result<()> {
        self.rungs.note(&made.recorded());
        self.decided += 1;
        history::record(conn, self.id, &made).await
    }

    /// Takes in what a trial has come to: rung by rung, as if each had been seen when it was reached.
    async fn take(&mut self, conn: &mut PgConnection, seen: Seen) -> Result<()> {
        for (rung, worth) in seen.reached {
            let open = self.trials.get(&seen.trial).is_some_and(|t| t.state == "running" && t.rung == rung);
            if open {
                self.reach(conn, seen.trial, rung, worth).await?;
            }
        }
        let open = self.trials.get(&seen.trial).is_some_and(|trial| trial.state == "running");
        match seen.failed {
            Some(reason) if open => self.fail(conn, seen.trial, reason).await,
            _ => Ok(()),
        }
    }

    async fn reach(&mut self, conn: &mut PgConnection, trial: i32, rung: usize, worth: Worth) -> Result<()> {
        let (value, last) = (worth.mean(), self.search.stages() - 1);
        let direction = self.search.objective.direction();
        let mut rung_with_it = self.rungs.reached[rung].clone();
        rung_with_it.push(super::asha::Reached { trial, value });
        let (eta, halves) = (self.search.strategy.eta(), rung < last && !self.search.is_promoted());
        let verdict = stopping(&rung_with_it, if halves { eta } else { 1 }, direction);
        let (action, state, next) = match (rung == last, halves, verdict.goes_on) {
            (true, ..) => ("finish", "finished", rung),
            (false, false, _) => ("reach", "stopped", rung),
            (false, true, true) => ("go_on", "running", rung + 1),
            (false, true, false) => ("stop", "stopped", rung),
        };
        let reason = self.words(rung, value, verdict, action);
        if action == "stop" {
            let told = format!("stopped by the search {} at {reason}", self.search.name);
            self.cancel_runs(conn, trial, &told).await?;
        }
        self.change(conn, trial, state, next, Some(value), &reason).await?;
        self.record(
            conn,
            Made {
                action,
                trial: Some(trial),
                rung: Some(rung),
                value: Some(value),
                verdict: Some(verdict),
                seeds: worth.seeds,
                note: worth.note,
                reason,
                ..Made::default()
            },
        )
        .await
    }

    /// "rung 1 of 3 (5 steps): loss (last value) 2.31 is place 3 of 4, and the best 2 go on".
    fn words(&self, rung: usize, value: f64, verdict: Verdict, action: &str) -> String {
        let objective = self.search.objective.words();
        let found = if value.is_nan() {
            format!("{objective} is no number, which never goes on")
        } else {
            format!("{objective} {} is place {} of {}", super::shown(value), verdict.place, verdict.among)
        };
        match self.search.strategy.rungs().get(rung) {
            None => found,
            Some(steps) => {
                let go = match (action, verdict.quota) {
                    _ if value.is_nan() => String::new(),
                    ("go_on" | "stop", 1) => ", and the best one goes on".to_owned(),
                    ("go_on" | "stop", quota) => format!(", and the best {quota} go on"),
                    _ => String::new(),
                };
                format!("rung {} of {} ({steps} steps): {found}{go}", rung + 1, self.search.stages())
            }
        }
    }

    /// A trial of which nothing more will come; what still runs of it is stopped.
    async fn fail(&mut self, conn: &mut PgConnection, trial: i32, reason: String) -> Result<()> {
        let told = format!("trial {trial} of the search {} has failed: {reason}", self.search.name);
        self.cancel_runs(conn, trial, &told).await?;
        let rung = self.trials.get(&trial).map_or(0, |trial| trial.rung);
        self.change(conn, trial, "failed", rung, None, &reason).await?;
        let made = Made { action: "fail", trial: Some(trial), rung: Some(rung), reason, ..Made::default() };
        self.record(conn, made).await
    }

    async fn cancel_runs(&self, conn: &mut PgConnection, trial: i32, reason: &str) -> Result<()> {
        cancel_runs(conn, self.id, Some(trial), reason).await
    }

    async fn change(
        &mut self,
        conn: &mut PgConnection,
        trial: i32,
        state: &str,
        rung: usize,
        value: Option<f64>,
        reason: &str,
    ) -> Result<()> {
        sqlx::query!(
            "update search_trial set state = $3, rung = $4, value = coalesce($5, value), reason = $6
             where search_id = $1 and trial = $2",
            self.id,
            trial,
            state,
            i32::try_from(rung).unwrap_or(i32::MAX),
            value,
            reason
        )
        .execute(conn)
        .await?;
        if let Some(trial) = self.trials.get_mut(&trial) {
            (trial.state, trial.rung) = (state.to_owned(), rung);
        }
        Ok(())
    }

    fn any(&self, state: &str) -> bool {
        self.trials.values().any(|trial| trial.state == state)
    }

    /// What may be promoted, from the lowest rung to the highest. A rung is closed when nothing more can come to it:
    /// neither from below nor by a trial that is on its way.
    fn promotions(&self) -> Vec<Made> {
        let (eta, direction) = (self.search.strategy.eta(), self.search.objective.direction());
        let mut closed = !self.any("waiting");
        let mut list = Vec::new();
        let rungs = if self.search.is_promoted() { self.search.stages() - 1 } else { 0 };
        for rung in 0..rungs {
            closed &= !self.trials.values().any(|trial| trial.state == "running" && trial.rung == rung);
            let (reached, gone_on) = (&self.rungs.reached[rung], &self.rungs.gone_on[rung]);
            let Some((best, verdict)) = promotion(reached, gone_on, eta, closed, direction) else { continue };
            list.push(Made {
                action: "promote",
                trial: Some(best.trial),
                rung: Some(rung + 1),
                value: Some(best.value),
                verdict: Some(verdict),
                closed,
                reason: self.words(rung, best.value, verdict, "go_on"),
                ..Made::default()
            });
            closed = false;
        }
        list
    }

    /// Submits while there is room: what goes on from the highest rung first, else the next trial.
    async fn submit(&mut self, conn: &mut PgConnection) -> Result<()> {
        while !self.paused && has_room(&self.search, self.active) {
            let made = match self.promotions().pop() {
                Some(highest) => highest,
                None => {
                    let waiting = self.trials.iter().find(|(_, trial)| trial.state == "waiting");
                    let Some((trial, _)) = waiting else { break };
                    Made { action: "submit", trial: Some(*trial), rung: Some(0), ..Made::default() }
                }
            };
            let (Some(trial), Some(rung)) = (made.trial, made.rung) else { break };
            self.record(conn, made).await?;
            match self.run_trial(conn, trial, rung).await {
                Ok(()) => self.change(conn, trial, "running", rung, None, "").await?,
                // A blob that has gone since, say. The database's own errors end the transaction.
                Err(Error::Invalid(problems)) => {
                    let reason: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    self.change(conn, trial, "running", rung, None, "").await?;
                    self.fail(conn, trial, reason.join("; ")).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Puts the runs of a trial into the queue, one a seed.
    async fn run_trial(&mut self, conn: &mut PgConnection, trial: i32, rung: usize) -> Result<()> {
        let Some(point) = self.trials.get(&trial).map(|trial| trial.point.clone()) else { return Ok(()) };
        for seed in self.search.seeds.clone() {
            let spec =
                self.search.run_spec(trial.unsigned_abs(), &point, rung, seed).map_err(Error::Invalid)?;
            let (run, _) = runs::insert_run(conn, &spec, self.token_id, None).await?;
            sqlx::query!(
                "insert into search_run (search_id, trial, rung, seed, run_id) values ($1, $2, $3, $4, $5)",
                self.id,
                trial,
                i32::try_from(rung).unwrap_or(i32::MAX),
                i64::try_from(seed).map_err(anyhow::Error::from)?,
                run
            )
            .execute(&mut *conn)
            .await?;
            self.active += 1;
        }
        Ok(())
    }

    /// Ends the search when nothing runs and nothing more can come.
    async fn end(&mut self, conn: &mut PgConnection) -> Result<()> {
        let more = !self.promotions().is_empty();
        if self.active > 0 || self.any("running") || self.any("waiting") || more {
            return Ok(());
        }
        let (state, reason) = if self.any("finished") {
            ("succeeded", String::new())
        } else {
            ("failed", format!("none of the {} trials reached the end", self.trials.len()))
        };
        sqlx::query!(
            "update search set state = $2, reason = $3, finished_at = now() where id = $1",
            self.id,
            state,
            reason
        )
        .execute(&mut *conn)
        .await?;
        self.record(conn, Made { action: "end", reason, ..Made::default() }).await
    }
}

/// Asks the live runs of a trial, or of all trials, to stop.
pub(super) async fn cancel_runs(
    conn: &mut PgConnection,
    search: Uuid,
    trial: Option<i32>,
    reason: &str,
) -> Result<()> {
    let live = sqlx::query_scalar!(
        "select o.run_id from search_run o join run r on r.id = o.run_id
         where o.search_id = $1 and ($2::int4 is null or o.trial = $2)
           and r.state not in ('succeeded', 'failed', 'cancelled', 'lost') order by o.run_id for update of r",
        search,
        trial
    )
    .fetch_all(&mut *conn)
    .await?;
    for run in live {
        runs::request_cancel(conn, run, Some(reason)).await?;
    }
    Ok(())
}
