//! Reading results on the command line: checkpoints side by side, and everything as CSV.

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;

/// Options of `causeway compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Digests of checkpoints, or unique beginnings of them; the first is the baseline
    #[arg(required = true, num_args = 1..=5)]
    checkpoints: Vec<String>,
    /// Number of neighbours
    #[arg(long, default_value_t = 20)]
    k: u32,
}

/// `causeway compare`: accuracies at α = 0, at the best α and at 1, and what differs in the specs.
///
/// # Errors
/// If a checkpoint does not exist.
pub async fn compare(connection: &super::Connection, args: CompareArgs) -> Result<()> {
    let server = connection.open()?;
    let answer = server.get(&format!("/compare?checkpoints={}", args.checkpoints.join(","))).await?;
    let prefix = format!("knn{}-", args.k);
    println!(
        "{:<28} {:<26} {:>7} {:>14} {:>7}  best is best on test",
        "dataset", "checkpoint", "α = 0", "best (α)", "α = 1"
    );
    for curve in answer["curves"].as_array().into_iter().flatten() {
        if !curve["protocol"].as_str().is_some_and(|id| id.starts_with(&prefix)) {
            continue;
        }
        let points: Vec<(f64, f64)> = curve["points"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|point| Some((point["alpha"].as_f64()?, 100.0 * point["top1"].as_f64()?)))
            .collect();
        let at = |alpha: f64| {
            points.iter().find(|point| point.0 == alpha).map_or("–".to_owned(), |p| format!("{:.1}", p.1))
        };
        // The smaller α wins a tie: less of the backbone is given up.
        let best = points.iter().fold(None, |best: Option<(f64, f64)>, point| match best {
            Some(best) if best.1 >= point.1 => Some(best),
            _ => Some(*point),
        });
        println!(
            "{:<28} {:<26} {:>7} {:>14} {:>7}",
            format!("{} ({})", text(&curve["dataset"]["title"]), text(&curve["dataset"]["role"])),
            format!("{} {:.8}", text(&curve["run"]), text(&curve["checkpoint"])),
            at(0.0),
            best.map_or("–".to_owned(), |(alpha, accuracy)| format!("{accuracy:.1} ({alpha})")),
            at(1.0),
        );
    }
    if let Some(differing) = answer["differing"].as_object() {
        println!("\nspecs differ in:");
        for (path, values) in differing {
            let values: Vec<String> = values.as_array().into_iter().flatten().map(Value::to_string).collect();
            println!("  {path}: {}", values.join(" | "));
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Options of `causeway export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Experiment, by name or id
    experiment: String,
}

/// `causeway export`: every point of an experiment as CSV, complete.
///
/// # Errors
/// If there is no such experiment.
pub async fn export(connection: &super::Connection, args: ExportArgs) -> Result<()> {
    let server = connection.open()?;
    let id = server.experiment_id(&args.experiment).await?;
    let answer = server.get(&format!("/experiments/{id}/curves")).await?;
    println!("run,method,seed,dataset,role,protocol,alpha,top1,top5,correct,n,checkpoint,dataset_digest");
    for curve in answer["curves"].as_array().into_iter().flatten() {
        let fixed: BTreeMap<&str, String> = ["run", "method", "protocol", "checkpoint"]
            .into_iter()
            .map(|name| (name, quoted(&curve[name])))
            .collect();
        for point in curve["points"].as_array().into_iter().flatten() {
            println!(
                "{},{},{},{},{},{},{},{},{},{},{},{},{}",
                fixed["run"],
                fixed["method"],
                curve["seed"],
                quoted(&curve["dataset"]["name"]),
                quoted(&curve["dataset"]["role"]),
                fixed["protocol"],
                point["alpha"],
                point["top1"],
                point["top5"],
                point["correct"],
                point["n"],
                fixed["checkpoint"],
                quoted(&curve["dataset"]["digest"]),
            );
        }
    }
    Ok(())
}

/// A CSV field.
fn quoted(value: &Value) -> String {
    let text = text(value);
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}
