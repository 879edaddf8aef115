//! Reading results on the command line: checkpoints side by side, and everything as CSV.

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::Method;
use serde_json::Value;
use std::{collections::BTreeMap, io::Write};

/// Options of `causeway compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Digests of checkpoints, or unique beginnings of them; the first is the baseline
    #[arg(required = true, num_args = 1..=5)]
    checkpoints: Vec<String>,
    /// Number of neighbours; short for --readout "k N"
    #[arg(long, conflicts_with_all = ["readout", "protocol"])]
    k: Option<u32>,
    /// How features become a class: "k 20", "linear probe" or "zero-shot"
    #[arg(long, default_value = "k 20", conflicts_with = "protocol")]
    readout: String,
    /// Id of the protocol
    #[arg(long)]
    protocol: Option<String>,
}

impl CompareArgs {
    /// Whether a curve is one of those asked for.
    fn shows(&self, curve: &Value) -> bool {
        match (&self.protocol, self.k) {
            (Some(id), _) => curve["protocol"].as_str() == Some(id),
            (None, Some(k)) => curve["readout"].as_str() == Some(format!("k {k}").as_str()),
            (None, None) => same_readout(&text(&curve["readout"]), &self.readout),
        }
    }
}

/// "k 20", "k20" and "linear-probe" mean what they look like.
fn same_readout(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace([' ', '-', '_'], "");
    plain(one) == plain(other)
}

/// `causeway compare`: accuracies at α = 0, 0.5 and 1, what the best α brings, and what differs in the specs.
///
/// # Errors
/// If a checkpoint does not exist, or none was evaluated in the way asked for.
pub async fn compare(connection: &super::Connection, args: CompareArgs) -> Result<()> {
    let server = connection.open()?;
    let answer = server.get(&format!("/compare?checkpoints={}", args.checkpoints.join(","))).await?;
    let curves = answer["curves"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines = answer["lines"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut by_protocol: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for curve in curves.iter().filter(|curve| args.shows(curve)) {
        by_protocol.entry(text(&curve["protocol"])).or_default().push(curve);
    }
    if by_protocol.is_empty() && !curves.is_empty() {
        let mut there: Vec<String> = curves.iter().map(|curve| text(&curve["readout"])).collect();
        there.sort();
        there.dedup();
        bail!("these checkpoints have no such curves; --readout can be {}", there.join(", "));
    }
    // Protocols are never mixed: each has a table of its own.
    for (protocol, curves) in &by_protocol {
        println!("{protocol}");
        print_accuracies(curves);
        let of_protocol = lines.iter().filter(|line| line["protocol"].as_str() == Some(protocol));
        of_protocol.for_each(|line| print_best(line, curves));
        println!();
    }
    if let Some(differing) = answer["differing"].as_object() {
        println!("specs differ in:");
        for (path, values) in differing {
            let values: Vec<String> = values.as_array().into_iter().flatten().map(Value::to_string).collect();
            println!("  {path}: {}", values.join(" | "));
        }
    }
    Ok(())
}

/// Accuracies on all images.
fn print_accuracies(curves: &[&Value]) {
    println!(
        "  {:<28} {:<26} {:>7} {:>7} {:>7} {:>7}",
        "dataset, all images", "checkpoint", "α = 0", "α = 0.5", "α = 1", "area"
    );
    for curve in curves {
        let points = curve["points"].as_array().map(Vec::as_slice).unwrap_or_default();
        let at = |alpha: f64| {
            let point = points.iter().find(|point| point["alpha"].as_f64() == Some(alpha));
            let top1 = point.and_then(|point| point["top1"].as_f64());
            top1.map_or("–".to_owned(), |top1| format!("{:.1}", 100.0 * top1))
        };
        println!(
            "  {:<28} {:<26} {:>7} {:>7} {:>7} {:>7}",
            format!("{} ({})", text(&curve["dataset"]["title"]), text(&curve["dataset"]["role"])),
            format!("{} {:.8}", text(&curve["run"]), text(&curve["checkpoint"])),
            at(0.0),
            at(0.5),
            at(1.0),
            curve["area"].as_f64().map_or("–".to_owned(), |area| format!("{area:+.2}")),
        );
    }
}

/// What a checkpoint's best α brings, α = 0.5 and 1 beside it, on the queries that did not decide.
fn print_best(line: &Value, curves: &[&Value]) {
    let best = &line["best"];
    let Some(alpha) = best["alpha"].as_f64() else { return };
    let checkpoint = line["checkpoints"].get(0).map(text).unwrap_or_default();
    let chosen = match best["chosen"].as_str() {
        Some("half") => "chosen on one half of the images, numbers of the other half",
        _ => "best on test",
    };
    println!(
        "  {checkpoint:.8}: best α {alpha}, {chosen}; points against the backbone, 95 % intervals over images"
    );
    for reported in best["reported"].as_array().into_iter().flatten() {
        let at = format!("α {}", reported["alpha"]);
        for role in reported["roles"].as_array().into_iter().flatten() {
            println!("    {at:<8} mean {:<23} {}", text(&role["role"]), difference(role));
        }
        for dataset in reported["datasets"].as_array().into_iter().flatten() {
            let curve = curves.iter().find(|curve| curve["dataset"]["digest"] == dataset["dataset"]);
            let title = curve.map(|curve| text(&curve["dataset"]["title"])).unwrap_or_default();
            println!("    {at:<8} {title:<28} {}", difference(dataset));
        }
    }
    let robustness = &line["robustness"];
    if let Some(mean) = robustness["mean"].as_f64() {
        match robustness["kind"].as_str() {
            Some("effective") => println!(
                "    effective robustness at α 1 (against a line through {} backbones): {mean:+.1}",
                robustness["backbones"]
            ),
            _ => println!("    relative to the backbone at α 1, ΔOOD − ΔID: {mean:+.1}"),
        }
    }
}

/// "+3.1 (+0.4 to +5.8, paired bootstrap)".
fn difference(value: &Value) -> String {
    let number = |name: &str| value[name].as_f64().unwrap_or(f64::NAN);
    format!(
        "{:+.1} ({:+.1} to {:+.1}, {})",
        number("delta"),
        number("low"),
        number("high"),
        text(&value["interval"]).replace('_', " ")
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Options of `causeway export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Experiment, by name or id
    experiment: String,
    /// Only this readout: "k 20", "linear probe" or "zero-shot"
    #[arg(long)]
    readout: Option<String>,
}

/// `causeway export`: every point of an experiment as CSV, complete.
///
/// # Errors
/// If there is no such experiment.
pub async fn export(connection: &super::Connection, args: ExportArgs) -> Result<()> {
    let server = connection.open()?;
    let id = server.experiment_id(&args.experiment).await?;
    let answer = server.get(&format!("/experiments/{id}/curves")).await?;
    println!(
        "run,method,seed,dataset,role,protocol,readout,dtype,alpha,top1,top5,correct,n,mean_per_class,\
         correct_per_class,queries_per_class,area,checkpoint,dataset_digest"
    );
    for curve in answer["curves"].as_array().into_iter().flatten() {
        let readout = text(&curve["readout"]);
        if args.readout.as_ref().is_some_and(|asked| !same_readout(asked, &readout)) {
            continue;
        }
        let fixed: BTreeMap<&str, String> = ["run", "method", "protocol", "readout", "dtype", "checkpoint"]
            .into_iter()
            .map(|name| (name, quoted(&curve[name])))
            .collect();
        for point in curve["points"].as_array().into_iter().flatten() {
            println!(
                "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
                fixed["run"],
                fixed["method"],
                curve["seed"],
                quoted(&curve["dataset"]["name"]),
                quoted(&curve["dataset"]["role"]),
                fixed["protocol"],
                fixed["readout"],
                fixed["dtype"],
                point["alpha"],
                point["top1"],
                point["top5"],
                point["correct"],
                point["n"],
                number(&point["mean_per_class"]),
                counts(&point["correct_per_class"]),
                counts(&curve["dataset"]["queries_per_class"]),
                number(&curve["area"]),
                fixed["checkpoint"],
                quoted(&curve["dataset"]["digest"]),
            );
        }
    }
    Ok(())
}

/// Options of `causeway values`.
#[derive(Args, Debug)]
pub struct ValuesArgs {
    /// Id of the run
    run: String,
    /// Only these metrics, comma-separated
    #[arg(long)]
    names: Option<String>,
}

/// `causeway values`: every value of a run as CSV, passed on as it arrives.
///
/// # Errors
/// If there is no such run, or the server ends before all is told.
pub async fn values(connection: &super::Connection, args: ValuesArgs) -> Result<()> {
    let server = connection.open()?;
    let mut request = server.request(Method::GET, &format!("/runs/{}/metrics.csv", args.run));
    if let Some(names) = args.names {
        request = request.query(&[("names", names)]);
    }
    let mut response = server.send(request).await?;
    let mut out = std::io::stdout().lock();
    while let Some(piece) =
        response.chunk().await.context("reading the values; what was printed is not all")?
    {
        match out.write_all(&piece) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break, // its reader has seen enough
            written => written?,
        }
    }
    Ok(())
}

/// A number, or nothing.
fn number(value: &Value) -> String {
    value.as_f64().map_or(String::new(), |number| number.to_string())
}

/// Counts of classes in label order, as one field.
fn counts(value: &Value) -> String {
    let counts = value.as_array().into_iter().flatten();
    counts.map(Value::to_string).collect::<Vec<_>>().join(" ")
}

/// A CSV field.
fn quoted(value: &Value) -> String {
    let text = text(value);
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_readout_is_known_however_it_is_written() {
        assert!(same_readout("k 20", "k20") && same_readout("linear probe", "Linear-Probe"));
        assert!(!same_readout("k 20", "k 2"));
    }

    #[test]
    fn a_difference_is_printed_with_its_named_interval() {
        let value = json!({"delta": 3.12, "low": -0.2, "high": 5.0, "interval": "paired_bootstrap"});
        assert_eq!(difference(&value), "+3.1 (-0.2 to +5.0, paired bootstrap)");
        assert_eq!((counts(&json!([1, 2])), counts(&Value::Null)), ("1 2".to_owned(), String::new()));
    }
}
