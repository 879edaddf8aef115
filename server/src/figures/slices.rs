//! What trials are worth against one hyper-parameter at a time, as SVG: all panels of a search share the vertical axis, so
//! that they tell which of the parameters matters.

use super::identity::short;
use super::rungs::{TrialEnd, end_mark, fenced_axis, tick_text};
use super::scale::{nice_axis, ticks};
use std::fmt::Write;

/// One panel.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The path.
    pub title: String,
    /// What the horizontal axis shows.
    pub axis: SliceAxis,
    /// The trials that have a value.
    pub places: Vec<SlicePlace>,
}

/// The horizontal axis of a panel.
#[derive(Clone, Debug)]
pub enum SliceAxis {
    /// Numbers between two.
    Linear(f64, f64),
    /// Numbers between two, by ratio.
    Log(f64, f64),
    /// Choices by name; places are their indices.
    Choices(Vec<String>),
}

/// A trial in a panel.
#[derive(Clone, Copy, Debug)]
pub struct SlicePlace {
    /// Where on the horizontal axis.
    pub at: f64,
    /// What it is worth.
    pub value: f64,
    /// What became of it.
    pub end: TrialEnd,
    /// Whether it is the best one.
    pub best: bool,
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// Choices that are named below a panel; of more, only the first and the last.
const NAMED: usize = 4;
/// Characters of all names together that fit below a panel.
const NAMES: usize = 36;

/// The vertical axis that all panels share: (from, to, step).
pub fn slices_axis(slices: &[Slice]) -> (f64, f64, f64) {
    fenced_axis(slices.iter().flat_map(|slice| slice.places.iter().map(|place| place.value)))
}

/// A panel; `id` must be unique in the page.
pub fn slice_svg(slice: &Slice, (lo, hi, step): (f64, f64, f64), id: &str) -> String {
    let mut out = format!(
        r#"<svg class="drawn" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img" aria-labelledby="{id}t"><title id="{id}t">{} trials against {}</title>"#,
        slice.places.len(),
        super::escape(&slice.title)
    );
    let y = |value: f64| TOP + (hi - value.clamp(lo, hi)) / (hi - lo) * (HEIGHT - TOP - BOTTOM);
    for tick in ticks(lo, hi, step) {
        let _ = write!(
            out,
            r#"<path d="M{LEFT},{h}H{}" stroke="var(--line)"/><text x="{}" y="{}" text-anchor="end" fill="var(--ink-2)">{}</text>"#,
            short(WIDTH - RIGHT),
            short(LEFT - 8.0),
            short(y(tick) + 4.0),
            tick_text(tick, step),
            h = short(y(tick))
        );
    }
    let names = slice.axis.names();
    let last = names.len().saturating_sub(1);
    for (index, (share, name)) in names.iter().enumerate() {
        let anchor = match (&slice.axis, index) {
            (SliceAxis::Choices(_), _) => "middle",
            (_, 0) => "start",
            (_, at) if at == last => "end",
            _ => "middle",
        };
        let _ = write!(
            out,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" fill="var(--ink-2)">{}</text>"#,
            short(across(*share)),
            short(HEIGHT - 9.0),
            super::escape(name)
        );
    }
    for best in [false, true] {
        for place in slice.places.iter().filter(|place| place.best == best && place.value.is_finite()) {
            let colour = if best { "var(--accent)" } else { "var(--ink-2)" };
            end_mark(&mut out, place.end, (across(slice.axis.share(place.at)), y(place.value)), colour);
        }
    }
    out.push_str("</svg>");
    out
}

fn across(share: f64) -> f64 {
    LEFT + 8.0 + share * (WIDTH - LEFT - RIGHT - 16.0)
}

impl SliceAxis {
    /// How far across a place is, from 0 to 1.
    fn share(&self, at: f64) -> f64 {
        let share = match self {
            SliceAxis::Linear(from, to) => (at - from) / (to - from),
            SliceAxis::Log(from, to) => (at.ln() - from.ln()) / (to.ln() - from.ln()),
            SliceAxis::Choices(names) => (at + 0.5) / names.len().max(1) as f64,
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.5 }
    }

    /// What is written below, each with how far across it is.
    fn names(&self) -> Vec<(f64, String)> {
        match self {
            SliceAxis::Linear(from, to) => {
                let (_, _, step) = nice_axis(*from, *to);
                let end = |at: f64| {
                    let text = tick_text(at, step / 10.0);
                    if text.contains('.') {
                        text.trim_end_matches('0').trim_end_matches('.').to_owned()
                    } else {
                        text
                    }
                };
                vec![(0.0, end(*from)), (1.0, end(*to))]
            }
            SliceAxis::Log(from, to) => {
                let powers = (from.log10().ceil() as i32)..=(to.log10().floor() as i32);
                let powers: Vec<(f64, String)> =
                    powers.map(|power| (self.share(10f64.powi(power)), format!("1e{power}"))).collect();
                if powers.len() > 1 { powers } else { vec![(0.0, from.to_string()), (1.0, to.to_string())] }
            }
            SliceAxis::Choices(names) => {
                let shown = |index: &usize| names.len() <= NAMED || *index == 0 || *index == names.len() - 1;
                let shown = (0..names.len()).filter(shown);
                let longest = NAMES / names.len().clamp(1, NAMED);
                shown.map(|index| (self.share(index as f64), fitted(&names[index], longest))).collect()
            }
        }
    }
}

/// A name that fits; the table of trials has all of it.
fn fitted(name: &str, longest: usize) -> String {
    if name.chars().count() <= longest {
        return name.to_owned();
    }
    name.chars().take(longest - 1).chain(['\u{2026}']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_choices_share_the_width() {
        assert_eq!(fitted("adapter, rank 8", 18), "adapter, rank 8");
        assert_eq!(fitted("adapter, rank 8", 9), "adapter,\u{2026}");
    }

    #[test]
    fn a_ratio_is_a_distance_on_a_log_axis_and_choices_have_equal_places() {
        let log = SliceAxis::Log(1e-4, 1e-2);
        assert!((log.share(1e-3) - 0.5).abs() < 1e-12);
        let names: Vec<String> = log.names().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["1e-4", "1e-3", "1e-2"]);
        let linear = SliceAxis::Linear(0.0, 0.2);
        assert_eq!(linear.names(), [(0.0, "0".to_owned()), (1.0, "0.2".to_owned())]);
        let choices = SliceAxis::Choices(vec!["film".to_owned(), "adapter".to_owned()]);
        assert_eq!(choices.names(), [(0.25, "film".to_owned()), (0.75, "adapter".to_owned())]);
    }

    #[test]
    fn panels_share_their_axis_and_draw_the_best_last() {
        let place = |at, value, best| SlicePlace { at, value, end: TrialEnd::Finished, best };
        let slice = Slice {
            title: "training.learning_rate".to_owned(),
            axis: SliceAxis::Linear(0.0, 1.0),
            places: vec![place(0.0, 1.0, true), place(1.0, 2.0, false), place(0.5, f64::NAN, false)],
        };
        let axis = slices_axis(std::slice::from_ref(&slice));
        assert_eq!((axis.0, axis.1), (1.0, 2.0));
        let svg = slice_svg(&slice, axis, "s");
        assert_eq!(svg.matches("translate(").count(), 2, "NaN has no place");
        // The axis goes from 60 to 280 across and from 172 to 12 upwards.
        assert!(svg.find("translate(280,12)") < svg.find("translate(60,172)"), "{svg}");
    }
}
