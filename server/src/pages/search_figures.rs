//! The figures of a search's page: trials by rung, and what they are worth against each hyper-parameter.

use super::spec_view::words;
use crate::{
    figures::{RungChart, RungLine, Slice, SliceAxis, SlicePlace, TrialEnd, slice_svg, slices_axis},
    search::{SearchDetail, Trial},
};
use causeway_protocol::Axis;
use serde_json::Value;

/// Most panels of hyper-parameters.
const PANELS: usize = 8;

/// The trials that have a value, by rung.
pub fn chart(detail: &SearchDetail) -> RungChart {
    let with_value = detail.trial_list.iter().filter(|trial| !trial.rungs.is_empty());
    let lines = with_value.map(|trial| RungLine {
        trial: trial.trial,
        values: trial
            .rungs
            .iter()
            .filter_map(|rung| Some((usize::try_from(rung.rung).ok()?, rung.value?)))
            .collect(),
        end: end(trial),
        best: Some(trial.trial) == detail.best,
    });
    RungChart {
        steps: detail.document.strategy.rungs().to_vec(),
        lines: lines.collect(),
        trials: detail.trial_list.len(),
        objective: detail.objective.clone(),
    }
}

fn end(trial: &Trial) -> TrialEnd {
    match trial.state.as_str() {
        "finished" => TrialEnd::Finished,
        "stopped" | "failed" | "cancelled" => TrialEnd::Stopped,
        _ => TrialEnd::Open,
    }
}

/// Path and panel of each hyper-parameter. Values are those of the first rung, where most trials can be compared.
pub fn slices(detail: &SearchDetail) -> Vec<(String, String)> {
    let space = detail.document.space.iter().take(PANELS);
    let slices: Vec<Slice> = space.map(|(path, axis)| slice(detail, path, axis)).collect();
    let shared = slices_axis(&slices);
    let panels = slices.iter().zip(0..);
    panels.map(|(slice, at)| (slice.title.clone(), slice_svg(slice, shared, &format!("slice{at}")))).collect()
}

fn slice(detail: &SearchDetail, path: &str, axis: &Axis) -> Slice {
    let places = detail.trial_list.iter().filter_map(|trial| {
        let value = trial.rungs.first()?.value?;
        let drawn = trial.point.get(path)?;
        let at = match axis {
            Axis::Choice(choices) => choices.iter().position(|choice| choice == drawn)? as f64,
            Axis::Uniform(_) | Axis::LogUniform(_) | Axis::Integer(_) => drawn.as_f64()?,
        };
        Some(SlicePlace { at, value, end: end(trial), best: Some(trial.trial) == detail.best })
    });
    let axis = match axis {
        Axis::Choice(choices) => SliceAxis::Choices(choices.iter().map(told).collect()),
        Axis::Uniform((from, to)) => SliceAxis::Linear(*from, *to),
        Axis::LogUniform((from, to)) => SliceAxis::Log(*from, *to),
        Axis::Integer((from, to)) => SliceAxis::Linear(*from as f64, *to as f64),
    };
    Slice { title: path.to_owned(), axis, places: places.collect() }
}

/// A value in words; a table by its kind and what else it says: "adapter, rank 8".
pub fn told(value: &Value) -> String {
    let Value::Object(fields) = value else { return words(value) };
    let kind = fields.get("kind").map(words);
    let others = fields.iter().filter(|(name, _)| *name != "kind");
    let others = others.map(|(name, value)| format!("{} {}", name.replace('_', " "), told(value)));
    kind.into_iter().chain(others).collect::<Vec<_>>().join(", ")
}
