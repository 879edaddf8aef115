//! The values on a run's page: the loss, or what a program reports, as a chart, what each series comes to, and values that contradict each other.

use super::format;
use crate::{
    Result,
    figures::{SeriesChart, series_svg},
    metrics::{self, Span, Summary, ValueConflict},
    runs::Run,
};
use causeway_protocol::{Number, Spec};
use sqlx::PgPool;

/// The metric that the chart shows; of a program that reports none by this name, the first.
const LOSS: &str = "loss";
/// Columns of the chart in the page; the live one asks for as many as it has pixels.
const COLUMNS: usize = 300;
/// Most series in the table.
const SERIES: usize = 200;
/// Most conflicts in the page.
const CONFLICTS: usize = 20;

/// What the page shows of a run's values.
pub struct ValuesView {
    /// The chart; none where nothing was reported and no training will.
    pub chart: Option<Drawn>,
    /// The last value of each series.
    pub latest: Vec<(String, String)>,
    /// What each series comes to.
    pub series: Vec<SeriesRow>,
    /// "12 series, 48,000 values".
    pub summary: String,
    /// Series that the table has no room for.
    pub more_series: usize,
    /// Values that arrived twice with another number.
    pub conflicts: Vec<ConflictRow>,
    /// Whether there are more of them.
    pub more_conflicts: bool,
}

/// A metric that is drawn.
pub struct Drawn {
    /// Its name as a person reads it.
    pub title: String,
    /// The chart without JavaScript.
    pub svg: String,
    /// What the live chart starts from, as JSON.
    pub model: String,
}

/// A series.
pub struct SeriesRow {
    /// Name, with places where it may break.
    pub name: String,
    /// Number of values, and how many are not finite.
    pub count: String,
    /// The last.
    pub last: String,
    /// The least, and its step.
    pub min: String,
    /// The greatest, and its step.
    pub max: String,
}

/// A conflict.
pub struct ConflictRow {
    /// "loss at step 5".
    pub place: String,
    /// "0.5 stays; 0.25 came later, three times".
    pub what: String,
}

impl ValuesView {
    /// Reads it.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn load(pool: &PgPool, run: &Run, spec: Option<&Spec>) -> Result<ValuesView> {
        let id = run.summary.id;
        let all = metrics::summary(pool, id).await?;
        let trains = spec.is_some_and(|spec| spec.training.is_some());
        let has_loss = trains || all.iter().any(|series| series.name == LOSS);
        let name = if has_loss { Some(LOSS) } else { all.first().map(|series| series.name.as_str()) };
        let chart = match name {
            Some(name) => Some(drawn(pool, run, spec, name).await?),
            None => None,
        };
        let values: i64 = all.iter().map(|series| series.count).sum();
        let limit = CONFLICTS as i64 + 1;
        let mut conflicts = metrics::conflicts(pool, id, (i64::MIN, 0, 0, 0), limit).await?;
        let more_conflicts = conflicts.len() > CONFLICTS;
        conflicts.truncate(CONFLICTS);
        Ok(ValuesView {
            chart,
            latest: all
                .iter()
                .take(SERIES)
                .map(|series| (words(&series.name), measured(&series.name, series.last.0)))
                .collect(),
            summary: format!(
                "{} series, {}",
                format::count(all.len() as i64),
                format::plural(values, "value")
            ),
            more_series: all.len().saturating_sub(SERIES),
            series: all.iter().take(SERIES).map(series_row).collect(),
            conflicts: conflicts.iter().map(conflict_row).collect(),
            more_conflicts,
        })
    }
}

async fn drawn(pool: &PgPool, run: &Run, spec: Option<&Spec>, name: &str) -> Result<Drawn> {
    let names = [name.to_owned()];
    let series = metrics::chart(pool, run.summary.id, Some(&names), Span::ALL, COLUMNS).await?;
    let values = series
        .into_iter()
        .next()
        .map(|series| series.steps.into_iter().zip(series.values.into_iter().map(|value| value.0)).collect());
    let resumed = run.attempt_list.iter().map(|attempt| attempt.resumed_step).filter(|step| *step > 0);
    let total = spec.and_then(|spec| spec.training.as_ref()).map_or(0, |training| training.steps);
    let chart = SeriesChart {
        title: capitalised(&words(name)),
        values: values.unwrap_or_default(),
        resumed: resumed.collect(),
        total: i64::try_from(total).unwrap_or(0),
    };
    let model = serde_json::json!({
        "run": run.summary.id,
        "name": name,
        "title": chart.title,
        "total": chart.total,
        "resumed": chart.resumed,
        "steps": chart.values.iter().map(|value| value.0).collect::<Vec<_>>(),
        "values": chart.values.iter().map(|value| value.1).collect::<Vec<_>>(),
    });
    Ok(Drawn { svg: series_svg(&chart, "series"), model: format::escape_json(&model), title: chart.title })
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn series_row(series: &Summary) -> SeriesRow {
    let at = |number: Option<f64>, step: Option<i64>| match (number, step) {
        (Some(number), Some(step)) => {
            format!("{} at {}", measured(&series.name, number), format::count(step))
        }
        _ => "\u{2013}".to_owned(),
    };
    let wild = match series.non_finite {
        0 => String::new(),
        some => format!(", {} not finite", format::count(some)),
    };
    SeriesRow {
        name: words(&series.name),
        count: format!("{}{wild}", format::count(series.count)),
        last: measured(&series.name, series.last.0),
        min: at(series.min, series.min_step),
        max: at(series.max, series.max_step),
    }
}

fn conflict_row(conflict: &ValueConflict) -> ConflictRow {
    let number = match conflict.n {
        0 => String::new(),
        n => format!(", value {n}"),
    };
    let times = match conflict.times {
        1 => String::new(),
        times => format!(", the last of {times}"),
    };
    ConflictRow {
        place: format!(
            "{} at step {}{number}, attempt {}",
            words(&conflict.name),
            conflict.step,
            conflict.attempt
        ),
        what: format!("{} stays; {} came later{times}", conflict.kept, conflict.refused),
    }
}

/// A metric's name as a person reads it, with places where a narrow column may break it.
fn words(name: &str) -> String {
    name.replace('_', " ").replace('/', "/\u{200b}").replace('.', ".\u{200b}")
}

/// A metric's value: bytes as bytes, shares as percent, everything else to four digits.
fn measured(name: &str, value: f64) -> String {
    if !value.is_finite() {
        return Number(value).to_string();
    }
    if name.ends_with("_bytes") {
        return format::bytes(value as i64);
    }
    if name.contains("share_") {
        return format!("{:.1} %", 100.0 * value);
    }
    significant(value)
}

/// Four significant digits.
fn significant(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) {
        return format!("{value:.3e}");
    }
    let whole = value.abs().max(1.0).log10().floor() as usize + 1;
    format!("{value:.*}", 4_usize.saturating_sub(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::OffsetDateTime;

    #[test]
    fn metric_values_have_four_significant_digits() {
        assert_eq!(significant(1.82345), "1.823");
        assert_eq!(significant(312.04), "312.0");
        assert_eq!(significant(0.00003), "3.000e-5");
        assert_eq!(significant(0.0), "0.000");
    }

    #[test]
    fn what_is_measured_in_bytes_or_shares_says_so() {
        assert_eq!(measured("system/share_waiting_for_data", 0.0423), "4.2 %");
        assert_eq!(measured("loss", 2.5), "2.500");
        assert_eq!(measured("loss", f64::NEG_INFINITY), "-Infinity");
        assert_eq!(words("system/memory_bytes"), "system/\u{200b}memory bytes");
    }

    #[test]
    fn a_conflict_says_which_number_stays() {
        let conflict = ValueConflict {
            id: String::new(),
            name: "loss".to_owned(),
            attempt: 2,
            step: 5,
            n: 0,
            kept: Number(0.5),
            refused: Number(f64::NAN),
            times: 3,
            noted_at: OffsetDateTime::UNIX_EPOCH,
        };
        let row = conflict_row(&conflict);
        assert_eq!(row.place, "loss at step 5, attempt 2");
        assert_eq!(row.what, "0.5 stays; NaN came later, the last of 3");
    }

    #[test]
    fn a_series_that_was_never_finite_has_no_least() {
        let series = Summary {
            name: "loss".to_owned(),
            count: 1200,
            non_finite: 1200,
            last: Number(f64::NAN),
            last_step: 1200,
            min: None,
            min_step: None,
            max: None,
            max_step: None,
        };
        let row = series_row(&series);
        assert_eq!((row.count.as_str(), row.min.as_str()), ("1,200, 1,200 not finite", "\u{2013}"));
    }
}
