//! The answer of an experiment in a sentence or two, generated from the numbers under it.

use super::measured::Measured;
use crate::figures::{AlphaFigure, points, role_word, signed, stats::Paired};
use causeway_protocol::Alpha;

/// What the figure says.
#[derive(Debug, Default)]
pub struct Answer {
    /// The answer.
    pub sentence: String,
    /// What qualifies it.
    pub details: Vec<String>,
}

/// Writes the answer; none while no line has an end to speak of.
pub fn answer(figure: &AlphaFigure, measured: &Measured) -> Option<Answer> {
    let (goal, guard) = (role_word(figure.rule.goal), figure.rule.guard.map(role_word));
    let best = figure
        .lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| Some((at, line, line.best?)))
        .max_by(|a, b| a.2.goal_delta.total_cmp(&b.2.goal_delta))?;
    let (at, line, chosen) = best;
    let mut details = Vec::new();
    let sentence = if chosen.alpha > 0.0 {
        let paired = Alpha::from_f64(chosen.alpha)
            .and_then(|a| measured.role_against_backbone(at, figure.rule.goal, a));
        let cost = match (guard, chosen.guard_delta) {
            (Some(guard), Some(delta)) if delta <= -0.05 => format!(" for {} of {guard}", points(delta)),
            (Some(guard), Some(delta)) if delta >= 0.05 => format!(" and {} on {guard}", points(delta)),
            (Some(guard), Some(_)) => format!(" and loses nothing on {guard}"),
            _ => String::new(),
        };
        let place = format!("at \u{3b1} {} ({})", chosen.alpha, line.seeds);
        match paired.filter(|paired| paired.interval.holds_zero()) {
            Some(paired) => {
                details.push(format!(
                    "The most is {} with {}, {place}; its paired 95 % interval over images is {}, which holds 0.",
                    points(chosen.goal_delta),
                    line.label,
                    interval_text(&paired)
                ));
                format!("No clear gain on {goal}.")
            }
            None => {
                details.extend(paired.map(|paired| {
                    format!(
                        "The paired 95 % interval over images of this gain is {}.",
                        interval_text(&paired)
                    )
                }));
                format!(
                    "{} gains {} on {goal}{cost}, {place}.",
                    capital(&line.label),
                    points(chosen.goal_delta)
                )
            }
        }
    } else {
        let guarded = guard.map_or(String::new(), |guard| {
            format!(" without losing more than {} on {guard}", points(figure.rule.keep))
        });
        format!("No line gains on {goal}{guarded}: the best α is 0, the backbone.")
    };
    details.extend(ends(figure, measured));
    Some(Answer { sentence, details })
}

/// What the fine-tuned weights themselves did, and how many curves moved at all.
fn ends(figure: &AlphaFigure, measured: &Measured) -> Vec<String> {
    let mut changes = Vec::new();
    let (mut moved, mut all) = (0, 0);
    for (at, line) in figure.lines.iter().enumerate() {
        let roles = ["id", "target", "ood"].into_iter().filter_map(|role| {
            let delta = measured.role_against_backbone(at, role, Alpha::ONE)?.delta;
            Some(format!("{} {}", role_word(role), signed(delta)))
        });
        let roles: Vec<String> = roles.collect();
        if !roles.is_empty() {
            changes.push(format!("{} {}", line.label, roles.join(", ")));
        }
        for dataset in 0..measured.input.datasets.len() {
            if let Some(paired) = measured.against_backbone(at, dataset, Alpha::ONE) {
                all += 1;
                moved += usize::from(!paired.interval.holds_zero());
            }
        }
    }
    if changes.is_empty() {
        return Vec::new();
    }
    let clear = match (moved, all) {
        (0, _) => "No curve ends further from the backbone than its paired 95 % interval.".to_owned(),
        (moved, all) => {
            format!("{moved} of {all} curves end further from the backbone than their paired 95 % interval.")
        }
    };
    vec![format!("At α 1: {}. {clear}", changes.join("; "))]
}

/// A name at the beginning of a sentence.
fn capital(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// "+0.4 to +5.8".
pub fn interval_text(paired: &Paired) -> String {
    format!("{} to {}", signed(paired.interval.lo), signed(paired.interval.hi))
}
