//! The short form of `make chaos`; its checker, which must find what it is for; and several servers that share the work.

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    Process, binary,
    chaos::{
        ALL, Book, Cluster, Evidence, Kind, LEASE_SECONDS, Options, Program, Random, Seen, check, evidence,
        freeze_leader, rampage, watch,
    },
};
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_fault_once_and_every_promise_is_kept() -> Result<()> {
    let report = rampage(Options {
        faults: ALL.len(),
        seed: 6,
        pace: Duration::from_millis(1500),
        at_most: Duration::from_secs(120),
        servers: 2,
        agents: &[Kind::Two, Kind::Two, Kind::SmallDisk],
        tunings: false,
    })
    .await?;
    report.print();
    assert_eq!(report.violations, []);
    assert_eq!(report.fault_count(), ALL.len());
    assert!(report.runs.get("succeeded") > Some(&10), "{:?}", report.runs);
    Ok(())
}

/// Runs a few programs to their ends, one of them over two attempts.
async fn calm(folder: &tempfile::TempDir) -> Result<(Cluster, Book)> {
    let cluster = Cluster::start(folder.path(), 1, &[Kind::Two]).await?;
    let (book, mut random) = (Book::default(), Random::new(1));
    for seed in 1..=3 {
        let program = Program { seed, steps: if seed == 1 { 40 } else { 10 } };
        let key = format!("calm-{seed}");
        book.submit(&cluster, &mut random, &key, Some(program), &program.spec(&key, 0, "default")).await?;
    }
    let started = Instant::now();
    let mut session = cluster.database().await?;
    let kept = "select count(*) from resume_state s join run r on r.id = s.run_id where r.name = 'calm-1' and s.step >= 8";
    while sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut session).await? == 0 {
        ensure!(started.elapsed() < Duration::from_secs(60), "no state is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let run = book.entries()["calm-1"].runs.first().context("calm-1")?.clone();
    let attempts = cluster.agents[0].attempts();
    let (pid, attempt) = attempts
        .iter()
        .find(|(_, attempt)| attempt.to_string_lossy().contains(&run))
        .context("its process")?;
    fs::create_dir_all(cluster.agents[0].kept())?;
    let copy = cluster.agents[0].kept().join(format!("{run}-1.0.jsonl"));
    fs::hard_link(attempt.join("journal.jsonl"), copy)?;
    // SAFETY: a training process of this test's own cluster.
    unsafe { libc::kill(*pid, libc::SIGKILL) };
    cluster.all_ended(60).await?;
    Ok((cluster, book))
}

/// The rules that are broken after some SQL, which is taken back.
async fn broken_by(
    session: &mut PgConnection,
    evidence: &Evidence,
    sql: &'static str,
) -> Result<Vec<String>> {
    let mut planted = session.begin().await?;
    sqlx::raw_sql(sql).execute(&mut *planted).await.with_context(|| sql)?;
    let found = check(&mut planted, evidence).await?;
    planted.rollback().await?;
    Ok(found.into_iter().map(|violation| violation.rule).collect())
}

/// A rule, and how to break it in the database.
const PLANTED: [(&str, &str); 18] = [
    ("every run ends once", "update run set state = 'running' where name = 'calm-2'"),
    ("every run ends once", "delete from recorder.state where new = 'succeeded'"),
    ("a submission is one run", "delete from run where name = 'calm-2'"),
    (
        "a submission is one run",
        "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                          max_attempts, project_id)
         select gen_random_uuid(), experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                max_attempts, project_id from run where name = 'calm-2'",
    ),
    ("devices are given back", "update attempt set state = 'running' where state = 'succeeded'"),
    (
        "no run fails for what happens around it",
        "update run set state = 'failed', reason = 'the server answered 503' where name = 'calm-2'",
    ),
    ("an attempt ends once", "update attempt set state = 'running' where state = 'succeeded'"),
    (
        "every value once",
        "update chunk set numbers[1] = 0.25, first = 0.25 where chunk.ctid = (select ctid from chunk limit 1)",
    ),
    (
        "every value once",
        "insert into chunk select series_id, first_step, last_step, first, last, min, min_step, max, max_step, stride,
             attempt + 1, rollback, first_n, last_n, count, non_finite, steps, ns, numbers from chunk
         where attempt = 1 and series_id in (select s.id from series s join run r on r.id = s.run_id
                                             where r.name = 'calm-1') limit 1",
    ),
    (
        "every value once",
        "delete from chunk where series_id in (select s.id from series s join run r on r.id = s.run_id
                                               where r.name = 'calm-2')",
    ),
    ("rollups are what values come to", "update chunk set max = 5e9 where ctid = (select ctid from chunk limit 1)"),
    ("rollups are what values come to", "update summary set count = count + 1"),
    (
        "rollups are what values come to",
        "insert into conflict (series_id, step, kept, refused, attempt, n) select id, 1, 1, 2, 1, 0 from series limit 1",
    ),
    (
        "fence",
        "insert into log_line (run_id, attempt, stream, position, text)
         select run_id, number, 'stdout', 1000000, 'too late' from attempt limit 1",
    ),
    ("blobs are whole", "update blob set bytes = bytes + 1"),
    ("checkpoints are whole", "update run set checkpoint = null where name = 'calm-2'"),
    // Two trainings of one spec and seed: other weights; the same weights by other losses.
    (
        "a resumed training is the undisturbed one",
        "update run set kind = 'finetune' where name in ('calm-2', 'calm-3')",
    ),
    (
        "a resumed training is the undisturbed one",
        "update run set kind = 'finetune', checkpoint = (select checkpoint from run where name = 'calm-2')
         where name in ('calm-2', 'calm-3');
         update series set name = 'loss' where name = 'x'",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_every_violation_that_is_planted() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("chaos").tempdir()?;
    let (cluster, book) = calm(&folder).await?;
    let cluster = Arc::new(cluster);
    let evidence = evidence(&cluster, &book);
    let mut session = cluster.database().await?;
    assert_eq!(check(&mut session, &evidence).await?, [], "all is well");
    for (rule, sql) in PLANTED {
        let found = broken_by(&mut session, &evidence, sql).await?;
        assert!(
            found.iter().any(|found| found == rule),
            "{rule}: {found:?} is all that is found after {sql}"
        );
    }
    found_among_leases(&mut session, &evidence).await?;
    found_in_files(&mut session, &evidence).await?;
    found_among_processes(&cluster, &folder).await?;
    let mut twice = evidence.clone();
    twice.submitted.get_mut("calm-2").context("calm-2")?.runs.insert("another".to_owned());
    let rules = check(&mut session, &twice).await?;
    assert!(rules.iter().any(|found| found.rule == "a submission is one run"), "{rules:?}");
    // A run that waits for what never comes.
    let program = Program { seed: 4, steps: 1 };
    let mut spec = program.spec("calm-4", 0, "default");
    spec["resources"]["labels"] = json!(["nowhere"]);
    book.submit(&cluster, &mut Random::new(4), "calm-4", Some(program), &spec).await?;
    assert!(cluster.all_ended(3).await.is_err(), "a run that hangs is noticed");
    cluster.stop().await
}

/// Two processes that work in the folder of one attempt.
async fn found_among_processes(cluster: &Arc<Cluster>, folder: &tempfile::TempDir) -> Result<()> {
    // A command line like a training process's: a program, `attempt`, the folder.
    fs::write(folder.path().join("attempt"), "while :; do sleep 1; done")?;
    let attempt = cluster.agents[0].state.join("attempts/planted-1");
    let start = |log: &str| {
        let mut process = Command::new("sh");
        process.arg("attempt").arg(&attempt).current_dir(folder.path());
        Process::start(&mut process, &folder.path().join(log))
    };
    let seen = Arc::new(Seen::default());
    let watching = tokio::spawn(watch(cluster.clone(), seen.clone()));
    let found = || seen.violations.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let _one = start("one.log")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(found(), [], "one process is no violation");
    let _two = start("two.log")?;
    let started = Instant::now();
    while found().is_empty() {
        ensure!(started.elapsed() < Duration::from_secs(20), "two processes in one attempt go unseen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found()[0].rule, "one process an attempt");
    seen.over.store(true, Ordering::Relaxed);
    watching.await?
}

/// Leases, devices and the order of dispatch: what the database notes while it happens.
async fn found_among_leases(session: &mut PgConnection, evidence: &Evidence) -> Result<()> {
    let lease = "insert into lease (id, run_id, attempt_id, attempt, worker_id, epoch, rank, expires_at)
                 select gen_random_uuid(), run_id, id, number, worker_id, epoch, number, now() from attempt";
    let planted = [
        ("one attempt at a time", format!("{lease} where run_id in (select run_id from attempt where number = 2)")),
        ("epochs grow", format!("update attempt set epoch = 1; update attempt set number = number + 5; {lease}")),
        (
            "one lease a device",
            format!(
                "{lease} where number = 1;
                 update device set lease_id = (select id from lease order by id limit 1);
                 update device set lease_id = (select id from lease order by id desc limit 1)"
            ),
        ),
        (
            "priority",
            "insert into run (id, experiment_id, name, kind, method, seed, spec, variant, state, phase, priority,
                              max_attempts, project_id, ready_at)
             select gen_random_uuid(), experiment_id, 'passed over', kind, method, seed, spec, variant, 'queued', phase, 9,
                    1, project_id, now() - interval '1 hour' from run where name = 'calm-2';
             update recorder.state set at = at - interval '1 hour';
             update run set state = 'running' where name = 'calm-3'"
                .to_owned(),
        ),
    ];
    for (rule, sql) in planted {
        let found = broken_by(session, evidence, Box::leak(sql.into_boxed_str())).await?;
        assert!(found.iter().any(|found| found == rule), "{rule}: {found:?}");
    }
    Ok(())
}

/// Blobs and journals.
async fn found_in_files(session: &mut PgConnection, evidence: &Evidence) -> Result<()> {
    let blob: String = sqlx::query_scalar("select checkpoint from run where name = 'calm-2'")
        .fetch_one(&mut *session)
        .await?;
    let blob = evidence.blobs.join(&blob[..2]).join(&blob);
    let journal = fs::read_dir(&evidence.journals[0])?.next().context("a journal")??.path();
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let longer = |bytes: &[u8]| [bytes, bytes].concat();
    type Change<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let changes: [(&str, &PathBuf, Change); 4] = [
        ("blobs are whole", &blob, &half),
        ("blobs are whole", &blob, &longer),
        ("what a journal says", &journal, &half),
        ("what a journal says", &journal, &longer),
    ];
    for (rule, path, change) in changes {
        let sound = fs::read(path)?;
        fs::write(path, change(&sound))?;
        let found = check(session, evidence).await?;
        fs::write(path, sound)?;
        assert!(found.iter().any(|found| found.rule == rule), "{rule}: {found:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_the_work_and_any_of_them_may_die() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("chaos").tempdir()?;
    let cluster = Cluster::start(folder.path(), 3, &[Kind::Two]).await?;
    let (book, mut random) = (Book::default(), Random::new(2));
    // Submitted at each server; the one agent, whose requests go to all of them, picks each up.
    let mut session = cluster.database().await?;
    for server in 0..3 {
        let program = Program { seed: server as u64, steps: 3 };
        let key = format!("at-{server}");
        ensure!(
            book.try_submit(&cluster, server, &key, Some(program), &program.spec(&key, 0, "default")).await?,
            "server {server} does not take it"
        );
        let run = book.entries()[&key].runs.first().context("its run")?.clone();
        // One look of the other servers' schedulers, and one of the held request, are at most a second away each.
        picked_up(&cluster, &run, Duration::from_secs(4)).await?;
    }
    // A longer run; each server in turn is killed and comes back elsewhere, never two at once.
    let program = Program { seed: 9, steps: 100 };
    book.submit(&cluster, &mut random, "long", Some(program), &program.spec("long", 0, "default")).await?;
    for server in &cluster.servers {
        let mut node = server.lock().await;
        node.kill();
        tokio::time::sleep(Duration::from_secs(1)).await;
        node.start().await?;
    }
    cluster.all_ended(60).await?;
    let attempts: Vec<(String, i64)> = sqlx::query_as(
        "select r.state, count(a.id) from run r join attempt a on a.run_id = r.id where r.name = 'long' group by 1",
    )
    .fetch_all(&mut session)
    .await?;
    assert_eq!(
        attempts,
        [("succeeded".to_owned(), 1)],
        "its lease of {LEASE_SECONDS} s outlived every server"
    );
    assert_eq!(check(&mut session, &evidence(&cluster, &book)).await?, []);
    let workers = cluster.request(1, "user", Method::GET, "/workers", None, &json!(null)).await?.1;
    assert_eq!(workers.as_array().map(Vec::len), Some(1), "every server knows the one worker");
    cluster.stop().await
}

/// Waits until a run has been picked up; says how long that took.
async fn picked_up(cluster: &Cluster, run: &str, within: Duration) -> Result<Duration> {
    let submitted = Instant::now();
    let mut session = cluster.database().await?;
    let running = "select count(*) from attempt where run_id = $1::uuid and started_at is not null";
    while sqlx::query_scalar::<_, i64>(running).bind(run).fetch_one(&mut session).await? == 0 {
        ensure!(submitted.elapsed() < within, "nobody has picked up the run {run} within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(submitted.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_knows_several_servers_goes_on_when_one_dies() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("chaos").tempdir()?;
    let cluster = Cluster::start(folder.path(), 2, &[]).await?;
    let (book, mut random) = (Book::default(), Random::new(3));
    let mut agent = Command::new(binary("causeway-trainer"));
    agent.args(["work", "--allow-commands", "--server", &cluster.url(0), "--server", &cluster.url(1)]);
    agent.arg("--token-file").arg(cluster.token_file("worker"));
    agent.arg("--state").arg(folder.path().join("w")).arg("--data").arg(folder.path().join("none"));
    let mut agent = Process::start(&mut agent, &folder.path().join("agent.log"))?;
    let program = Program { seed: 3, steps: 60 };
    book.submit(&cluster, &mut random, "long", Some(program), &program.spec("long", 0, "default")).await?;
    let run = book.entries()["long"].runs.first().context("its run")?.clone();
    picked_up(&cluster, &run, Duration::from_secs(30)).await?;
    cluster.servers[0].lock().await.kill();
    cluster.all_ended(60).await?;
    let attempts: i64 =
        sqlx::query_scalar("select count(*) from attempt").fetch_one(&mut cluster.database().await?).await?;
    assert_eq!(attempts, 1, "the lease was renewed at the other server");
    let log = fs::read_to_string(folder.path().join("agent.log"))?;
    assert_eq!(check(&mut cluster.database().await?, &evidence(&cluster, &book)).await?, [], "{log}");
    agent.terminate()?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_with_the_scheduler_s_lock_holds_the_others_up_for_seconds() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("chaos").tempdir()?;
    let cluster = Cluster::start(folder.path(), 2, &[Kind::Two]).await?;
    let (book, mut random) = (Book::default(), Random::new(4));
    ensure!(freeze_leader(&cluster, Duration::from_secs(35)).await?, "no server was caught");
    let program = Program { seed: 4, steps: 3 };
    book.submit(&cluster, &mut random, "next", Some(program), &program.spec("next", 0, "default")).await?;
    let run = book.entries()["next"].runs.first().context("its run")?.clone();
    // While it is still stopped: Postgres ends a transaction that is left alone for ten seconds.
    picked_up(&cluster, &run, Duration::from_secs(30)).await?;
    cluster.repaired().await?;
    cluster.all_ended(30).await?;
    cluster.stop().await
}
