//! The answer of an experiment in a sentence or two, generated from the numbers under it.

use super::numbers::interval_text;
use crate::{
    figures::{
        AlphaFigure, Best, Chosen, Queries, RobustnessKind, points, role_word, signed,
        stats::{band, band_name, mean},
    },
    measured::{LineRobustness, Measured},
};
use causeway_protocol::Alpha;

/// What the figure says.
#[derive(Debug, Default)]
pub struct Answer {
    /// The answer.
    pub sentence: String,
    /// What qualifies it.
    pub details: Vec<String>,
}

/// Writes the answer; none while no line has an end to speak of. The line is picked on the queries that decide, too:
/// the best of several lines flatters itself as the best of several α does.
pub fn answer(figure: &AlphaFigure, measured: &Measured) -> Option<Answer> {
    let (goal, guard) = (role_word(figure.rule.goal), figure.rule.guard.map(role_word));
    let (at, line, best) = figure
        .lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| Some((at, line, line.best.as_ref()?)))
        .max_by(|a, b| a.2.decided_by.total_cmp(&b.2.decided_by))?;
    let mut details = Vec::new();
    let sentence = if best.alpha > 0.0 {
        let brings = best.brings;
        let paired = Alpha::from_f64(best.alpha).and_then(|alpha| {
            measured.role_against_backbone(at, figure.rule.goal, alpha, best.chosen.reports())
        });
        let cost = match (guard, brings.guard) {
            (Some(guard), Some(delta)) if delta <= -0.05 => format!(" for {} of {guard}", points(delta)),
            (Some(guard), Some(delta)) if delta >= 0.05 => format!(" and {} on {guard}", points(delta)),
            (Some(guard), Some(_)) => format!(" and loses nothing on {guard}"),
            _ => String::new(),
        };
        let place = format!("at α {} ({})", best.alpha, line.seeds);
        let clear = paired.is_none_or(|paired| paired.interval.lo > 0.0);
        details.extend(paired.map(|paired| {
            let kind =
                format!("{} 95 % interval over images is {}", paired.kind.name(), interval_text(&paired));
            if clear {
                return format!("The gain's {kind}.");
            }
            let holds = if paired.interval.holds_zero() { "holds 0" } else { "lies below 0" };
            let (most, label) = (signed(brings.goal), &line.label);
            format!("The most is {most} on {goal} with {label}, {place}; its {kind}, which {holds}.")
        }));
        details.push(chosen_on(best, goal, guard));
        match clear {
            true => {
                format!("{} gains {} on {goal}{cost}, {place}.", capital(&line.label), points(brings.goal))
            }
            false => format!("No clear gain on {goal}."),
        }
    } else {
        let guarded = guard.map_or(String::new(), |guard| {
            format!(" without losing more than {} on {guard}", points(figure.rule.keep))
        });
        format!("No line gains on {goal}{guarded}: the best α is 0, the backbone.")
    };
    details.extend(ends(figure, measured));
    details.extend(measured.robustness(at).and_then(|found| robust(&line.label, &found)));
    Some(Answer { sentence, details })
}

/// On what α was chosen, and what 0.5 and 1 bring on the same queries.
fn chosen_on(best: &Best, goal: &str, guard: Option<&str>) -> String {
    let how = match best.chosen {
        Chosen::Half => {
            "α was chosen on a fixed half of each dataset's images, these are numbers of the other half"
        }
        Chosen::Test => "Best on test: α was chosen on the images that it is shown for, which flatters it",
    };
    let beside = best.beside.iter().filter(|change| change.alpha != best.alpha).map(|change| {
        let guarded = guard.zip(change.guard).map(|(guard, delta)| format!(", {guard} {}", signed(delta)));
        format!("α {} has {goal} {}{}", change.alpha, signed(change.goal), guarded.unwrap_or_default())
    });
    let beside: Vec<String> = beside.collect();
    match beside.is_empty() {
        true => format!("{how}."),
        false => format!("{how}; there {}.", beside.join(" and ")),
    }
}

/// How robust a line's fine-tuned weights are, and which of the two numbers that is.
fn robust(label: &str, found: &LineRobustness) -> Option<String> {
    let name = match found.kind {
        RobustnessKind::Effective => {
            format!("Effective robustness (above the line through {} backbones)", found.backbones)
        }
        RobustnessKind::RelativeToBackbone => "Relative to the backbone (ΔOOD − ΔID)".to_owned(),
    };
    Some(format!("{name} of {label} at α 1: {}.", robustness_text(found)?))
}

/// "+5.1, 95 % t +0.6 to +9.7".
pub fn robustness_text(found: &LineRobustness) -> Option<String> {
    let values: Vec<f64> = found.seeds.iter().map(|(_, value)| *value).collect();
    let around = band(&values).map(|interval| {
        format!(", {} {} to {}", band_name(values.len()), signed(interval.lo), signed(interval.hi))
    });
    Some(format!("{}{}", signed(mean(&values)?), around.unwrap_or_default()))
}

/// What the fine-tuned weights themselves did, and how many curves moved at all.
fn ends(figure: &AlphaFigure, measured: &Measured) -> Vec<String> {
    let mut changes = Vec::new();
    let (mut moved, mut all) = (0, 0);
    for (at, line) in figure.lines.iter().enumerate() {
        let roles = ["id", "target", "ood"].into_iter().filter_map(|role| {
            let delta = measured.role_against_backbone(at, role, Alpha::ONE, Queries::All)?.delta;
            Some(format!("{} {}", role_word(role), signed(delta)))
        });
        let roles: Vec<String> = roles.collect();
        if !roles.is_empty() {
            changes.push(format!("{} {}", line.label, roles.join(", ")));
        }
        for dataset in 0..measured.input.datasets.len() {
            if let Some(paired) = measured.against_backbone(at, dataset, Alpha::ONE, Queries::All) {
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
