//! Accuracy by class of one run: who pays for a mean. In the page at α = 0, at the best α and at 1; in the CSV all of it.

use super::{format, numbers::quoted, protocols, run::Options};
use crate::{
    App, Error, Result,
    curves::{Curve, CurveFilter, curves, mean_per_class},
    figures::{Best, Chosen, role_word, signed, tone, value},
};
use axum::{
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use causeway_protocol::{Alpha, Spec};
use sqlx::PgPool;
use std::{collections::HashMap, fmt::Write};
use uuid::Uuid;

/// With more classes than twice this, only so many that gained most and lost most are in the page.
const ENDS: usize = 10;

/// The classes of one dataset.
#[derive(Debug)]
pub struct ClassTable {
    /// Title of the dataset.
    pub title: String,
    /// Its role.
    pub role: &'static str,
    /// "all 10 classes", or which of them.
    pub shown: String,
    /// Column heads: the α.
    pub heads: Vec<String>,
    /// The mean, then classes.
    pub rows: Vec<ClassRow>,
}

/// One class.
#[derive(Debug)]
pub struct ClassRow {
    /// Its name.
    pub name: String,
    /// Images of it among the queries.
    pub images: String,
    /// Whether this is the mean of all classes.
    pub mean: bool,
    /// Accuracy, difference, tone; one per α.
    pub cells: Vec<(String, String, &'static str)>,
}

/// One table for each dataset whose points know their classes.
///
/// # Errors
/// If the database does not answer.
pub async fn class_tables(pool: &PgPool, curves: &[Curve], best: Option<&Best>) -> Result<Vec<ClassTable>> {
    let names = names(pool, curves).await?;
    Ok(curves.iter().filter_map(|curve| table(curve, names.get(&curve.dataset.digest)?, best)).collect())
}

async fn names(pool: &PgPool, curves: &[Curve]) -> Result<HashMap<String, Vec<String>>> {
    let digests: Vec<String> = curves.iter().map(|curve| curve.dataset.digest.clone()).collect();
    let rows = sqlx::query!(
        r#"select digest, classes as "classes: sqlx::types::Json<Vec<String>>" from dataset where digest = any($1)"#,
        &digests
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.digest, row.classes.0)).collect())
}

fn table(curve: &Curve, names: &[String], best: Option<&Best>) -> Option<ClassTable> {
    let queries =
        curve.dataset.queries_per_class.as_deref().filter(|queries| queries.len() == names.len())?;
    let counts = |alpha: Alpha| -> Option<&[i32]> {
        let point = curve.points.iter().find(|point| point.alpha == alpha)?;
        point.correct_per_class.as_deref().filter(|counts| counts.len() == queries.len())
    };
    let base = counts(Alpha::ZERO)?;
    let best = best.filter(|best| best.alpha > 0.0 && best.alpha < 1.0);
    let best = best.and_then(|best| {
        let alpha = Alpha::from_f64(best.alpha)?;
        let name = if best.chosen == Chosen::Half { "best α" } else { "best on test α" };
        Some((format!("{name} {alpha}"), counts(alpha)?))
    });
    let one = counts(Alpha::ONE).map(|counts| ("α 1".to_owned(), counts));
    let later: Vec<(String, &[i32])> = best.into_iter().chain(one).collect();
    let last = later.last().map_or(base, |(_, counts)| counts);
    let share = |counts: &[i32], class: usize| 100.0 * f64::from(counts[class]) / f64::from(queries[class]);
    let there: Vec<usize> = (0..queries.len()).filter(|class| queries[*class] > 0).collect();
    let mut order = there.clone();
    let few = order.len() <= 2 * ENDS;
    if !few {
        // By what the last column changed; ties in label order.
        order.sort_by(|a, b| {
            let moved = |class: usize| share(last, class) - share(base, class);
            moved(*b).total_cmp(&moved(*a))
        });
        order.drain(ENDS..order.len() - ENDS);
    }
    let row = |name: &str, images: i32, mean: bool, of: &dyn Fn(&[i32]) -> f64| {
        let first = (value(of(base)), String::new(), "");
        let rest = later.iter().map(|(_, counts)| {
            let delta = of(counts) - of(base);
            (value(of(counts)), signed(delta), tone(delta))
        });
        ClassRow {
            name: name.to_owned(),
            images: format::count(i64::from(images)),
            mean,
            cells: std::iter::once(first).chain(rest).collect(),
        }
    };
    let mean = |counts: &[i32]| 100.0 * mean_per_class(counts, queries).unwrap_or(0.0);
    let mut rows = vec![row("mean of the classes", queries.iter().sum(), true, &mean)];
    rows.extend(
        order
            .iter()
            .map(|class| row(&names[*class], queries[*class], false, &|counts| share(counts, *class))),
    );
    Some(ClassTable {
        title: curve.dataset.title.clone(),
        role: role_word(&curve.dataset.role),
        shown: match few {
            true => format!("all {} classes", there.len()),
            false => format!("the {ENDS} of {} classes that gained most and lost most", there.len()),
        },
        heads: std::iter::once("α 0".to_owned()).chain(later.iter().map(|(name, _)| name.clone())).collect(),
        rows,
    })
}

/// `GET /runs/{id}/classes.csv`: every class at every α under one protocol.
pub async fn csv(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(options): Query<Options>,
) -> Result<Response> {
    let run = crate::runs::get_run(&app, id).await?;
    let spec = serde_json::from_value::<Spec>(run.spec.clone()).ok();
    let all = spec.map(|spec| spec.evaluation.protocols()).unwrap_or_default();
    let asked = options.protocol.as_deref();
    let chosen = protocols::chosen(&all, asked)
        .ok_or_else(|| Error::NotFound(format!("the run has no protocol {}", asked.unwrap_or("at all"))))?;
    let filter =
        CurveFilter { runs: Some(vec![id]), protocol: Some(chosen.id.clone()), ..CurveFilter::default() };
    let curves = curves(&app.pool, &filter).await?;
    let names = names(&app.pool, &curves).await?;
    let name = "attachment; filename=\"causeway-classes.csv\"";
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, rows(&curves, &names)).into_response())
}

fn rows(curves: &[Curve], names: &HashMap<String, Vec<String>>) -> String {
    let mut text =
        String::from("dataset,dataset_digest,role,protocol,alpha,class,name,queries,correct,accuracy\n");
    for curve in curves {
        let (Some(queries), Some(names)) =
            (&curve.dataset.queries_per_class, names.get(&curve.dataset.digest))
        else {
            continue;
        };
        for point in &curve.points {
            let counts = point.correct_per_class.as_deref().unwrap_or_default();
            for (class, ((correct, queries), name)) in counts.iter().zip(queries).zip(names).enumerate() {
                let accuracy = if *queries > 0 {
                    (f64::from(*correct) / f64::from(*queries)).to_string()
                } else {
                    String::new()
                };
                let _ = writeln!(
                    text,
                    "{},{},{},{},{},{class},{},{queries},{correct},{accuracy}",
                    quoted(&curve.dataset.title),
                    curve.dataset.digest,
                    curve.dataset.role,
                    curve.protocol,
                    point.alpha,
                    quoted(name),
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curves::{CurveDataset, Point};
    use causeway_protocol::{Dtype, Hits};

    fn curve(queries: Vec<i32>, at: &[(i64, Vec<i32>)]) -> Curve {
        let points = at.iter().map(|(alpha, correct)| Point {
            alpha: Alpha::from_ten_thousandths(*alpha).unwrap(),
            top1: 0.0,
            top5: 0.0,
            n: queries.iter().sum(),
            correct: correct.iter().sum(),
            mean_per_class: mean_per_class(correct, &queries),
            correct_per_class: Some(correct.clone()),
            hits: Hits::default(),
            stamp: serde_json::Value::Null,
        });
        Curve {
            run_id: Uuid::nil(),
            run: String::new(),
            method: String::new(),
            variant: String::new(),
            seed: 0,
            backbone: String::new(),
            checkpoint: None,
            dataset: CurveDataset {
                digest: "d".to_owned(),
                name: "digits".to_owned(),
                title: "Digits".to_owned(),
                role: "ood".to_owned(),
                ordinal: 1,
                classes: queries.len(),
                queries_per_class: Some(queries.clone()),
            },
            protocol: "p".to_owned(),
            readout: "k 20".to_owned(),
            dtype: Dtype::F32,
            area: None,
            points: points.collect(),
        }
    }

    #[test]
    fn the_mean_of_the_classes_counts_each_class_once() {
        // 90 of 100, 1 of 2, and a class without images: (90 + 50)/2 = 70, where top-1 is 91/102.
        let curve = curve(vec![100, 2, 0], &[(0, vec![90, 1, 0]), (10_000, vec![80, 2, 0])]);
        let names = ["a", "b", "c"].map(str::to_owned);
        let table = table(&curve, &names, None).unwrap();
        let cells: Vec<_> = table.rows.iter().map(|row| (row.name.as_str(), row.cells.clone())).collect();
        let cell = |value: &str, delta: &str, tone| (value.to_owned(), delta.to_owned(), tone);
        assert_eq!(
            cells,
            [
                ("mean of the classes", vec![cell("70.0", "", ""), cell("90.0", "+20.0", "gain")]),
                ("a", vec![cell("90.0", "", ""), cell("80.0", "\u{2212}10.0", "loss")]),
                ("b", vec![cell("50.0", "", ""), cell("100.0", "+50.0", "gain")]),
            ]
        );
        assert_eq!(
            (table.shown.as_str(), table.heads.as_slice()),
            ("all 2 classes", &["α 0".to_owned(), "α 1".to_owned()][..])
        );
        let named = HashMap::from([("d".to_owned(), names.to_vec())]);
        assert!(rows(&[curve], &named).ends_with("\"Digits\",d,ood,p,1,2,\"c\",0,0,\n"));
    }

    #[test]
    fn of_many_classes_the_ends_are_shown() {
        // Class c gains c − 15 of 100 at α = 1.
        let at =
            |moved: bool| (0..30).map(|class| 50 + if moved { class - 15 } else { 0 }).collect::<Vec<i32>>();
        let names: Vec<String> = (0..30).map(|class| format!("class {class}")).collect();
        let curve = curve(vec![100; 30], &[(0, at(false)), (10_000, at(true))]);
        let table = table(&curve, &names, None).unwrap();
        assert_eq!(table.rows.len(), 21);
        assert_eq!((table.rows[1].name.as_str(), table.rows[20].name.as_str()), ("class 29", "class 0"));
        assert_eq!(table.rows[11].name, "class 9");
    }

    #[test]
    fn points_of_before_have_no_classes() {
        let mut old = curve(vec![2, 2], &[(0, vec![])]);
        assert!(table(&old, &["a", "b"].map(str::to_owned), None).is_none());
        old.dataset.queries_per_class = None;
        assert!(table(&old, &["a", "b"].map(str::to_owned), None).is_none());
    }
}
