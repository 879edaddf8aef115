//! A pilot: the command line of `causeway-trainer work` as a batch system is to run it, and what every way of running
//! it has in common. Its token is in a file that only its owner reads: never on a command line, never in a job's text.

use crate::auth;
use anyhow::{Context, Result, bail, ensure};
use causeway_connect::Trust;
use clap::Args;
use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf};

/// Name of the pilots' token in the work folder.
pub const TOKEN: &str = "worker.token";
/// Seconds that a pilot keeps of the warning before its end, after its attempts have had theirs.
const LAST_SECONDS: u64 = 30;
/// Least warning before the end: enough for a step, a state and the goodbye.
pub const MARGIN_MIN: u64 = 40;

/// Options of every pilot.
#[derive(Args, Debug, Clone)]
pub struct PilotArgs {
    /// Folder that this machine and the nodes share: the pilots' token, their logs and their attempts
    #[arg(long, value_name = "DIR")]
    pub work_dir: PathBuf,
    /// Folder of assets on the nodes; may be given several times
    #[arg(long, value_name = "DIR", required = true, value_delimiter = ':')]
    pub data: Vec<PathBuf>,
    /// The trainer on the nodes; by default the one beside this program
    #[arg(long, value_name = "FILE")]
    pub trainer: Option<PathBuf>,
    /// URL of the server as the nodes reach it; by default the one used here
    #[arg(long, value_name = "URL")]
    pub pilot_server: Option<String>,
    /// File, on the nodes, of the authority that signed the server's certificate, unless it is a public one
    #[arg(long, value_name = "FILE")]
    pub pilot_ca: Option<PathBuf>,
    /// Let pilots ask a server on another machine over plain http, on a network that you trust
    #[arg(long)]
    pub pilot_insecure_http: bool,
    /// Devices of a pilot, such as cuda:0,cuda:1 or cpu; by default as many as it asks GPUs for, or else the CPU
    #[arg(long, value_delimiter = ',', value_name = "DEVICES")]
    pub devices: Vec<String>,
    /// Threads of one attempt; the cores shared out among the devices if not given
    #[arg(long)]
    pub threads: Option<u32>,
    /// Seconds after which a pilot without work ends
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub idle: u64,
    /// Seconds ahead of its time limit at which a pilot is told to end: its run then goes back with its state
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(MARGIN_MIN..))]
    pub margin_seconds: u64,
    /// A line of shell before the trainer, such as 'module load cuda'; may be given several times
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    pub setup: Vec<String>,
}

impl PilotArgs {
    /// The devices of a pilot that asks for so many GPUs.
    pub fn devices(&self, gpus: u32) -> Vec<String> {
        match (&self.devices[..], gpus) {
            ([], 0) => vec!["cpu".to_owned()],
            ([], gpus) => (0..gpus).map(|index| format!("cuda:{index}")).collect(),
            (devices, _) => devices.to_vec(),
        }
    }

    /// The lines of `setup`, each ended.
    pub fn setup_lines(&self) -> String {
        self.setup.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The words of the trainer, quoted for a shell. `state` and `name` are shell words already.
    pub fn command(&self, server: &str, devices: &[String], state: &str, name: &str) -> Result<String> {
        Trust { ca: None, insecure_http: self.pilot_insecure_http }
            .check(server)
            .context("--pilot-server, for which the flag is --pilot-insecure-http")?;
        let mut words = vec![self.trainer().to_string_lossy().into_owned(), "work".to_owned()];
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("--server", server.to_owned());
        if let Some(ca) = &self.pilot_ca {
            option("--ca", ca.to_string_lossy().into_owned());
        }
        option("--token-file", self.work_dir.join(TOKEN).to_string_lossy().into_owned());
        for folder in &self.data {
            option("--data", folder.to_string_lossy().into_owned());
        }
        option("--devices", devices.join(","));
        if let Some(threads) = self.threads {
            option("--threads", threads.to_string());
        }
        option("--idle-seconds", self.idle.to_string());
        option("--grace-seconds", (self.margin_seconds - LAST_SECONDS).to_string());
        if self.pilot_insecure_http {
            words.push("--insecure-http".to_owned());
        }
        let quoted = shlex::try_join(words.iter().map(String::as_str));
        let quoted = quoted.context("the trainer's options hold a byte that no command line takes")?;
        Ok(format!("{quoted} --state {state} --name {name}"))
    }

    /// The trainer: as given, or beside this program, or wherever the nodes find it.
    fn trainer(&self) -> PathBuf {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("causeway-trainer"));
        let beside = || beside().filter(|path| path.is_file());
        self.trainer.clone().or_else(beside).unwrap_or_else(|| PathBuf::from("causeway-trainer"))
    }

    /// Refuses what would not survive its way through a job's text.
    pub fn check(&self) -> Result<()> {
        path("--work-dir", &self.work_dir.to_string_lossy())?;
        ensure!(self.work_dir.is_absolute(), "--work-dir {}: give the path from /", self.work_dir.display());
        if let Some(folder) = self.data.iter().find(|folder| !folder.is_absolute()) {
            bail!("--data {}: give the path from /, as it is on the nodes", folder.display());
        }
        for line in &self.setup {
            ensure!(!line.contains('\n'), "--setup {line:?}: one line each; give the option several times");
        }
        Ok(())
    }

    /// Makes the work folder, and puts the token there.
    pub fn keep_token(&self, secret: &str) -> Result<()> {
        self.make_folders()?;
        auth::write_private(&self.work_dir.join(TOKEN), secret)
    }

    /// The token in the work folder, if there is one.
    pub fn token(&self) -> Option<String> {
        let text = fs::read_to_string(self.work_dir.join(TOKEN)).ok()?;
        Some(text.trim().to_owned()).filter(|secret| !secret.is_empty())
    }

    fn make_folders(&self) -> Result<()> {
        let logs = self.work_dir.join("log");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&logs);
        made.with_context(|| format!("--work-dir: making the folder {}", logs.display()))
    }
}

/// Refuses a value that could not stand in an option line of a batch script.
pub fn word(option: &str, value: &str) -> Result<()> {
    without("\"'\\#", option, value)
}

/// Refuses a path that would need quoting in a shell, or that a batch system would fill in.
pub fn path(option: &str, value: &str) -> Result<()> {
    without("\"'\\#%$`;&|<>()*?[]{}~!", option, value)
}

fn without(these: &str, option: &str, value: &str) -> Result<()> {
    ensure!(!value.is_empty(), "{option} is empty");
    if let Some(found) = value.chars().find(|c| c.is_whitespace() || c.is_control() || these.contains(*c)) {
        bail!("{option} {value:?}: {found:?} cannot stand in the text of a job");
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A pilot's options with nothing taken from this machine.
    pub fn args() -> PilotArgs {
        PilotArgs {
            work_dir: "/scratch/cw".into(),
            data: vec!["/data".into(), "/data/my assets".into()],
            trainer: Some("/opt/cw/causeway-trainer".into()),
            pilot_server: Some("https://head:7411".into()),
            pilot_ca: None,
            pilot_insecure_http: false,
            devices: Vec::new(),
            threads: None,
            idle: 300,
            margin_seconds: 120,
            setup: vec!["module load cuda".into()],
        }
    }

    #[test]
    fn a_pilot_has_a_device_for_each_gpu_it_asks_for() {
        assert_eq!(args().devices(0), ["cpu"]);
        assert_eq!(args().devices(2), ["cuda:0", "cuda:1"]);
        let fake = PilotArgs { devices: vec!["cpu".into()], ..args() };
        assert_eq!(fake.devices(2), ["cpu"]);
    }

    #[test]
    fn the_command_names_the_tokens_file_and_not_the_token() {
        let command =
            args().command("https://head:7411", &["cpu".to_owned()], "\"$state\"", "\"$name\"").unwrap();
        assert_eq!(
            command,
            "/opt/cw/causeway-trainer work --server https://head:7411 --token-file /scratch/cw/worker.token --data /data \
             --data '/data/my assets' --devices cpu --idle-seconds 300 --grace-seconds 90 --state \"$state\" --name \"$name\""
        );
    }

    #[test]
    fn pilots_send_their_token_over_tls_or_by_express_wish() {
        let command = |pilot: PilotArgs, server: &str| pilot.command(server, &["cpu".to_owned()], "s", "n");
        let error = format!("{:#}", command(args(), "http://head:7411").unwrap_err());
        assert!(error.contains("--pilot-insecure-http"), "{error}");
        let wished = PilotArgs { pilot_insecure_http: true, ..args() };
        assert!(command(wished, "http://head:7411").unwrap().contains(" --insecure-http --state s"));
        let lab = PilotArgs { pilot_ca: Some("/etc/lab.pem".into()), ..args() };
        assert!(command(lab, "https://head:7411").unwrap().contains(" --ca /etc/lab.pem "));
    }

    #[test]
    fn the_token_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let pilot = PilotArgs { work_dir: folder.path().join("work"), ..args() };
        assert_eq!(pilot.token(), None);
        pilot.keep_token("cww_secret").unwrap();
        assert_eq!(pilot.token().as_deref(), Some("cww_secret"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(pilot.work_dir.join(TOKEN)), 0o600);
        assert_eq!(mode(pilot.work_dir), 0o700);
    }

    #[test]
    fn what_would_break_a_jobs_text_is_refused_by_its_option() {
        for (bad, what) in [
            (PilotArgs { work_dir: "/a b".into(), ..args() }, "--work-dir \"/a b\": ' '"),
            (PilotArgs { work_dir: "w".into(), ..args() }, "--work-dir w: give the path from /"),
            (PilotArgs { data: vec!["d".into()], ..args() }, "--data d: give the path from /"),
            (PilotArgs { setup: vec!["a\nb".into()], ..args() }, "--setup"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        args().check().unwrap();
    }
}
