//! Slurm: a pilot's batch script, and `sbatch`, `squeue` and `scancel`, which every site has and whose words have been
//! the same for a decade. Two launchers that submit at the same moment are told apart by Slurm itself: a pilot's job name
//! says whose it is and which of the pilots it is, and of one name Slurm runs one job at a time (`singleton`).

use super::{
    keep,
    pilot::{PilotArgs, word},
    server::Reader,
};
use crate::client::Connection;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::{fmt::Write, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};
use tokio_util::sync::CancellationToken;

/// How long a command of Slurm may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What Slurm's commands get of our environment, and with it the jobs: nothing that could be a secret, and none of the
/// variables that stand above the options of a script.
const ENVIRONMENT: [&str; 9] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LD_LIBRARY_PATH", "SLURM_CONF"];

/// Options of `causeway launch slurm`.
#[derive(Args, Debug, Clone)]
pub struct SlurmArgs {
    /// The server whose runs wait.
    #[command(flatten)]
    pub connection: Connection,
    /// What every pilot is.
    #[command(flatten)]
    pub pilot: PilotArgs,
    /// Pilots at most, waiting and running
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_pilots: u32,
    /// Seconds between two looks at the queues
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub poll_seconds: u64,
    /// Tells this launcher's pilots from others'; by default the server's own digits. Two launchers of one name share pilots
    #[arg(long)]
    name: Option<String>,
    /// File with a worker token for the pilots; by default one is made for them
    #[arg(long, value_name = "FILE")]
    worker_token_file: Option<std::path::PathBuf>,
    /// Partition of the pilots
    #[arg(long)]
    partition: Option<String>,
    /// Account that is charged
    #[arg(long)]
    account: Option<String>,
    /// Quality of service
    #[arg(long)]
    qos: Option<String>,
    /// Generic resources of a pilot, such as gpu:2 or gpu:a100:4
    #[arg(long)]
    gres: Option<String>,
    /// Time limit of a pilot as Slurm writes it: minutes, H:M:S or D-H
    #[arg(long)]
    time: Option<String>,
    /// Memory of a pilot as Slurm writes it: 32G
    #[arg(long)]
    memory: Option<String>,
    /// Cores of a pilot
    #[arg(long)]
    cpus: Option<u32>,
    /// Another option of sbatch, such as --sbatch=--constraint=a100; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Look once, do what is needed, and end
    #[arg(long)]
    pub once: bool,
    /// Print a pilot's batch script and submit nothing
    #[arg(long)]
    print: bool,
}

/// Launches until told to stop.
///
/// # Errors
/// If an option is wrong, or server or Slurm cannot be asked at the start.
pub async fn run(args: &SlurmArgs, stop: CancellationToken) -> Result<()> {
    args.check()?;
    let reader = Reader::new(args.connection.open()?);
    let name = match &args.name {
        Some(name) => name.clone(),
        None => reader.identity().await?,
    };
    let server = args.pilot.pilot_server.as_deref().unwrap_or(reader.url()).trim_end_matches('/').to_owned();
    let slurm = Slurm { args: args.clone(), prefix: format!("causeway-{name}-"), server };
    if args.print {
        print!("{}", slurm.script(0, &[])?);
        return Ok(());
    }
    slurm.script(0, &[])?;
    slurm.jobs().await?;
    args.provide_token(&reader, &name).await?;
    keep::keep(&slurm, reader, stop).await
}

impl SlurmArgs {
    /// Whether it only prints or looks once.
    pub fn ends_at_once(&self) -> bool {
        self.print || self.once
    }

    /// Devices of one pilot.
    pub fn devices(&self) -> Vec<String> {
        self.pilot.devices(gpus(self.gres.as_deref().unwrap_or("")))
    }

    fn check(&self) -> Result<()> {
        self.pilot.check()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if let Some(name) = self.name.as_deref().filter(|name| !name.chars().all(plain) || name.is_empty()) {
            bail!("--name {name:?}: letters, digits, - and _ only, for it is part of the jobs' name");
        }
        for option in &self.sbatch {
            ensure!(option.starts_with("--"), "--sbatch {option:?}: an option of sbatch begins with --");
            word("--sbatch", option)?;
        }
        if let Some(time) = &self.time {
            let seconds = seconds(time).with_context(|| {
                format!("--time {time:?} is no time limit: minutes, H:M:S, D-H, D-H:M:S or UNLIMITED")
            })?;
            let margin = self.pilot.margin_seconds;
            ensure!(
                seconds >= 2 * margin,
                "--time {time}: a pilot is told to end {margin} s before its limit (--margin-seconds), so a limit of less \
                 than {} s leaves no time to work",
                2 * margin
            );
        }
        Ok(())
    }

    /// Puts a token that the server takes where the pilots find it.
    async fn provide_token(&self, reader: &Reader, name: &str) -> Result<()> {
        if let Some(file) = &self.worker_token_file {
            let place = || format!("--worker-token-file {}", file.display());
            let secret = std::fs::read_to_string(file).with_context(place)?;
            let taken = reader.takes_worker(secret.trim()).await.with_context(place)?;
            ensure!(taken, "{}: the server does not know this token", place());
            return self.pilot.keep_token(secret.trim());
        }
        if let Some(secret) = self.pilot.token()
            && reader.takes_worker(&secret).await?
        {
            return Ok(());
        }
        self.pilot.keep_token(&reader.make_worker_token(&format!("pilots of {name}")).await?)
    }
}

/// GPUs in a list of generic resources.
fn gpus(gres: &str) -> u32 {
    let count = |entry: &str| {
        let entry = entry.trim_start_matches("gres/").trim_start_matches("gres:");
        let mut words = entry.split(':');
        let is_gpu = words.next() == Some("gpu");
        is_gpu.then(|| words.next_back().map_or(1, |last| last.parse().unwrap_or(1)))
    };
    gres.split(',').filter_map(count).sum()
}

/// A time limit as Slurm writes it, in seconds.
fn seconds(time: &str) -> Option<u64> {
    if ["UNLIMITED", "INFINITE"].contains(&time.to_ascii_uppercase().as_str()) {
        return Some(u64::MAX);
    }
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u64>().ok()?), rest),
        None => (None, time),
    };
    let parts = rest.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let (hours, minutes, seconds) = match (days, parts[..].as_ref()) {
        (None, [minutes]) => (0, *minutes, 0),
        (None, [minutes, seconds]) => (0, *minutes, *seconds),
        (Some(_), [hours]) => (*hours, 0, 0),
        (Some(_), [hours, minutes]) => (*hours, *minutes, 0),
        (_, [hours, minutes, seconds]) => (*hours, *minutes, *seconds),
        _ => return None,
    };
    Some(((days.unwrap_or(0) * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// A cluster, seen by one launcher.
pub struct Slurm {
    /// What was asked for.
    pub args: SlurmArgs,
    /// What the names of our jobs begin with.
    prefix: String,
    /// The server's URL on the nodes.
    pub server: String,
}

/// What Slurm does with a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// It waits.
    Pending,
    /// It has nodes.
    Running,
    /// It is over, and Slurm still tidies up.
    Ending,
}

/// One of our jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Slurm's id.
    pub id: u64,
    /// Which of the pilots it is.
    pub slot: u32,
    /// What Slurm does with it.
    pub state: JobState,
    /// Since when it has its node, in seconds.
    pub elapsed: u64,
    /// Its node; empty as long as it waits.
    pub node: String,
    /// Why it waits, in Slurm's word.
    pub reason: String,
}

impl Slurm {
    /// The name of a pilot's worker: its job's name and its node. The next pilot of the slot on that node is the same
    /// worker, with what the one before has left there.
    pub fn worker_name(&self, slot: u32, node: &str) -> String {
        format!("{}{slot}.{node}", self.prefix)
    }

    /// Whether a worker is a pilot of ours.
    pub fn is_ours(&self, worker: &str) -> bool {
        worker.starts_with(&self.prefix)
    }

    /// Where a pilot's output is.
    pub fn log(&self, slot: u32) -> String {
        self.args.pilot.work_dir.join(format!("log/{}{slot}.out", self.prefix)).to_string_lossy().into_owned()
    }

    /// The batch script of a pilot that is to keep off some nodes.
    pub fn script(&self, slot: u32, without: &[String]) -> Result<String> {
        let SlurmArgs { pilot, partition, account, qos, gres, time, memory, cpus, sbatch, .. } = &self.args;
        let mut script = String::from("#!/bin/bash -l\n");
        let mut option = |name: &str, value: &str| -> Result<()> {
            word(&format!("--{name}"), value)?;
            Ok(writeln!(script, "#SBATCH --{name}={value}")?)
        };
        option("job-name", &format!("{}{slot}", self.prefix))?;
        option("dependency", "singleton")?;
        option("signal", &format!("B:TERM@{}", pilot.margin_seconds))?;
        option("nodes", "1")?;
        option("ntasks", "1")?;
        option("open-mode", "append")?;
        let log = pilot.work_dir.join("log").to_string_lossy().into_owned();
        let cpus = cpus.map(|cpus| cpus.to_string());
        let given = [
            ("partition", partition),
            ("account", account),
            ("qos", qos),
            ("gres", gres),
            ("time", time),
            ("mem", memory),
            ("cpus-per-task", &cpus),
        ];
        for (name, value) in given {
            value.as_deref().map(|value| option(name, value)).transpose()?;
        }
        if !without.is_empty() {
            option("exclude", &without.join(","))?;
        }
        writeln!(script, "#SBATCH --output={log}/%x.out\n#SBATCH --no-requeue")?;
        for option in sbatch {
            writeln!(script, "#SBATCH {option}")?;
        }
        let work = pilot.work_dir.to_string_lossy();
        let name = "\"$SLURM_JOB_NAME.$SLURMD_NODENAME\"";
        let command = pilot.command(&self.server, &self.args.devices(), "\"$state\"", name)?;
        writeln!(
            script,
            "\nset -e\numask 077\nexport NO_COLOR=1\n{setup}\
             # A node's own folder for each pilot: process ids and locks in it are of that node.\n\
             state={work}/nodes/$SLURMD_NODENAME/pilot-{slot}\n\
             mkdir -p \"$state\"\n\
             # In the place of this shell, so that Slurm's signal ahead of the time limit reaches the agent itself.\n\
             exec {command}",
            setup = pilot.setup_lines(),
        )?;
        Ok(script)
    }

    /// Our jobs that have not ended.
    ///
    /// # Errors
    /// If Slurm does not answer.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        // The name comes last: it is the one field that could hold the separator.
        let text = call("squeue", &["--noheader", "--me", "--format=%A|%T|%M|%N|%r|%j"], "").await?;
        parse_jobs(&text, &self.prefix)
    }

    /// Submits a pilot and returns its job's id.
    ///
    /// # Errors
    /// If Slurm refuses it.
    pub async fn submit(&self, slot: u32, without: &[String]) -> Result<u64> {
        let said = call("sbatch", &["--parsable"], &self.script(slot, without)?).await?;
        // In a federation the cluster's name follows.
        let id = said.trim().split(';').next().unwrap_or_default();
        id.parse().with_context(|| format!("sbatch answered {said:?}, which is no job id"))
    }

    /// Takes back jobs, unless they have begun meanwhile.
    ///
    /// # Errors
    /// If Slurm refuses.
    pub async fn cancel(&self, jobs: &[u64]) -> Result<()> {
        let jobs: Vec<String> = jobs.iter().map(u64::to_string).collect();
        let words = ["--state=PENDING"].into_iter().chain(jobs.iter().map(String::as_str));
        call("scancel", &words.collect::<Vec<_>>(), "").await.map(drop)
    }
}

/// The jobs among squeue's lines whose name begins with the prefix and ends with a slot.
fn parse_jobs(text: &str, prefix: &str) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(6, '|').collect();
        let [id, state, elapsed, node, reason, name] = fields[..] else {
            bail!("squeue printed {line:?}, which is not id|state|time|node|reason|name");
        };
        let Some(slot) = name.strip_prefix(prefix).and_then(|slot| slot.parse().ok()) else { continue };
        let id = id.parse().with_context(|| format!("squeue printed {line:?}: {id:?} is no job id"))?;
        let state = match state {
            "PENDING" => JobState::Pending,
            "RUNNING" | "CONFIGURING" | "SUSPENDED" | "RESIZING" | "SIGNALING" => JobState::Running,
            _ => JobState::Ending,
        };
        // Slurm says INVALID where the clocks of its machines do not agree.
        let elapsed = seconds(elapsed).unwrap_or(0);
        jobs.push(Job { id, slot, state, elapsed, node: node.to_owned(), reason: reason.to_owned() });
    }
    Ok(jobs)
}

/// Runs one of Slurm's commands and returns what it printed.
async fn call(program: &str, words: &[&str], input: &str) -> Result<String> {
    let environment = std::env::vars_os().filter(|(name, _)| ENVIRONMENT.iter().any(|known| name == known));
    let mut command = Command::new(program);
    command.args(words).env_clear().envs(environment).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {program}: Slurm's commands must be on this machine's PATH"))?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    let run = async {
        // A command that does not read its input says why on its way out.
        let _ = pipe.write_all(input.as_bytes()).await;
        drop(pipe);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, run)
        .await
        .with_context(|| format!("{program} has not ended within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        bail!("{program} failed ({}): {}", output.status, lines.join("; "));
    }
    String::from_utf8(output.stdout).with_context(|| format!("what {program} printed"))
}

#[cfg(test)]
pub mod tests;
