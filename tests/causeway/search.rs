//! Searches: what is decided, from what, and that it is decided once whoever dies in between.

mod lab;
mod served;

use self::lab::Lab;
use anyhow::Result;
use causeway_protocol::{Direction, Hits, selection_half};
use causeway_server::search::{self, Change, Extension, asha::replay};
use causeway_tests::spec;
use serde_json::{Value, json};

/// A search judged by a metric on the way: rungs at 5 and 10 steps, one in two goes on.
fn by_loss(trials: u32) -> Value {
    let mut base = spec();
    let fields = base.as_object_mut().unwrap();
    fields.remove("experiment");
    fields["training"].as_object_mut().unwrap().remove("learning_rate");
    json!({
        "name": "rates", "experiment": "an experiment", "spec": base, "parallel": 4,
        "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "strategy": {"kind": "asha", "trials": trials, "eta": 2, "rungs": [5, 10]},
        "objective": {"kind": "metric", "name": "loss", "direction": "minimize"}
    })
}

/// A search whose rungs, of 2 and 6 steps, are runs of their own; one in three goes on.
fn by_curve(objective: Value) -> Value {
    let mut document = by_loss(3);
    document["strategy"] = json!({"kind": "asha", "trials": 3, "eta": 3, "rungs": [2, 6]});
    document["objective"] = objective;
    document
}

#[tokio::test]
async fn trials_are_stopped_by_what_came_before_and_the_history_decides_the_same_again() -> Result<()> {
    let lab = Lab::new().await?;
    let id = lab.submit(&by_loss(4)).await?;
    assert!(lab.runs(id).await?.is_empty(), "submitting makes no run; the first step does");
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    assert_eq!(
        runs.iter().map(|run| (run.trial, run.rung, run.seed)).collect::<Vec<_>>(),
        [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)]
    );
    assert!(!lab.step(id).await?, "nothing new, nothing decided");
    lab.log(runs[0].id, &[(1, 9.0), (4, 5.0)]).await?;
    assert!(!lab.step(id).await?, "not at the rung yet");
    lab.log(runs[0].id, &[(5, 3.0)]).await?;
    lab.step(id).await?;
    lab.log(runs[1].id, &[(5, 4.0)]).await?;
    lab.step(id).await?;
    lab.log(runs[2].id, &[(5, 2.0)]).await?;
    lab.step(id).await?;
    // What comes after the value that reached the rung does not count there.
    lab.log(runs[3].id, &[(4, 9.0), (6, 2.5), (7, 0.1)]).await?;
    lab.step(id).await?;
    let told = "rung 1 of 2 (5 steps): loss (last value)";
    assert_eq!(
        lab.decided(id).await?[4..],
        [
            format!("go_on 1: {told} 3.000 is place 1 of 1, and the best one goes on"),
            format!("stop 2: {told} 4.000 is place 2 of 2, and the best one goes on"),
            format!("go_on 3: {told} 2.000 is place 1 of 3, and the best one goes on"),
            format!("go_on 4: {told} 2.500 is place 2 of 4, and the best 2 go on"),
        ]
    );
    let stopping: (bool, String) = lab
        .row("select cancel_requested, coalesce(cancel_reason, '') from run where id = $1", runs[1].id)
        .await?;
    assert!(stopping.0);
    assert_eq!(
        stopping.1,
        "stopped by the search rates at rung 1 of 2 (5 steps): loss (last value) 4.000 is place 2 of 2, and the best one \
         goes on"
    );
    lab.end(runs[1].id, "cancelled").await?;
    for (at, value) in [(0, 1.5), (2, 1.0), (3, 1.25)] {
        lab.log(runs[at].id, &[(10, value)]).await?;
        assert!(!lab.step(id).await?, "the last rung is the run's end");
        lab.end(runs[at].id, "succeeded").await?;
        lab.step(id).await?;
    }
    let detail = search::get_search(&lab.pool, id).await?;
    assert_eq!((detail.summary.state.as_str(), detail.best), ("succeeded", Some(3)));
    let order: Vec<(i32, Option<f64>)> = detail.trial_list.iter().map(|t| (t.trial, t.value)).collect();
    assert_eq!(order, [(3, Some(1.0)), (4, Some(1.25)), (1, Some(1.5)), (2, Some(4.0))]);
    let history = search::recorded(&mut *lab.pool.acquire().await?, id).await?;
    let rungs = replay(&history, 2, 2, Direction::Minimize).map_err(anyhow::Error::msg)?;
    assert_eq!((rungs.reached[0].len(), rungs.reached[1].len()), (4, 3));
    Ok(())
}

#[tokio::test]
async fn a_trial_is_worth_the_mean_of_its_seeds_and_seeds_are_no_trials() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_loss(2);
    document["seeds"] = json!([7, 8]);
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    assert_eq!(
        runs.iter().map(|run| (run.trial, run.seed)).collect::<Vec<_>>(),
        [(1, 7), (1, 8), (2, 7), (2, 8)]
    );
    lab.log(runs[0].id, &[(5, 0.1)]).await?;
    assert!(!lab.step(id).await?, "one seed says nothing yet");
    lab.log(runs[2].id, &[(5, 1.0)]).await?;
    lab.log(runs[3].id, &[(5, 2.0)]).await?;
    lab.step(id).await?;
    lab.log(runs[1].id, &[(5, 3.9)]).await?;
    lab.step(id).await?;
    // 0.1 is the lowest loss of all, but its trial's mean is 2, and the other's is 1.5.
    assert_eq!(
        lab.decided(id).await?[2..],
        [
            "go_on 2: rung 1 of 2 (5 steps): loss (last value) 1.500 is place 1 of 1, and the best one goes on",
            "stop 1: rung 1 of 2 (5 steps): loss (last value) 2.000 is place 2 of 2, and the best one goes on",
        ]
    );
    let stopped: Vec<bool> = lab.column("select cancel_requested from run order by id").await?;
    assert_eq!(stopped, [true, true, false, false], "both seeds of the stopped trial");
    Ok(())
}

#[tokio::test]
async fn a_trial_fails_with_a_seed_and_what_is_no_number_is_stopped() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_loss(3);
    (document["seeds"], document["parallel"]) = (json!([0, 1]), json!(6));
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    sqlx::query("update run set state = 'failed', reason = 'out of memory' where id = $1")
        .bind(runs[1].id)
        .execute(&lab.pool)
        .await?;
    lab.log(runs[2].id, &[(5, f64::NAN)]).await?;
    lab.log(runs[3].id, &[(5, 1.0)]).await?;
    lab.step(id).await?;
    lab.log(runs[4].id, &[(5, 50.0)]).await?;
    lab.log(runs[5].id, &[(5, 50.0)]).await?;
    lab.step(id).await?;
    assert_eq!(
        lab.decided(id).await?[3..],
        [
            "fail 1: seed 1 failed: out of memory",
            "stop 2: rung 1 of 2 (5 steps): loss (last value) is no number, which never goes on",
            "go_on 3: rung 1 of 2 (5 steps): loss (last value) 50.00 is place 1 of 2, and the best one goes on",
        ]
    );
    let (state, reason): (String, String) =
        lab.row("select state, reason from run where id = $1", runs[0].id).await?;
    assert_eq!(
        (state.as_str(), reason.as_str()),
        ("cancelled", "trial 1 of the search rates has failed: seed 1 failed: out of memory"),
        "it was waiting, and nothing would come of it"
    );
    for run in &runs[2..4] {
        lab.end(run.id, "cancelled").await?;
    }
    for run in &runs[4..] {
        lab.end(run.id, "lost").await?;
    }
    lab.step(id).await?;
    let detail = search::get_search(&lab.pool, id).await?;
    assert_eq!(
        (detail.summary.state.as_str(), detail.summary.reason.as_str()),
        ("failed", "none of the 3 trials reached the end")
    );
    Ok(())
}

#[tokio::test]
async fn a_metric_that_no_run_logs_fails_the_trial_and_says_so() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_loss(1);
    document["strategy"] = json!({"kind": "random", "trials": 1});
    document["objective"]["name"] = json!("los");
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    lab.log(runs[0].id, &[(5, 1.0)]).await?;
    lab.end(runs[0].id, "succeeded").await?;
    lab.step(id).await?;
    assert_eq!(lab.decided(id).await?[1], "fail 1: its runs logged no such metric");
    Ok(())
}

#[tokio::test]
async fn a_step_that_is_cut_off_at_any_statement_is_taken_again_whole() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_loss(4);
    (document["seeds"], document["parallel"]) = (json!([0, 1]), json!(6));
    let id = lab.submit(&document).await?;
    let mut cuts = lab.step_cut_off_everywhere(id).await?;
    let runs = lab.runs(id).await?;
    assert_eq!(runs.len(), 6, "three trials of two seeds");
    for (at, value) in [(0, 3.0), (1, 3.0), (2, 4.0), (3, 4.0), (4, 1.0), (5, 1.0)] {
        lab.log(runs[at].id, &[(5, value)]).await?;
    }
    cuts += lab.step_cut_off_everywhere(id).await?;
    assert!(cuts > 20, "only {cuts} places were cut");
    let decided: Vec<String> = lab
        .decided(id)
        .await?
        .iter()
        .map(|text| text.split(':').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(decided, ["submit 1", "submit 2", "submit 3", "go_on 1", "stop 2", "go_on 3"]);
    assert_eq!(lab.runs(id).await?.len(), 6, "the stopped runs have not ended: no room");
    for run in &runs[2..4] {
        lab.end(run.id, "cancelled").await?;
    }
    lab.step_cut_off_everywhere(id).await?;
    assert_eq!(lab.runs(id).await?.len(), 8);
    let history = search::recorded(&mut *lab.pool.acquire().await?, id).await?;
    replay(&history, 2, 2, Direction::Minimize).map_err(anyhow::Error::msg)?;
    Ok(())
}

#[tokio::test]
async fn several_servers_may_step_one_search() -> Result<()> {
    let lab = Lab::new().await?;
    let id = lab.submit(&by_loss(8)).await?;
    let others = [lab.server.database().await?, lab.server.database().await?];
    for value in [3.0, 2.0, 1.0] {
        let (a, b, c) =
            tokio::join!(lab.step(id), search::step(&others[0], id), search::step(&others[1], id));
        for stepped in [a, b.map_err(Into::into), c.map_err(Into::into)] {
            stepped?;
        }
        for run in lab.runs(id).await? {
            if run.state == "queued" {
                lab.log(run.id, &[(5, value)]).await?;
            } else {
                lab.end(run.id, if run.stopping { "cancelled" } else { "succeeded" }).await?;
            }
        }
    }
    let runs = lab.runs(id).await?;
    let mut trials: Vec<i32> = runs.iter().map(|run| run.trial).collect();
    trials.dedup();
    assert_eq!(trials.len(), runs.len(), "no trial was submitted twice: {trials:?}");
    let history = search::recorded(&mut *lab.pool.acquire().await?, id).await?;
    replay(&history, 2, 2, Direction::Minimize).map_err(anyhow::Error::msg)?;
    Ok(())
}

#[tokio::test]
async fn the_best_are_promoted_to_runs_of_their_own_and_more_steps_go_on_from_there() -> Result<()> {
    let lab = Lab::new().await?;
    let id = lab.submit(&by_curve(json!({"kind": "accuracy", "alpha": 1}))).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    assert_eq!(lab.steps(runs[0].id).await?, 2);
    for (at, right) in [(0, 50), (1, 70)] {
        lab.measure(runs[at].id, [40, 45, right]).await?;
    }
    lab.step(id).await?;
    assert_eq!(lab.runs(id).await?.len(), 3, "two are no three: one in three goes on");
    lab.measure(runs[2].id, [40, 45, 60]).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    assert_eq!((runs.len(), runs[2].trial, runs[2].rung), (4, 2, 1));
    assert_eq!(lab.steps(runs[2].id).await?, 6, "trained anew");
    lab.measure(runs[2].id, [40, 45, 80]).await?;
    lab.step(id).await?;
    let detail = search::get_search(&lab.pool, id).await?;
    assert_eq!((detail.summary.state.as_str(), detail.best), ("succeeded", Some(2)));
    assert_eq!(detail.trial_list[0].value, Some(80.0));

    let extension = Extension { trials: Some(4), max_steps: Some(12) };
    search::change(&lab.pool, id, Change::Extend(extension)).await?;
    lab.step(id).await?;
    let last = |runs: Vec<lab::Run>| runs.into_iter().max_by_key(|run| run.id).unwrap();
    let fourth = last(lab.runs(id).await?);
    assert_eq!(
        (fourth.trial, fourth.rung),
        (4, 0),
        "what is at the last rung of before waits for what may come"
    );
    for (right, rung, steps) in [(90, 1, 6), (85, 2, 12)] {
        lab.measure(last(lab.runs(id).await?).id, [40, 45, right]).await?;
        lab.step(id).await?;
        let promoted = last(lab.runs(id).await?);
        assert_eq!((promoted.trial, promoted.rung, lab.steps(promoted.id).await?), (4, rung, steps));
    }
    lab.measure(last(lab.runs(id).await?).id, [40, 45, 88]).await?;
    lab.step(id).await?;
    let detail = search::get_search(&lab.pool, id).await?;
    assert_eq!((detail.summary.state.as_str(), detail.best), ("succeeded", Some(4)));
    let history = search::recorded(&mut *lab.pool.acquire().await?, id).await?;
    replay(&history, 3, 3, Direction::Maximize).map_err(anyhow::Error::msg)?;
    Ok(())
}

#[tokio::test]
async fn what_the_best_alpha_brings_is_counted_on_the_half_it_was_not_chosen_on() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_curve(json!({"kind": "best_alpha"}));
    document["strategy"] = json!({"kind": "random", "trials": 1});
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    let runs = lab.runs(id).await?;
    // Of 100 images: α = 0.5 has all of the half that reports right, none of the half that chooses; α = 1 has ten of the
    // half that chooses, and five of the other.
    let half = selection_half("d0", 100);
    let some = |chosen: usize, other: usize| {
        let mut left = [other, chosen];
        let flags = half.iter().map(|chooses| {
            let side = &mut left[usize::from(*chooses)];
            let right = *side > 0;
            *side = side.saturating_sub(1);
            right
        });
        Hits::from_flags(&flags.collect::<Vec<_>>())
    };
    lab.measure_hits(runs[0].id, [some(0, 0), some(0, 50), some(10, 5)]).await?;
    lab.step(id).await?;
    let value: f64 = lab.row::<(f64,)>("select value from search_trial where search_id = $1", id).await?.0;
    assert!((value - 10.0).abs() < 1e-9, "5 of 50: {value}");
    let note: String = lab
        .row::<(String,)>(
            "select made_from ->> 'note' from search_decision where search_id = $1 and n = 2",
            id,
        )
        .await?
        .0;
    assert_eq!(note, "best α 1, chosen on the one half of the images, counted on the other");
    Ok(())
}

#[tokio::test]
async fn the_area_is_that_under_the_whole_curve() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_curve(json!({"kind": "area"}));
    document["strategy"] = json!({"kind": "random", "trials": 1});
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    lab.measure(lab.runs(id).await?[0].id, [50, 60, 50]).await?;
    lab.step(id).await?;
    let value: f64 = lab.row::<(f64,)>("select value from search_trial where search_id = $1", id).await?.0;
    assert!((value - 5.0).abs() < 1e-9, "a triangle of 10 points over 1: {value}");
    Ok(())
}

#[tokio::test]
async fn a_paused_search_submits_nothing_and_a_cancelled_one_stops_everything() -> Result<()> {
    let lab = Lab::new().await?;
    let mut document = by_loss(6);
    document["parallel"] = json!(2);
    let id = lab.submit(&document).await?;
    lab.step(id).await?;
    search::change(&lab.pool, id, Change::Pause).await?;
    let runs = lab.runs(id).await?;
    lab.log(runs[0].id, &[(5, 1.0)]).await?;
    lab.log(runs[1].id, &[(5, 2.0)]).await?;
    lab.step(id).await?;
    lab.end(runs[1].id, "cancelled").await?;
    lab.step(id).await?;
    assert_eq!(lab.runs(id).await?.len(), 2, "there is room, and nothing is submitted");
    let decided = lab.decided(id).await?;
    assert!(decided[4].starts_with("stop 2"), "what runs is still judged: {decided:?}");
    search::change(&lab.pool, id, Change::Resume).await?;
    lab.step(id).await?;
    assert_eq!(lab.runs(id).await?.len(), 3);
    assert!(search::change(&lab.pool, id, Change::Resume).await.is_err());
    search::change(&lab.pool, id, Change::Extend(Extension { trials: Some(9), max_steps: None })).await?;
    assert_eq!(search::get_search(&lab.pool, id).await?.summary.trials, 9);

    search::change(&lab.pool, id, Change::Cancel).await?;
    lab.step(id).await?;
    let detail = search::get_search(&lab.pool, id).await?.summary;
    assert_eq!((detail.state.as_str(), detail.cancelled, detail.waiting), ("cancelled", 8, 0));
    let (state, reason): (String, String) =
        lab.row("select state, reason from run where id = $1", lab.runs(id).await?[2].id).await?;
    assert_eq!((state.as_str(), reason.as_str()), ("cancelled", "the search rates was cancelled"));
    for change in [Change::Pause, Change::Cancel, Change::Extend(Extension::default())] {
        assert!(search::change(&lab.pool, id, change).await.is_err(), "it has ended");
    }
    Ok(())
}
