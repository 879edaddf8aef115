use super::*;
use crate::figures::input::{Dataset, Halves, Variant};
use crate::figures::panel::{NARROW, panel_svg};
use causeway_protocol::Role;
use uuid::Uuid;

fn dataset(title: &str, role: Role) -> Dataset {
    Dataset {
        digest: title.to_owned(),
        title: title.to_owned(),
        short: title.to_owned(),
        role,
        licence: "MIT".to_owned(),
        source: String::new(),
        queries: 100,
        bank: 100,
        leave_one_out: true,
        classes: 10,
    }
}

/// A curve from whole percents of 100 queries at equally spaced α above 0.
fn curve(seed: i64, by_dataset: &[&[u32]]) -> SeedCurve {
    let scores = by_dataset.iter().map(|percents| {
        let count = percents.len() as i64;
        let alpha = |at: usize| Alpha::from_ten_thousandths((at as i64 + 1) * 10_000 / count).unwrap();
        percents.iter().enumerate().map(|(at, p)| (alpha(at), Score::new(100, *p))).collect()
    });
    SeedCurve {
        seed,
        run: Uuid::nil(),
        run_name: format!("film seed {seed}"),
        checkpoint: String::new(),
        wanted: by_dataset[0].len() + 1,
        scores: scores.collect(),
    }
}

fn input(seeds: Vec<SeedCurve>) -> FigureInput {
    FigureInput {
        datasets: vec![dataset("Stamps", Role::Target), dataset("Digits", Role::Ood)],
        backbone: vec![Some(Score::new(100, 70)), Some(Score::new(100, 50))],
        variants: vec![Variant {
            label: "film".to_owned(),
            short: "film".to_owned(),
            method: "film".to_owned(),
            ordinal: 0,
            seeds,
        }],
        stamps: Vec::new(),
    }
}

const OPTIONS: FigureOptions = FigureOptions { view: View::Accuracy, keep: 1.0 };

#[test]
fn two_seeds_give_their_mean_and_range_and_leave_from_the_backbone() {
    let figure = alpha_figure(
        &input(vec![curve(0, &[&[71, 60], &[52, 54]]), curve(1, &[&[73, 64], &[51, 57]])]),
        OPTIONS,
    );
    let line = &figure.panels[0].lines[0];
    assert_eq!(
        line.points.iter().map(|p| (p.alpha, p.mean, p.n)).collect::<Vec<_>>(),
        [(0.0, 70.0, 0), (0.5, 72.0, 2), (1.0, 62.0, 2)]
    );
    assert_eq!(line.points[2].delta, Some(-8.0));
    assert_eq!(line.points[2].band, Some((60.0, 64.0)));
    assert_eq!(line.points[2].wilson, None);
    assert_eq!(line.seeds.len(), 2);
    assert_eq!(figure.lines[0].seeds, "2 seeds");
    assert_eq!(figure.lines[0].progress, None);
    assert_eq!(figure.alphas, [0.0, 0.5, 1.0]);
}

#[test]
fn three_seeds_give_a_t_interval_and_no_thin_lines() {
    let seeds =
        [60, 62, 64].iter().enumerate().map(|(seed, one)| curve(seed as i64, &[&[70, *one], &[50, 50]]));
    let figure = alpha_figure(&input(seeds.collect()), OPTIONS);
    let line = &figure.panels[0].lines[0];
    assert!(line.seeds.is_empty());
    // Standard deviation 2; t with 2 degrees is 4.303.
    let (lo, hi) = line.points[2].band.unwrap();
    assert!((hi - lo - 2.0 * 4.303 * 2.0 / 3.0_f64.sqrt()).abs() < 1e-9);
    // From 0 by 0 at α 0.5 to −8 at 1: half of the second strip of width one half.
    assert!((line.area.unwrap() + 2.0).abs() < 1e-9);
}

#[test]
fn a_place_says_what_each_half_and_each_class_had_and_what_computed_it() {
    let mut input = input(vec![curve(0, &[&[71, 60], &[52, 54]]), curve(1, &[&[73, 64], &[51, 57]])]);
    let halves =
        |chosen: u32, reported: u32| Some(Halves { chosen_on: (chosen, 50), reported_on: (reported, 50) });
    input.backbone[0].as_mut().unwrap().halves = halves(35, 35);
    for (seed, (chosen, class)) in [(36, 80.0), (38, 90.0)].into_iter().enumerate() {
        let score = input.variants[0].seeds[seed].scores[0].get_mut(&Alpha::ONE).unwrap();
        (score.halves, score.by_class, score.stamp) = (halves(chosen, 30), Some(class), seed);
    }
    let place = &panel(&input, 0).lines[0].points[2];
    assert_eq!(place.halves, Some((4.0, -10.0)));
    assert_eq!((place.by_class, place.stamps.as_slice()), (Some(85.0), [0, 1].as_slice()));
    assert_eq!(panel(&input, 0).lines[0].points[1].halves, None);
}

#[test]
fn one_seed_has_wilsons_interval_and_no_thin_line() {
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 60], &[52, 54]])]), OPTIONS);
    let line = &figure.panels[0].lines[0];
    assert!(line.seeds.is_empty() && line.points[1].band.is_none() && line.points[1].wilson.is_some());
}

#[test]
fn the_best_alpha_gains_most_within_what_may_be_lost() {
    // At α = 1 digits gain most, but stamps lose 8 points; at 0.5 they lose none.
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 62], &[52, 57]])]), OPTIONS);
    let best = figure.lines[0].best.clone().unwrap();
    assert_eq!((best.alpha, best.brings.goal, best.brings.guard), (0.5, 2.0, Some(1.0)));
    assert_eq!((figure.rule.goal, figure.rule.guard), ("ood", Some("target")));
    let lost = alpha_figure(&input(vec![curve(0, &[&[60, 62], &[52, 57]])]), OPTIONS);
    assert_eq!(lost.lines[0].best.as_ref().unwrap().alpha, 0.0);
}

#[test]
fn a_mean_stops_where_a_seed_stops() {
    let mut half = curve(1, &[&[73, 64], &[51, 57]]);
    half.scores[1].pop_last();
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 60], &[52, 54]]), half]), OPTIONS);
    assert_eq!(figure.panels[1].lines[0].points.len(), 2);
    assert_eq!(figure.lines[0].progress.as_deref(), Some("2 of 3 α"));
}

#[test]
fn differences_share_one_axis_with_the_backbone_at_zero() {
    let options = FigureOptions { view: View::Delta, keep: 1.0 };
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 60], &[52, 54]])]), options);
    assert_eq!(figure.panels[0].domain, figure.panels[1].domain);
    assert_eq!(figure.panels[0].offset, 70.0);
    assert!(figure.panels[0].ticks.contains(&0.0));
}

#[test]
fn a_panel_marks_the_backbone_every_place_and_the_far_end() {
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 62], &[52, 57]])]), OPTIONS);
    let svg = panel_svg(&figure, &figure.panels[1], &WIDE, "p1");
    assert!(
        svg.contains("Digits · OOD") && svg.contains(r#"class="rule""#) && svg.contains(r#"class="best""#)
    );
    assert!(svg.contains("film 57.0 (+7.0)") && svg.contains("backbone 50.0"));
    let narrow = panel_svg(&figure, &figure.panels[1], &NARROW, "p1n");
    assert!(!narrow.contains("backbone 50.0"));
    assert!(svg.len() < 9_000, "{}", svg.len());
}

#[test]
fn the_frontier_needs_two_roles_and_names_its_ends() {
    let figure = alpha_figure(&input(vec![curve(0, &[&[71, 62], &[52, 57]])]), OPTIONS);
    let svg = crate::figures::frontier_svg(&figure).unwrap();
    assert!(svg.contains("film, α 0.5: target +1.0, OOD +2.0"), "{svg}");
    assert!(svg.contains("film ends at α 1 with target \u{2212}8.0 and OOD +7.0"));
    let mut single = input(vec![curve(0, &[&[71, 62], &[52, 57]])]);
    single.datasets[0].role = Role::Ood;
    assert!(crate::figures::frontier_svg(&alpha_figure(&single, OPTIONS)).is_none());
}

#[test]
fn nothing_measured_is_an_empty_figure_and_not_a_panic() {
    let figure = alpha_figure(&FigureInput::default(), OPTIONS);
    assert!(figure.panels.is_empty() && figure.lines.is_empty());
    let mut bare = input(vec![]);
    bare.backbone = vec![None, None];
    let figure = alpha_figure(&bare, OPTIONS);
    assert_eq!(figure.panels[0].domain, (0.0, 5.0));
}
