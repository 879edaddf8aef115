use super::*;
use crate::search::{SearchSummary, TrialRun, TrialRung};
use causeway_protocol::parse_search;
use serde_json::json;
use time::macros::datetime;

fn rung(rung: i32, value: f64, action: &str) -> TrialRung {
    let steps = Some([5, 10][usize::try_from(rung).unwrap()]);
    TrialRung { rung, steps, value: Some(value), action: action.to_owned(), place: Some(1), among: Some(1) }
}

fn trial(trial: i32, state: &str, rate: f64, rungs: Vec<TrialRung>) -> Trial {
    Trial {
        trial,
        state: state.to_owned(),
        point: json!({"training.learning_rate": rate}),
        value: rungs.last().and_then(|rung| rung.value),
        reached: rungs.len(),
        reason: if state == "stopped" { "place 2 of 2".to_owned() } else { String::new() },
        rungs,
        runs: vec![TrialRun {
            run_id: Uuid::from_u128(u128::try_from(trial).unwrap()),
            seed: 0,
            rung: 0,
            state: "succeeded".to_owned(),
        }],
    }
}

fn detail() -> SearchDetail {
    let document = parse_search(json!({
        "name": "rates", "experiment": "e",
        "spec": {
            "kind": "finetune", "weights": {"theta0": {"asset": "vit"}}, "method": {"kind": "adapter"},
            "captions": {"asset": "pairs", "text_encoder": "minilm"}, "objective": {"contrastive": {}},
            "training": {"learning_rate": 0.5},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "alphas": [0, 1], "k": [1]}
        },
        "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "strategy": {"kind": "asha", "trials": 3, "eta": 2, "rungs": [5, 10]},
        "objective": {"kind": "metric", "name": "loss", "direction": "minimize"}
    }))
    .unwrap();
    let summary = SearchSummary {
        id: Uuid::from_u128(9),
        name: "rates".to_owned(),
        experiment_id: Uuid::from_u128(8),
        experiment: "e".to_owned(),
        strategy: "asha".to_owned(),
        state: "running".to_owned(),
        reason: String::new(),
        trials: 3,
        waiting: 1,
        running: 0,
        stopped: 1,
        finished: 1,
        failed: 0,
        cancelled: 0,
        runs: 2,
        created_at: datetime!(2026-11-24 12:00 UTC),
        finished_at: None,
    };
    SearchDetail {
        summary,
        objective: document.objective.words(),
        document,
        best: Some(1),
        trial_list: vec![
            trial(1, "finished", 0.003, vec![rung(0, 2.0, "go_on"), rung(1, 1.25, "finish")]),
            trial(2, "stopped", 0.0002, vec![rung(0, 3.0, "stop")]),
            trial(3, "waiting", 0.001, Vec::new()),
        ],
    }
}

/// The text of the main part, one line for each run of text between tags.
fn text(html: &str) -> String {
    let main = &html[html.find("<main").unwrap()..html.find("</main>").unwrap()];
    let pieces = main.split('<').map(|piece| piece.split_once('>').map_or(piece, |(_, text)| text).trim());
    pieces.filter(|piece| !piece.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_says_which_trial_is_best_and_where_the_others_were_stopped() {
    let html = view(Shell::default(), &detail(), &[]).render().unwrap();
    let shown = text(&html);
    let until = shown.find("Trials by rung").unwrap();
    insta::assert_snapshot!(shown[..until].trim(), @r"
    e
    ·
    searches
    rates
    running
    Pause search
    Cancel search
    Trial 1 is best so far: loss (last value) 1.250 at 10 steps, with learning rate 0.003.
    Judged by loss (last value); less is better. At each rung a trial is stopped unless it is in the best 1/2 of what has reached that rung so far. The best of many is flattered by being chosen: judge it again with other seeds, or on data that the search did not see.
    2 of 3 trials decided
    ·
    1
    finished
    1
    stopped
    1
    waiting
    ");
    let table = &shown[shown.find("What the best trial sets").unwrap()..shown.find("Extend").unwrap()];
    insta::assert_snapshot!(table.trim(), @r"
    What the best trial sets
    Path
    Trial 1
    Base spec
    Searched
    training.learning_rate
    0.003
    0.5
    0.0001 to 0.01, by ratio
    Trials
    Place
    Trial
    State
    loss (last value)
    Steps
    learning rate
    Runs
    1
    1
    finished
    1.250
    10
    0.003
    seed 0
    2
    2
    stopped
    place 2 of 2
    3.000
    5
    0.0002
    seed 0
    3
    waiting
    –
    0.001
    seed 0
    Those that went furthest first: values at different rungs do not compare.
    Decisions
    The newest 0, each with the values it was made from
    #
    What
    Why
    Seeds
    When
    JSON
    ");
    // One chart for wide and one for narrow places; the stopped trial ends in a cross, the best has the accent.
    assert_eq!(html.matches("data-trial=\"2\" opacity").count(), 2);
    assert_eq!(html.matches("data-trial=\"1\"><path").count(), 2);
}

#[test]
fn a_decision_reads_as_a_sentence_with_its_seeds() {
    let row = decision_row(&Decision {
        n: 4,
        action: "stop".to_owned(),
        trial: Some(2),
        rung: Some(0),
        value: None,
        place: Some(2),
        among: Some(2),
        made_from: json!({"seeds": [{"seed": 0, "value": 3.0}, {"seed": 1, "value": null}]}),
        reason: "because".to_owned(),
        at: datetime!(2026-11-24 12:00 UTC),
    });
    assert_eq!((row.what.as_str(), row.seeds.as_str()), ("stopped trial 2", "seed 0: 3.000, seed 1: NaN"));
}
