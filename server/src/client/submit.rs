//! Submitting runs, watching them and stopping them.

use super::{http::Server, spec_file::expand, upload::upload};
use anyhow::{Result, bail};
use clap::Args;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

/// Pause between two looks at a run.
const POLL: Duration = Duration::from_secs(2);

/// Options of `causeway submit`.
#[derive(Args, Debug)]
pub struct SubmitArgs {
    /// Spec file (TOML); with a `[submit]` table it makes several runs
    file: PathBuf,
    /// Set a field: `--set training.steps=50`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Names this submission: sent twice under one key, it makes its runs once
    #[arg(long)]
    key: Option<String>,
    /// Print the specs and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until every run has ended; the exit code is 0 only if all succeeded
    #[arg(long)]
    wait: bool,
}

/// `causeway submit`.
///
/// # Errors
/// If a spec is refused, a file cannot be uploaded, or (with --wait) a run does not succeed.
pub async fn submit(connection: &super::Connection, args: SubmitArgs) -> Result<()> {
    let specs = expand(&args.file, &args.settings)?;
    if args.dry_run {
        for spec in &specs {
            println!("{}", serde_json::to_string_pretty(spec)?);
        }
        return Ok(());
    }
    let server = connection.open()?;
    let mut ids = Vec::new();
    for (index, mut spec) in specs.into_iter().enumerate() {
        upload_files(&server, &mut spec, args.file.parent().unwrap_or(Path::new("."))).await?;
        let mut request = server.request(Method::POST, "/runs").json(&spec);
        if let Some(key) = &args.key {
            request = request.header("Idempotency-Key", format!("{key}/{index}"));
        }
        let response = server.send(request).await?;
        let earlier = response.status() == StatusCode::OK;
        let run: Value = response.json().await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let minutes = run["estimate"]["minutes"]
            .as_f64()
            .map_or("unknown time".to_owned(), |m| format!("about {m} min"));
        let note = if earlier { "submitted before" } else { minutes.as_str() };
        println!(
            "{}  {}  ({note})  {}/runs/{}",
            text(&run["id"]),
            text(&run["name"]),
            server.url,
            text(&run["id"])
        );
        ids.push(text(&run["id"]));
    }
    if args.wait { wait(&server, &ids).await } else { Ok(()) }
}

/// Uploads the weights that a spec names by path, and names them by digest instead.
pub(super) async fn upload_files(server: &Server, spec: &mut Value, beside: &Path) -> Result<()> {
    for end in ["theta0", "theta1"] {
        let Some(file) = spec["weights"][end]["file"].as_str() else { continue };
        // As everywhere on a command line, relative to where one stands; else beside the spec file.
        let here = PathBuf::from(file);
        let path = if here.exists() { here } else { beside.join(file) };
        let sha256 = upload(server, &path).await?;
        spec["weights"][end] = json!({ "blob": sha256 });
    }
    if let Some(Value::Array(soup)) = spec.pointer_mut("/weights/theta1/soup/checkpoints") {
        for entry in soup {
            let Some(file) = entry.as_str() else { continue };
            let path = [PathBuf::from(file), beside.join(file)].into_iter().find(|path| path.is_file());
            // Otherwise the digest of a checkpoint that the server has.
            if let Some(path) = path {
                *entry = json!(upload(server, &path).await?);
            }
        }
    }
    Ok(())
}

/// Options of `causeway runs`.
#[derive(Args, Debug)]
pub struct RunsArgs {
    /// Only this experiment's (name or id)
    #[arg(long)]
    experiment: Option<String>,
    /// Only runs in this state
    #[arg(long)]
    state: Option<String>,
}

/// `causeway runs`.
///
/// # Errors
/// If the server cannot be reached or refuses.
pub async fn runs(connection: &super::Connection, args: RunsArgs) -> Result<()> {
    let server = connection.open()?;
    let mut path = String::from("/runs?");
    if let Some(experiment) = &args.experiment {
        path += &format!("experiment={}&", server.experiment_id(experiment).await?);
    }
    if let Some(state) = &args.state {
        path += &format!("state={state}");
    }
    let rows = server.list(path.trim_end_matches(['&', '?'])).await?;
    if rows.is_empty() {
        println!("no runs yet; submit one: causeway submit configs/demo.toml");
    }
    for run in rows {
        println!("{}  {}", run["id"].as_str().unwrap_or_default(), line(&run));
    }
    Ok(())
}

/// One run on one line: state, where it is, name, why it ended.
fn line(run: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let progress = &run["progress"];
    let place = match (text(&run["state"]).as_str(), progress["total"].as_f64()) {
        ("running", Some(total)) if total > 0.0 => {
            let done = progress["done"].as_f64().unwrap_or(0.0);
            format!("{} {:.0} %", text(&progress["phase"]), 100.0 * done / total)
        }
        _ => String::new(),
    };
    format!("{:<10} {:<14} {}  {}", text(&run["state"]), place, text(&run["name"]), text(&run["reason"]))
        .trim_end()
        .to_owned()
}

/// Options of `causeway watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Ids of the runs
    #[arg(required = true)]
    runs: Vec<String>,
}

/// `causeway watch`.
///
/// # Errors
/// If a run does not exist, or does not succeed.
pub async fn watch(connection: &super::Connection, args: WatchArgs) -> Result<()> {
    wait(&connection.open()?, &args.runs).await
}

/// Prints what changes until every run has ended.
async fn wait(server: &Server, ids: &[String]) -> Result<()> {
    let mut last: BTreeMap<&str, String> = BTreeMap::new();
    let live = std::io::stdout().is_terminal();
    loop {
        let (mut ended, mut bad) = (0, Vec::new());
        for id in ids {
            let run = server.get(&format!("/runs/{id}")).await?;
            let state = run["state"].as_str().unwrap_or_default().to_owned();
            // On a pipe only changes of state are worth a line.
            let shown = if live {
                line(&run)
            } else {
                format!("{state} {}", run["name"].as_str().unwrap_or_default())
            };
            if last.get(id.as_str()) != Some(&shown) {
                println!("{}", line(&run));
                last.insert(id, shown);
            }
            match state.as_str() {
                "succeeded" => ended += 1,
                "failed" | "cancelled" | "lost" => {
                    ended += 1;
                    bad.push(format!(
                        "{} {state}: {}",
                        run["name"].as_str().unwrap_or_default(),
                        run["reason"]
                    ));
                }
                _ => {}
            }
        }
        if ended == ids.len() {
            if bad.is_empty() {
                return Ok(());
            }
            bail!("{} of {} runs did not succeed:\n  {}", bad.len(), ids.len(), bad.join("\n  "));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Options of `causeway cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// Ids of the runs
    #[arg(required = true)]
    runs: Vec<String>,
}

/// `causeway cancel`.
///
/// # Errors
/// If a run does not exist or has ended.
pub async fn cancel(connection: &super::Connection, args: CancelArgs) -> Result<()> {
    let server = connection.open()?;
    for id in &args.runs {
        let request = server.request(Method::POST, &format!("/runs/{id}/cancel"));
        let run: Value = server.send(request).await?.json().await?;
        println!("{}", line(&run));
    }
    Ok(())
}
