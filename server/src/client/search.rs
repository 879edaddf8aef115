//! `causeway search`: submitting searches, looking at them, and steering them.

use super::{http::Server, spec_file::read, submit::upload_files};
use anyhow::{Result, bail};
use causeway_protocol::{Search, parse_search, point_words};
use clap::Args;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Trials that `show` prints.
const SHOWN: usize = 20;

/// Options of `causeway search submit`.
#[derive(Args, Debug)]
pub struct SearchSubmitArgs {
    /// Search file (TOML)
    file: PathBuf,
    /// Set a field: `--set strategy.trials=8`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Names this submission: sent twice under one key, it makes one search
    #[arg(long)]
    key: Option<String>,
    /// Print the trials and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// `causeway search submit`.
///
/// # Errors
/// If the search is refused, or a file cannot be uploaded.
pub async fn submit_search(connection: &super::Connection, args: SearchSubmitArgs) -> Result<()> {
    let mut document = read(&args.file, &args.settings)?;
    if args.dry_run {
        return print_trials(document);
    }
    let server = connection.open()?;
    if let Some(spec) = document.get_mut("spec") {
        upload_files(&server, spec, args.file.parent().unwrap_or(Path::new("."))).await?;
    }
    let mut request = server.request(Method::POST, "/searches").json(&document);
    if let Some(key) = &args.key {
        request = request.header("Idempotency-Key", key);
    }
    let response = server.send(request).await?;
    let earlier = response.status() == StatusCode::OK;
    let search: Value = response.json().await?;
    let note = if earlier { "submitted before".to_owned() } else { format!("{} trials", search["trials"]) };
    println!(
        "{}  {}  ({note})  {}/searches/{}",
        text(&search["id"]),
        text(&search["name"]),
        server.url,
        text(&search["id"])
    );
    Ok(())
}

fn print_trials(document: Value) -> Result<()> {
    let search = match parse_search(document) {
        Ok(search) => search,
        Err(problems) => {
            let lines: Vec<String> =
                problems.iter().map(|problem| format!("  {}: {}", problem.field, problem.rule)).collect();
            bail!("this is no search:\n{}", lines.join("\n"));
        }
    };
    for (trial, point) in (1..).zip(search.points()) {
        println!("trial {trial:<4} {}", point_words(&point));
    }
    println!("{}", plan(&search));
    Ok(())
}

/// How many runs it will be, in a sentence.
fn plan(search: &Search) -> String {
    let (trials, seeds) = (search.points().len(), search.seeds.len());
    let runs = format!("{trials} trials × {seeds} seed{}", if seeds == 1 { "" } else { "s" });
    let steps: Vec<String> = search.strategy.rungs().iter().map(u64::to_string).collect();
    match (steps.is_empty(), search.is_promoted()) {
        (true, _) => format!("{runs}, judged by {}", search.objective.words()),
        (false, false) => format!(
            "{runs}, stopped at {} steps unless in the best 1/{} by {}",
            steps.join(", "),
            search.strategy.eta(),
            search.objective.words()
        ),
        (false, true) => format!(
            "{runs} of {} steps; the best 1/{} by {} are run again with {} steps",
            steps[0],
            search.strategy.eta(),
            search.objective.words(),
            steps[1..].join(", then ")
        ),
    }
}

/// Options of `causeway search list`.
#[derive(Args, Debug)]
pub struct SearchListArgs {
    /// Only this experiment's (name or id)
    #[arg(long)]
    experiment: Option<String>,
    /// Only searches in this state
    #[arg(long)]
    state: Option<String>,
}

/// `causeway search list`.
///
/// # Errors
/// If the server cannot be reached or refuses.
pub async fn list_searches(connection: &super::Connection, args: SearchListArgs) -> Result<()> {
    let server = connection.open()?;
    let mut path = String::from("/searches?");
    if let Some(experiment) = &args.experiment {
        path += &format!("experiment={}&", server.experiment_id(experiment).await?);
    }
    if let Some(state) = &args.state {
        path += &format!("state={state}");
    }
    let rows = server.list(path.trim_end_matches(['&', '?'])).await?;
    if rows.is_empty() {
        println!("no searches yet; submit one: causeway search submit configs/search-asha.toml");
    }
    for search in rows {
        println!("{}  {}", text(&search["id"]), line(&search));
    }
    Ok(())
}

/// One search on one line: state, how far it is, name, why it ended.
fn line(search: &Value) -> String {
    let waiting = search["waiting"].as_u64().unwrap_or(0) + search["running"].as_u64().unwrap_or(0);
    let all = search["trials"].as_u64().unwrap_or(0);
    let done = format!("{} of {all} trials", all.saturating_sub(waiting));
    format!(
        "{:<10} {done:<18} {}  {}",
        text(&search["state"]),
        text(&search["name"]),
        text(&search["reason"])
    )
    .trim_end()
    .to_owned()
}

/// Which search.
#[derive(Args, Debug)]
pub struct SearchIdArgs {
    /// Id of the search
    search: String,
}

/// `causeway search show`.
///
/// # Errors
/// If there is no such search.
pub async fn show_search(connection: &super::Connection, args: SearchIdArgs) -> Result<()> {
    let server = connection.open()?;
    print_search(&server.get(&format!("/searches/{}", args.search)).await?);
    Ok(())
}

fn print_search(search: &Value) {
    println!("{}", line(search));
    println!("judged by {}; those that went furthest first", text(&search["objective"]));
    let trials = search["trial_list"].as_array().cloned().unwrap_or_default();
    for trial in trials.iter().take(SHOWN) {
        let value = trial["value"].as_f64().map_or("\u{2013}".to_owned(), crate::search::shown);
        let point = serde_json::from_value(trial["point"].clone()).unwrap_or_default();
        let steps = trial["rungs"].as_array().and_then(|rungs| rungs.last()?["steps"].as_u64());
        println!(
            "{:>4}  {:<9} {value:>10} {:>12}  {}",
            trial["trial"].as_i64().unwrap_or(0),
            text(&trial["state"]),
            steps.map(|steps| format!("{steps} steps")).unwrap_or_default(),
            point_words(&point)
        );
    }
    if trials.len() > SHOWN {
        println!("      and {} more", trials.len() - SHOWN);
    }
}

/// `causeway search pause`, `resume` and `cancel`.
///
/// # Errors
/// If there is no such search, or its state forbids it.
pub async fn change_search(connection: &super::Connection, args: SearchIdArgs, action: &str) -> Result<()> {
    post(&connection.open()?, &args.search, action, None).await
}

/// Options of `causeway search extend`.
#[derive(Args, Debug)]
pub struct SearchExtendArgs {
    /// Id of the search
    search: String,
    /// Trials in all, more than now
    #[arg(long)]
    trials: Option<u32>,
    /// Training steps of the last rung, more than now
    #[arg(long)]
    max_steps: Option<u64>,
}

/// `causeway search extend`.
///
/// # Errors
/// If there is no such search, or it cannot be extended like that.
pub async fn extend_search(connection: &super::Connection, args: SearchExtendArgs) -> Result<()> {
    let body = json!({"trials": args.trials, "max_steps": args.max_steps});
    post(&connection.open()?, &args.search, "extend", Some(body)).await
}

async fn post(server: &Server, search: &str, action: &str, body: Option<Value>) -> Result<()> {
    let mut request = server.request(Method::POST, &format!("/searches/{search}/{action}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let search: Value = server.send(request).await?.json().await?;
    println!("{}", line(&search));
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
