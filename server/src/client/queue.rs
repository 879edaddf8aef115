//! The queue on the command line: what waits and why, runs set aside, moved and done again, workers out of service,
//! projects and their shares.

use anyhow::Result;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

/// Options of the commands that act on runs.
#[derive(Args, Debug)]
pub struct RunIds {
    /// Ids of the runs
    #[arg(required = true)]
    runs: Vec<String>,
}

/// `causeway pause`, `resume` and `front`: one word of the API for each run.
///
/// # Errors
/// If a run does not exist, or is in no state for it.
pub async fn act(connection: &super::Connection, args: RunIds, action: &str) -> Result<()> {
    let server = connection.open()?;
    for id in &args.runs {
        let request = server.request(Method::POST, &format!("/runs/{id}/{action}"));
        let run: Value = server.send(request).await?.json().await?;
        println!("{}  {}", text(&run["state"]), text(&run["name"]));
    }
    Ok(())
}

/// Options of `causeway clone`.
#[derive(Args, Debug)]
pub struct CloneArgs {
    /// Id of the run
    run: String,
    /// What is different, `path=value` with the value as TOML: training.steps=40
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

/// `causeway clone`: the spec of a run submitted again, changed or as it is.
///
/// # Errors
/// If there is no such run, or the changed spec breaks a rule.
pub async fn clone(connection: &super::Connection, args: CloneArgs) -> Result<()> {
    let server = connection.open()?;
    let mut changes = json!({});
    for given in &args.set {
        super::spec_file::set(&mut changes, given)?;
    }
    let request = server.request(Method::POST, &format!("/runs/{}/clone", args.run));
    let run: Value = server.send(request.json(&json!({ "changes": changes }))).await?.json().await?;
    println!("{}  {}", text(&run["id"]), text(&run["name"]));
    Ok(())
}

/// `causeway queue`: the waiting runs in their order, each with the reason it waits.
///
/// # Errors
/// If the server cannot be reached.
pub async fn queue(connection: &super::Connection) -> Result<()> {
    let entries = connection.open()?.get("/queue").await?;
    let entries = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        println!("nothing waits");
    }
    for entry in entries {
        println!(
            "{:>4}  {}  {:<28} {:<14} {}",
            entry["place"],
            text(&entry["run_id"]),
            text(&entry["name"]),
            text(&entry["project"]),
            text(&entry["why"])
        );
    }
    Ok(())
}

/// What `causeway workers` can do.
#[derive(Subcommand, Debug)]
pub enum WorkersCommand {
    /// The workers, the worst state first
    List,
    /// Take a worker out of service: it takes nothing new
    Drain {
        /// Id or name
        worker: String,
        /// Its runs save their state and go on elsewhere, instead of being finished there
        #[arg(long)]
        hand_over: bool,
    },
    /// Put a worker back to work
    Work {
        /// Id or name
        worker: String,
    },
}

/// `causeway workers`.
///
/// # Errors
/// If there is no such worker.
pub async fn workers(connection: &super::Connection, command: WorkersCommand) -> Result<()> {
    let server = connection.open()?;
    let list = server.get("/workers").await?;
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let (named, body) = match &command {
        WorkersCommand::List => {
            for worker in list {
                let devices = worker["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
                let free = devices.iter().filter(|device| device["run_id"].is_null()).count();
                println!(
                    "{}  {:<10} {:<24} {free} of {} devices free",
                    text(&worker["id"]),
                    text(&worker["state"]),
                    text(&worker["name"]),
                    devices.len()
                );
            }
            return Ok(());
        }
        WorkersCommand::Drain { worker, hand_over } => {
            (worker, json!({"drain": true, "hand_over": hand_over}))
        }
        WorkersCommand::Work { worker } => (worker, json!({"drain": false})),
    };
    let found: Vec<&Value> =
        list.iter().filter(|worker| worker["id"] == **named || worker["name"] == **named).collect();
    let [worker] = found[..] else {
        anyhow::bail!(
            "{} workers are called `{named}`: give an id out of `causeway workers list`",
            found.len()
        );
    };
    let path = format!("/workers/{}/drain", text(&worker["id"]));
    server.send(server.request(Method::POST, &path).json(&body)).await?;
    Ok(())
}

/// What `causeway projects` can do.
#[derive(Subcommand, Debug)]
pub enum ProjectsCommand {
    /// The projects: weight, limits, what they use
    List,
    /// Make a project, or change what it may take; what is not given is unlimited
    Set {
        /// Its name
        name: String,
        /// Its share of the devices, in proportion to the others'
        #[arg(long, default_value_t = 1.0)]
        weight: f64,
        /// Most devices it may hold at once
        #[arg(long)]
        devices_max: Option<i32>,
        /// Most devices that one of its users may hold at once
        #[arg(long)]
        user_devices_max: Option<i32>,
    },
}

/// `causeway projects`.
///
/// # Errors
/// If a limit breaks a rule.
pub async fn projects(connection: &super::Connection, command: ProjectsCommand) -> Result<()> {
    let server = connection.open()?;
    if let ProjectsCommand::Set { name, weight, devices_max, user_devices_max } = command {
        let body =
            json!({"weight": weight, "devices_max": devices_max, "user_devices_max": user_devices_max});
        server.send(server.request(Method::PUT, &format!("/projects/{name}")).json(&body)).await?;
    }
    let limit = |value: &Value| value.as_i64().map_or("–".to_owned(), |most| most.to_string());
    println!(
        "{:<20} {:>7} {:>8} {:>9} {:>8} {:>7} {:>13}",
        "project", "weight", "devices", "at most", "a user", "queued", "device-hours"
    );
    for project in server.get("/projects").await?.as_array().into_iter().flatten() {
        println!(
            "{:<20} {:>7} {:>8} {:>9} {:>8} {:>7} {:>13.1}",
            text(&project["name"]),
            project["weight"],
            project["devices"],
            limit(&project["devices_max"]),
            limit(&project["user_devices_max"]),
            project["queued"],
            project["recent_device_hours"].as_f64().unwrap_or(0.0)
        );
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
