//! A database without a server: its process is killed, and the steps are the test's own, so that what comes between two
//! of them is said and not waited for. Runs get values and ends by SQL.

use anyhow::{Context, Result};
use causeway_protocol::{Evaluation, Hits, Spec, parse_search};
use causeway_server::search;
use causeway_tests::{Held, Server};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgRow, types::Json};
use uuid::Uuid;

/// A database to search in.
pub struct Lab {
    /// The killed server, whose Postgres goes on.
    pub server: Server,
    /// Its database.
    pub pool: PgPool,
    worker: Uuid,
}

/// A run of a search.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Run {
    pub trial: i32,
    pub rung: i32,
    pub seed: i64,
    pub id: Uuid,
    pub state: String,
    pub stopping: bool,
}

/// Tables that a step writes.
const WRITTEN: [&str; 5] = ["search", "search_trial", "search_run", "search_decision", "run"];

impl Lab {
    pub async fn new() -> Result<Lab> {
        let mut server = Server::start().await?;
        server.kill()?;
        let pool = server.database().await?;
        let worker = Uuid::now_v7();
        sqlx::query("insert into worker (id, name, host, version, assets) values ($1, 'w', 'h', '0', '[]')")
            .bind(worker)
            .execute(&pool)
            .await?;
        Ok(Lab { server, pool, worker })
    }

    pub async fn submit(&self, document: &Value) -> Result<Uuid> {
        let search = parse_search(document.clone()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        Ok(search::insert_search(&self.pool, &search, Uuid::nil(), None).await?.0)
    }

    pub async fn step(&self, id: Uuid) -> Result<bool> {
        Ok(search::step(&self.pool, id).await?)
    }

    /// The runs of a search by trial, rung and seed.
    pub async fn runs(&self, id: Uuid) -> Result<Vec<Run>> {
        let runs = sqlx::query_as(
            "select o.trial, o.rung, o.seed, r.id, r.state, r.cancel_requested as stopping
             from search_run o join run r on r.id = o.run_id where o.search_id = $1 order by o.trial, o.rung, o.seed",
        );
        Ok(runs.bind(id).fetch_all(&self.pool).await?)
    }

    /// What was decided, each as "action trial: why".
    pub async fn decided(&self, id: Uuid) -> Result<Vec<String>> {
        let decided = sqlx::query_scalar(
            "select action || coalesce(' ' || trial, '') || case when reason = '' then '' else ': ' || reason end
             from search_decision where search_id = $1 order by n",
        );
        Ok(decided.bind(id).fetch_all(&self.pool).await?)
    }

    pub async fn row<T>(&self, sql: &'static str, id: Uuid) -> Result<T>
    where
        T: for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin,
    {
        Ok(sqlx::query_as(sql).bind(id).fetch_one(&self.pool).await?)
    }

    pub async fn column(&self, sql: &'static str) -> Result<Vec<bool>> {
        Ok(sqlx::query_scalar(sql).fetch_all(&self.pool).await?)
    }

    /// Training steps that a run is planned for.
    pub async fn steps(&self, run: Uuid) -> Result<u64> {
        let (spec,): (Json<Spec>,) = self.row("select spec from run where id = $1", run).await?;
        Ok(spec.0.training.context("training")?.steps)
    }

    /// A run that is at work logs values of its loss.
    pub async fn log(&self, run: Uuid, values: &[(i64, f64)]) -> Result<()> {
        sqlx::query(
            "insert into attempt (id, run_id, number, worker_id, device, epoch, state, phase)
             values ($1, $2, 1, $3, 'cpu:0', 1, 'running', 'train') on conflict do nothing",
        )
        .bind(Uuid::now_v7())
        .bind(run)
        .bind(self.worker)
        .execute(&self.pool)
        .await?;
        sqlx::query("update run set state = 'running' where id = $1").bind(run).execute(&self.pool).await?;
        sqlx::query("insert into series (run_id, name) values ($1, 'loss') on conflict do nothing")
            .bind(run)
            .execute(&self.pool)
            .await?;
        for (step, value) in values {
            sqlx::query(
                "insert into chunk (series_id, attempt, first_step, last_step, first, last, first_n, last_n, count,
                                    non_finite, stride, numbers)
                 select id, 1, $2, $2, $3, $3, 0, 0, 1, 0, 1, array[$3] from series where run_id = $1 and name = 'loss'",
            )
            .bind(run)
            .bind(step)
            .bind(value)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }

    pub async fn end(&self, run: Uuid, state: &str) -> Result<()> {
        sqlx::query("update run set state = $2, finished_at = now() where id = $1")
            .bind(run)
            .bind(state)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// A run ends with its curve: of 100 images so many right at α = 0, 0.5 and 1.
    pub async fn measure(&self, run: Uuid, right: [usize; 3]) -> Result<()> {
        let hits = right.map(|right| Hits::from_flags(&(0..100).map(|at| at < right).collect::<Vec<_>>()));
        self.measure_hits(run, hits).await
    }

    pub async fn measure_hits(&self, run: Uuid, hits: [Hits; 3]) -> Result<()> {
        let (spec,): (Json<Spec>,) = self.row("select spec from run where id = $1", run).await?;
        let protocol = &spec.0.evaluation.protocols()[spec.0.evaluation.choosing()].id;
        let checkpoint = format!("c-{run}");
        for statement in [
            "insert into dataset (digest, name, title, licence, source, queries, bank, leave_one_out, classes)
             values ('d0', 'shapes', 'Shapes', 'CC0-1.0', 'a test', 100, 100, true, '[\"x\"]') on conflict do nothing",
            "insert into backbone (digest, name, parameters) values ('b0', 'b', 1) on conflict do nothing",
        ] {
            sqlx::query(statement).execute(&self.pool).await?;
        }
        sqlx::query("insert into protocol (id, definition) values ($1, '{}') on conflict do nothing")
            .bind(protocol)
            .execute(&self.pool)
            .await?;
        sqlx::query("insert into checkpoint (digest, backbone, method) values ($1, 'b0', 'adapter')")
            .bind(&checkpoint)
            .execute(&self.pool)
            .await?;
        sqlx::query("insert into run_dataset (run_id, dataset, role, ordinal) values ($1, 'd0', 'ood', 1)")
            .bind(run)
            .execute(&self.pool)
            .await?;
        for (ten_thousandths, hits) in [0i64, 5000, 10_000].into_iter().zip(hits) {
            let owner = if ten_thousandths == 0 { "" } else { checkpoint.as_str() };
            sqlx::query(
                "insert into curve (backbone, checkpoint, dataset, protocol) values ('b0', $1, 'd0', $2)
                 on conflict do nothing",
            )
            .bind(owner)
            .bind(protocol)
            .execute(&self.pool)
            .await?;
            sqlx::query(
                "insert into point (curve_id, alpha, n, correct, correct_top5, hits, stamp)
                 select id, $3::int8::numeric / 10000, 100, $4, 100, $5, '{}' from curve
                 where checkpoint = $1 and protocol = $2 on conflict do nothing",
            )
            .bind(owner)
            .bind(protocol)
            .bind(ten_thousandths)
            .bind(hits.count().cast_signed())
            .bind(&hits.0)
            .execute(&self.pool)
            .await?;
        }
        sqlx::query(
            "update run set state = 'succeeded', finished_at = now(), backbone = 'b0', checkpoint = $2 where id = $1",
        )
        .bind(run)
        .bind(&checkpoint)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes a step that dies at its first write, then one that dies at its second, and so on until one comes through.
    /// After each death everything must be as it was. Says how many died.
    pub async fn step_cut_off_everywhere(&self, id: Uuid) -> Result<usize> {
        for statement in [
            "create sequence cut",
            "create table cut_at (n bigint)",
            // The sequence counts on where a transaction is rolled back.
            "create function cut_off() returns trigger language plpgsql as $$ begin
               if nextval('cut') >= (select n from cut_at) then raise exception 'cut off'; end if;
               return new; end $$",
        ] {
            sqlx::query(statement).execute(&self.pool).await?;
        }
        for table in WRITTEN {
            let sql = format!(
                "create trigger cut before insert or update on {table} for each row execute function cut_off()"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&self.pool).await?;
        }
        let before = self.everything().await?;
        let mut died = 0;
        loop {
            sqlx::query("delete from cut_at").execute(&self.pool).await?;
            sqlx::query("select setval('cut', 1, false)").execute(&self.pool).await?;
            sqlx::query("insert into cut_at values ($1)").bind(died + 1).execute(&self.pool).await?;
            // A pool of its own each time, as a server that has just started has.
            let fresh = self.server.database().await?;
            let stepped = search::step(&fresh, id).await;
            fresh.close().await;
            match stepped {
                Ok(_) => break,
                Err(_) => {
                    died += 1;
                    anyhow::ensure!(
                        self.everything().await? == before,
                        "something was left after {died} writes"
                    );
                    anyhow::ensure!(died < 1000, "it never came through");
                }
            }
        }
        sqlx::query("drop function cut_off cascade").execute(&self.pool).await?;
        sqlx::query("drop table cut_at").execute(&self.pool).await?;
        sqlx::query("drop sequence cut").execute(&self.pool).await?;
        Ok(usize::try_from(died)?)
    }

    /// All rows of all tables that a step writes.
    async fn everything(&self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        for table in WRITTEN {
            let sql = format!(
                "select coalesce(jsonb_agg(to_jsonb(t) order by to_jsonb(t)::text)::text, '') from {table} t"
            );
            rows.push(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool).await?);
        }
        Ok(rows)
    }
}

pub fn started() -> Value {
    let environment = json!({"version": "0", "commit": "c", "libtorch": "l", "host": "h", "device": "cpu", "cpu": "c",
                             "threads": 1});
    json!({"event": "started", "environment": environment, "phase": "train", "resumed_step": 0})
}

pub fn loss(step: u64, value: f64) -> Value {
    json!({"event": "metrics", "step": step, "values": {"loss": value}})
}

/// The journal of an evaluation: backbone, dataset, and every point that the spec asks for.
pub fn whole_curve(held: &Held) -> Result<Vec<Value>> {
    let evaluation: Evaluation = serde_json::from_value(held.grant["spec"]["evaluation"].clone())?;
    let protocol = &evaluation.protocols()[0];
    let hits = Hits::from_flags(&[true, true, true, true, true, true, true, true, false, false]);
    let stamp = json!({"device": "cpu", "version": "0", "libtorch": "l", "threads": 1, "batch_size": 8});
    let mut events = vec![
        json!({"event": "backbone", "digest": "b0", "parameters": 1, "trainable": 1}),
        json!({"event": "dataset", "asset": "shapes", "digest": "d0", "title": "Shapes", "licence": "CC0-1.0",
               "source": "a test", "queries": 10, "bank": 10, "leave_one_out": true, "classes": ["x"],
               "queries_per_class": [10]}),
    ];
    events.extend([0.0, 0.5, 1.0].map(|alpha: f64| {
        json!({"event": "point", "backbone": "b0", "checkpoint": (alpha > 0.0).then_some("c0"), "dataset": "d0",
               "protocol": protocol, "alpha": alpha, "n": 10, "correct": 8, "correct_top5": 10,
               "correct_per_class": [8], "hits": hits, "stamp": stamp})
    }));
    Ok(events)
}
