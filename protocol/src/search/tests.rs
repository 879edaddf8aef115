use super::*;
use serde_json::json;

fn document() -> Value {
    json!({
        "name": "rates", "experiment": "e",
        "spec": {
            "kind": "finetune",
            "weights": {"theta0": {"asset": "vit"}},
            "method": {"kind": "adapter"},
            "captions": {"asset": "pairs", "text_encoder": "minilm"},
            "objective": {"contrastive": {}},
            "training": {"steps": 10},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "alphas": [0, 0.5, 1], "k": [1]}
        },
        "space": {"training.learning_rate": {"choice": [1e-3, 1e-2]}, "method.rank": {"integer": [4, 6]}},
        "strategy": {"kind": "grid"},
        "objective": {"kind": "metric", "name": "loss", "direction": "minimize"}
    })
}

fn drawn(trials: u32) -> Value {
    let mut document = document();
    document["space"] = json!({
        "training.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "training.weight_decay": {"uniform": [0.0, 0.2]},
        "method.rank": {"integer": [4, 64]}
    });
    document["strategy"] = json!({"kind": "random", "trials": trials});
    document
}

/// Fields that a document's problems name.
fn fields(document: Value) -> Vec<String> {
    parse_search(document).unwrap_err().into_iter().map(|problem| problem.field).collect()
}

#[test]
fn a_grid_has_every_combination_and_the_last_path_changes_fastest() {
    let points = parse_search(document()).unwrap().points();
    let shown: Vec<String> = points.iter().map(point_words).collect();
    assert_eq!(
        shown,
        [
            "method.rank 4, training.learning_rate 0.001",
            "method.rank 4, training.learning_rate 0.01",
            "method.rank 5, training.learning_rate 0.001",
            "method.rank 5, training.learning_rate 0.01",
            "method.rank 6, training.learning_rate 0.001",
            "method.rank 6, training.learning_rate 0.01",
        ]
    );
}

#[test]
fn a_trial_is_its_point_in_the_spec_under_each_seed() {
    let search = parse_search(document()).unwrap();
    let spec = search.run_spec(2, &search.points()[1], 0, 7).unwrap();
    assert_eq!((spec.experiment.as_str(), spec.name.as_str()), ("e", "rates · trial 2 · seed 7"));
    assert_eq!((spec.seed, spec.training.unwrap().learning_rate), (7, 1e-2));
}

#[test]
fn draws_are_equal_under_a_seed_and_a_longer_search_begins_with_a_shorter_one() {
    let points = |trials: u32, seed: u64| {
        let mut document = drawn(trials);
        document["seed"] = json!(seed);
        parse_search(document).unwrap().points()
    };
    assert_eq!(points(20, 3), points(20, 3));
    assert_eq!(points(20, 3)[..5], points(5, 3)[..]);
    assert_ne!(points(5, 3), points(5, 4));
    for point in points(200, 3) {
        let rate = point["training.learning_rate"].as_f64().unwrap();
        let decay = point["training.weight_decay"].as_f64().unwrap();
        let rank = point["method.rank"].as_i64().unwrap();
        assert!((1e-4..=1e-2).contains(&rate) && (0.0..=0.2).contains(&decay) && (4..=64).contains(&rank));
        assert!(rate.to_string().trim_start_matches(['0', '.']).len() <= 6, "six digits: {rate}");
    }
    // Half of the decades is half of the draws, give or take five σ of 200.
    let low = points(200, 3).iter().filter(|p| p["training.learning_rate"].as_f64().unwrap() < 1e-3).count();
    assert!((65..=135).contains(&low), "{low}");
}

#[test]
fn what_one_path_draws_does_not_depend_on_the_others() {
    let whole = parse_search(drawn(5)).unwrap().points();
    let mut alone = drawn(5);
    alone["space"].as_object_mut().unwrap().remove("method.rank");
    let alone = parse_search(alone).unwrap().points();
    for (whole, alone) in whole.iter().zip(&alone) {
        assert_eq!(whole["training.learning_rate"], alone["training.learning_rate"]);
    }
}

#[test]
fn drawn_trials_do_not_repeat_and_there_are_no_more_than_points() {
    let mut all = document();
    all["strategy"] = json!({"kind": "random", "trials": 6});
    let mut shown: Vec<String> =
        parse_search(all.clone()).unwrap().points().iter().map(point_words).collect();
    shown.sort();
    shown.dedup();
    assert_eq!(shown.len(), 6);
    all["strategy"]["trials"] = json!(7);
    assert_eq!(fields(all), ["strategy.trials"]);
}

#[test]
fn rungs_multiply_by_eta_up_to_the_last_and_may_be_given() {
    let rungs = |strategy: Value| {
        let mut document = drawn(8);
        document["strategy"] = strategy;
        parse_search(document).map(|search| search.strategy.rungs().to_vec())
    };
    let asha = |min: u64, max: u64, eta: u32| {
        rungs(json!({"kind": "asha", "trials": 8, "eta": eta, "min_steps": min, "max_steps": max}))
    };
    assert_eq!(asha(5, 20, 2).unwrap(), [5, 10, 20]);
    assert_eq!(asha(5, 30, 3).unwrap(), [5, 15, 30]);
    assert_eq!(rungs(json!({"kind": "asha", "trials": 8, "rungs": [2, 7, 9]})).unwrap(), [2, 7, 9]);
    assert!(asha(20, 20, 2).is_err() && asha(5, 20, 1).is_err());
    assert!(rungs(json!({"kind": "asha", "trials": 8, "min_steps": 4})).is_err());
    assert!(rungs(json!({"kind": "asha", "trials": 8, "rungs": [4, 4]})).is_err());
}

#[test]
fn a_metric_is_judged_on_the_way_and_a_curve_at_the_end_of_a_run_of_its_own() {
    let mut document = drawn(4);
    document["strategy"] = json!({"kind": "asha", "trials": 4, "eta": 2, "min_steps": 5, "max_steps": 20});
    let search = parse_search(document.clone()).unwrap();
    let steps = |search: &Search, stage| {
        search.run_spec(1, &search.points()[0], stage, 0).unwrap().training.unwrap().steps
    };
    assert!(!search.is_promoted());
    assert_eq!(steps(&search, 0), 20, "one run passes every rung");
    document["objective"] = json!({"kind": "accuracy", "alpha": 0.5});
    let search = parse_search(document).unwrap();
    assert!(search.is_promoted());
    assert_eq!((steps(&search, 0), steps(&search, 1), steps(&search, 2)), (5, 10, 20));
    assert_eq!(
        search.objective,
        SearchObjective::Accuracy {
            alpha: Alpha::from_f64(0.5).unwrap(),
            role: Some(Role::Ood),
            direction: Direction::Maximize
        },
        "the role that is to be gained is filled in"
    );
}

#[test]
fn a_search_with_its_defaults_filled_in_is_itself() {
    let mut document = drawn(4);
    document["strategy"] = json!({"kind": "asha", "trials": 4, "min_steps": 2, "max_steps": 9});
    document["objective"] = json!({"kind": "area"});
    let search = parse_search(document).unwrap();
    assert_eq!((search.seeds.as_slice(), search.parallel, search.strategy.eta()), ([0].as_slice(), 4, 3));
    assert_eq!(parse_search(serde_json::to_value(&search).unwrap()).unwrap(), search);
}

#[test]
fn nested_tables_are_paths_too() {
    let mut nested = document();
    nested["space"] = json!({
        "training": {"learning_rate": {"choice": [1e-3, 1e-2]}}, "method": {"rank": {"integer": [4, 6]}}
    });
    assert_eq!(parse_search(nested).unwrap(), parse_search(document()).unwrap());
}

#[test]
fn a_choice_may_be_a_whole_table() {
    let mut methods = document();
    methods["space"] = json!({
        "method": {"choice": [{"kind": "film"}, {"kind": "adapter", "rank": 16}]},
        "training.learning_rate": {"choice": [1e-3]}
    });
    let search = parse_search(methods.clone()).unwrap();
    let trained = |at: usize| search.run_spec(1, &search.points()[at], 0, 0).unwrap().trained();
    assert_eq!((trained(0), trained(1)), ("film", "adapter"));
    assert_eq!(point_words(&search.points()[1]), "method adapter with rank 16, training.learning_rate 0.001");
    methods["space"]["method.rank"] = json!({"choice": [1]});
    assert_eq!(fields(methods), ["space.method"], "one would overwrite the other");
}

#[test]
fn a_trial_that_cannot_be_a_spec_refuses_the_search_with_the_reason() {
    let mut bad = document();
    bad["space"]["training.learning_rate"] = json!({"choice": [1e-3, -1.0]});
    let problems = parse_search(bad).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "`spec.training.learning_rate` must be a positive number, is -1 \
         (trial 2: method.rank 4, training.learning_rate -1.0)"
    );
    let mut unknown = document();
    unknown["space"]["training.learning_rat"] = json!({"choice": [1]});
    assert_eq!(fields(unknown), ["spec.training.learning_rat"]);
    let mut through = document();
    through["space"]["kind.of"] = json!({"choice": [1]});
    assert_eq!(fields(through), ["spec.kind"], "no table");
}

#[test]
fn every_broken_rule_of_a_search_is_reported_at_once() {
    let mut bad = document();
    bad["name"] = json!("");
    bad["spec"]["seed"] = json!(1);
    bad["space"] = json!({
        "seed": {"choice": [1, 2]},
        "training.learning_rate": {"log_uniform": [0.0, 1.0]},
        "training.flip": {"choice": [true, true]}
    });
    bad["seeds"] = json!([1, 1]);
    bad["parallel"] = json!(1);
    assert_eq!(
        fields(bad),
        [
            "name",
            "spec.seed",
            "space.seed",
            "space.training.flip",
            "space.training.learning_rate",
            "space.training.learning_rate",
            "seeds",
            "parallel"
        ]
    );
    assert_eq!(fields(json!({"name": "x", "sapce": {}})), ["sapce"]);
}

#[test]
fn trials_that_would_not_compare_are_refused() {
    let mut k = document();
    k["objective"] = json!({"kind": "accuracy", "alpha": 0.5});
    k["space"]["evaluation.temperature"] = json!({"choice": [0.07, 0.1]});
    assert_eq!(fields(k), ["space.evaluation.temperature"]);
    let mut backbone = document();
    backbone["objective"] = json!({"kind": "best_alpha"});
    backbone["space"]["weights.theta0.asset"] = json!({"choice": ["a", "b"]});
    assert_eq!(fields(backbone.clone()), ["space.weights.theta0.asset"]);
    backbone["objective"] = json!({"kind": "accuracy", "alpha": 1});
    assert!(parse_search(backbone).is_ok());
    let mut role = document();
    role["objective"] = json!({"kind": "accuracy", "alpha": 0.3, "role": "id"});
    assert_eq!(fields(role), ["objective.role", "objective.alpha"]);
    let mut steps = drawn(4);
    steps["strategy"] = json!({"kind": "asha", "trials": 4, "min_steps": 2, "max_steps": 9});
    steps["space"]["training.steps"] = json!({"choice": [5]});
    assert_eq!(fields(steps), ["space.training.steps"]);
}

#[test]
fn a_grid_takes_no_stretch_of_real_numbers_and_no_more_than_a_thousand_trials() {
    let mut bad = drawn(1);
    bad["strategy"] = json!({"kind": "grid"});
    assert_eq!(fields(bad), ["space.training.learning_rate", "space.training.weight_decay"]);
    let mut large = document();
    large["space"]["method.rank"] = json!({"integer": [1, 501]});
    assert_eq!(fields(large), ["space"]);
}

#[test]
fn the_search_files_that_ship_are_searches() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let searches = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("search-"));
    let mut found = 0;
    for file in searches {
        let document: Value = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let search = parse_search(document).unwrap_or_else(|problems| panic!("{file:?}: {problems:?}"));
        assert!(search.points().len() > 1);
        found += 1;
    }
    assert!(found > 0);
}
