//! The accuracies of compared checkpoints: at both ends and in the middle on all images, and the best α on images that
//! it was not chosen on, with the same three beside it on the same images.

use super::compare::letter;
use crate::{
    figures::{
        AlphaFigure, Chosen, Queries, Score, method_svg, points, role_word,
        stats::{percent, wilson},
        value,
    },
    measured::Measured,
};
use causeway_protocol::Alpha;

/// The accuracies on one dataset.
pub struct Accuracies {
    /// Title of the dataset.
    pub title: String,
    /// Its role.
    pub role: &'static str,
    /// What the last four columns count.
    pub part: &'static str,
    /// How the best α was chosen.
    pub rule: String,
    /// One row per checkpoint.
    pub rows: Vec<AccuracyRow>,
}

/// A checkpoint on one dataset.
pub struct AccuracyRow {
    /// Its letter.
    pub letter: char,
    /// The run's name.
    pub name: String,
    /// The method's mark.
    pub sample: String,
    /// Accuracy and interval at α = 0, 0.5 and 1 on all images; at 0, the best α, 0.5 and 1 on the others.
    pub cells: Vec<Option<(String, String)>>,
}

/// One table per dataset.
pub fn accuracies(figure: &AlphaFigure, measured: &Measured) -> Vec<Accuracies> {
    let halved =
        figure.lines.iter().filter_map(|line| line.best.as_ref()).all(|best| best.chosen == Chosen::Half);
    let on = if halved { Queries::ReportedOn } else { Queries::All };
    let guard = figure.rule.guard.map_or(String::new(), |guard| {
        format!(" that costs mean {} at most {}", role_word(guard), points(figure.rule.keep))
    });
    let rule = format!(
        "the measured α with the highest mean {} accuracy{guard}, chosen on {}",
        role_word(figure.rule.goal),
        if halved { "the half of the images that is not shown" } else { "the images that it is shown for" }
    );
    let tables = measured.input.datasets.iter().enumerate().map(|(at, dataset)| Accuracies {
        title: dataset.title.clone(),
        role: role_word(dataset.role.as_str()),
        part: if halved { "The half that α was not chosen on" } else { "All images: best on test" },
        rule: rule.clone(),
        rows: measured
            .input
            .variants
            .iter()
            .zip(&figure.lines)
            .filter_map(|(variant, line)| {
                let seed = variant.seeds.first()?;
                let score = |alpha: f64| -> Option<Score> {
                    match Alpha::from_f64(alpha)? {
                        Alpha::ZERO => measured.input.backbone[at],
                        alpha => seed.scores[at].get(&alpha).copied(),
                    }
                };
                let cell = |alpha: f64, on: Queries, name: String| shown(&score(alpha)?, on, name);
                let best = line.best.as_ref().map(|best| best.alpha);
                let plain = |alpha: f64, on: Queries| cell(alpha, on, String::new());
                Some(AccuracyRow {
                    letter: variant.short.chars().next().unwrap_or(letter(0)),
                    name: seed.run_name.clone(),
                    sample: method_svg(&variant.method),
                    cells: vec![
                        plain(0.0, Queries::All),
                        plain(0.5, Queries::All),
                        plain(1.0, Queries::All),
                        plain(0.0, on),
                        best.and_then(|alpha| cell(alpha, on, format!("α {alpha}: "))),
                        plain(0.5, on),
                        plain(1.0, on),
                    ],
                })
            })
            .collect(),
    });
    tables.collect()
}

fn shown(score: &Score, on: Queries, name: String) -> Option<(String, String)> {
    let (correct, n) = match on {
        Queries::All => (score.correct, score.n),
        Queries::ChosenOn => score.halves?.chosen_on,
        Queries::ReportedOn => score.halves?.reported_on,
    };
    let interval = wilson(correct, n)?;
    let interval = format!("{}\u{2013}{}", value(interval.lo), value(interval.hi));
    Some((format!("{name}{}", value(percent(correct, n))), interval))
}
