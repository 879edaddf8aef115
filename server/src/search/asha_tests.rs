use super::*;
use Direction::{Maximize, Minimize};

/// Lets values come one after the other: for each its place, among how many, and whether it goes on.
fn come(values: &[f64], eta: usize, direction: Direction) -> Vec<(usize, usize, bool)> {
    let mut rung = Vec::new();
    let verdicts = values.iter().zip(1..).map(|(value, trial)| {
        rung.push(Reached { trial, value: *value });
        let verdict = stopping(&rung, eta, direction);
        (verdict.place, verdict.among, verdict.goes_on)
    });
    verdicts.collect()
}

fn rung(values: &[f64]) -> Vec<Reached> {
    values.iter().zip(1..).map(|(value, trial)| Reached { trial, value: *value }).collect()
}

#[test]
fn the_best_half_of_what_has_come_goes_on() {
    // Losses. Of one, one goes on; of two and three, one; of four and five, two; of six, three.
    assert_eq!(
        come(&[3.0, 4.0, 2.0, 2.5, 5.0, 2.9], 2, Minimize),
        [(1, 1, true), (2, 2, false), (1, 3, true), (2, 4, true), (5, 5, false), (3, 6, true)]
    );
    // The same numbers as accuracies.
    assert_eq!(
        come(&[3.0, 4.0, 2.0, 2.5, 5.0, 2.9], 2, Maximize),
        [(1, 1, true), (1, 2, true), (3, 3, false), (3, 4, false), (1, 5, true), (4, 6, false)]
    );
}

#[test]
fn of_equal_values_the_one_that_came_first_is_better() {
    assert_eq!(
        come(&[1.0, 1.0, 1.0, 1.0], 2, Minimize),
        [(1, 1, true), (2, 2, false), (3, 3, false), (4, 4, false)]
    );
    let (found, verdict) = promotion(&rung(&[7.0, 7.0]), &BTreeSet::new(), 2, false, Maximize).unwrap();
    assert_eq!((found.trial, verdict.place, verdict.quota), (1, 1, 1));
}

#[test]
fn what_is_no_number_takes_the_last_place_and_never_goes_on() {
    let nan = f64::NAN;
    assert_eq!(
        come(&[nan, 9.0, nan, 8.0], 3, Minimize),
        [(1, 1, false), (1, 2, true), (3, 3, false), (1, 4, true)]
    );
    assert_eq!(come(&[1.0, nan], 2, Maximize)[1], (2, 2, false));
    assert_eq!(promotion(&rung(&[nan, nan]), &BTreeSet::new(), 2, true, Maximize), None);
    assert_eq!(come(&[f64::INFINITY, f64::NEG_INFINITY], 2, Minimize)[1], (1, 2, true));
}

#[test]
fn a_late_arrival_is_judged_against_all_that_came_and_takes_nothing_back() {
    // Losses, one in four. The seventh goes on as the best of seven; the eighth is fourth where two may go on.
    let values = [5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 0.5, 3.0];
    let verdicts = come(&values, 4, Minimize);
    assert_eq!(verdicts[0], (1, 1, true), "the first goes on, and nothing stops it here later");
    assert_eq!(&verdicts[4..], [(1, 5, true), (2, 6, false), (1, 7, true), (4, 8, false)]);
}

#[test]
fn promotion_waits_for_a_full_share_unless_the_rung_is_closed() {
    let none = BTreeSet::new();
    let at = |values: &[f64], gone: &[i32], closed: bool| {
        let gone = gone.iter().copied().collect();
        promotion(&rung(values), &gone, 3, closed, Maximize).map(|(found, _)| found.trial)
    };
    assert_eq!(at(&[1.0, 2.0], &[], false), None, "two are no three");
    assert_eq!(at(&[1.0, 2.0, 0.0], &[], false), Some(2));
    assert_eq!(at(&[1.0, 2.0, 0.0], &[2], false), None, "it has gone on already");
    assert_eq!(at(&[1.0, 2.0, 0.0, 5.0, 4.0, 3.0], &[2], false), Some(4), "the best two are trials 4 and 5");
    assert_eq!(at(&[1.0, 2.0, 0.0, 5.0, 4.0, 3.0], &[2, 4], false), Some(5));
    assert_eq!(at(&[1.0, 2.0], &[], true), Some(2), "nothing more will come");
    assert_eq!(at(&[1.0, 2.0], &[2], true), None);
    assert_eq!(promotion(&[], &none, 3, true, Maximize), None);
}

fn recorded(action: &str, trial: i32, rung: i32, value: f64, place: i32, among: i32) -> Recorded {
    Recorded {
        action: action.to_owned(),
        trial: Some(trial),
        rung: Some(rung),
        value: Some(value),
        place: Some(place),
        among: Some(among),
        closed: false,
    }
}

#[test]
fn a_history_is_decided_again_from_its_values() {
    let history = [
        recorded("go_on", 1, 0, 3.0, 1, 1),
        recorded("stop", 2, 0, 4.0, 2, 2),
        recorded("go_on", 3, 0, 2.0, 1, 3),
        recorded("finish", 1, 1, 1.5, 1, 1),
    ];
    let rungs = replay(&history, 2, 2, Minimize).unwrap();
    assert_eq!((rungs.reached[0].len(), rungs.reached[1].len()), (3, 1));
    let mut forged = history.to_vec();
    forged[1].action = "go_on".to_owned();
    assert!(replay(&forged, 2, 2, Minimize).unwrap_err().starts_with("decision 1"));
    let mut forged = history.to_vec();
    forged[2].value = Some(3.5);
    assert!(replay(&forged, 2, 2, Minimize).unwrap_err().starts_with("decision 2"));
}

#[test]
fn a_promotion_is_decided_again_as_it_was_open_or_closed() {
    let mut history = vec![
        recorded("reach", 1, 0, 70.0, 1, 1),
        recorded("reach", 2, 0, 72.0, 1, 2),
        recorded("promote", 2, 1, 72.0, 1, 2),
        recorded("finish", 2, 1, 75.0, 1, 1),
    ];
    assert!(replay(&history, 2, 2, Maximize).is_ok());
    assert!(replay(&history, 2, 3, Maximize).is_err(), "two are no three while more may come");
    history[2].closed = true;
    assert!(replay(&history, 2, 3, Maximize).is_ok());
    history[2].trial = Some(1);
    assert!(replay(&history, 2, 2, Maximize).is_err(), "another was better");
}
