//! `causeway launch`: workers from a batch system. A pilot is a job that runs `causeway-trainer work` for as long as there
//! is something to do; the launcher keeps as many of them queued as the waiting runs need. What it knows it reads: the
//! runs and the workers from the server, the pilots from the batch system. So it may be killed, restarted or run twice,
//! and a restart doubles nothing.

mod assets;
mod decide;
mod keep;
mod kubernetes;
mod lsf;
mod pilot;
mod server;
mod slurm;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Options of `causeway launch`.
#[derive(Args, Debug)]
pub struct LaunchArgs {
    #[command(subcommand)]
    on: On,
}

/// What pilots are started with.
#[derive(Subcommand, Debug)]
enum On {
    /// Keep as many pilots in the Slurm queue as the waiting runs need
    Slurm(Box<slurm::SlurmArgs>),
    /// Print a batch file of pilots for LSF, to be submitted with bsub
    Lsf(Box<lsf::LsfArgs>),
    /// Print a Job of pilots for Kubernetes, to be applied with kubectl
    Kubernetes(Box<kubernetes::KubernetesArgs>),
}

/// `causeway launch`: until SIGINT or SIGTERM, unless there is only something to print.
///
/// # Errors
/// If an option is wrong, or neither server nor batch system can be asked at the start.
pub async fn launch(args: LaunchArgs) -> Result<()> {
    match args.on {
        On::Slurm(args) => {
            let stop = CancellationToken::new();
            let signalled = stop.clone();
            tokio::spawn(async move {
                crate::serve::wait_for_signal().await;
                signalled.cancel();
            });
            slurm::run(&args, stop).await
        }
        On::Lsf(args) => args.text().map(|text| print!("{text}")),
        On::Kubernetes(args) => args.text().map(|text| print!("{text}")),
    }
}

/// A launcher inside a server, as `causeway serve --launch 'slurm …'` has it.
#[derive(Debug)]
pub struct Beside(Box<slurm::SlurmArgs>);

/// The words of `--launch` as clap reads them.
#[derive(Parser)]
#[command(name = "--launch", no_binary_name = true, disable_help_subcommand = true)]
struct Words {
    #[command(subcommand)]
    on: On,
}

impl Beside {
    /// Reads the value of `--launch`: the words that would follow `causeway launch`, quoted as for a shell.
    ///
    /// # Errors
    /// If they are not options of a launcher that runs.
    pub fn parse(line: &str) -> Result<Beside> {
        let words =
            shlex::split(line).with_context(|| format!("--launch {line:?}: a quote is not closed"))?;
        let words = Words::try_parse_from(words).with_context(|| format!("--launch {line:?}"))?;
        match words.on {
            On::Slurm(args) if !args.ends_at_once() => Ok(Beside(args)),
            _ => bail!("--launch {line:?}: a server launches `slurm` only, and without --print and --once"),
        }
    }

    /// Launches until told to stop. What fails is told and tried again; the server does not depend on it.
    pub async fn run(self, url: String, state: &Path, stop: CancellationToken) {
        let mut args = self.0;
        args.connection = args.connection.to_own(&url, &state.join("user.token"));
        if let Err(error) = slurm::run(&args, stop).await {
            tracing::error!(
                error = format!("{error:#}"),
                "the launcher has ended; the server goes on without it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_takes_the_options_of_the_command_and_says_what_is_wrong_with_them() {
        let good = "slurm --work-dir /scratch/cw --data '/data/my assets' --max-pilots 3 --partition gpu";
        let Beside(args) = Beside::parse(good).unwrap();
        assert_eq!(args.pilot.data, [Path::new("/data/my assets")]);
        for (line, what) in [
            ("slurm --work-dir '/scratch", "a quote is not closed"),
            ("slurm --data /d", "--work-dir"),
            ("slurm --work-dir /w --data /d --max-pilots 0", "--max-pilots"),
            ("slurm --work-dir /w --data /d --once", "without --print and --once"),
            ("lsf --work-dir /w --data /d --time 2:00 --print", "launches `slurm` only"),
            ("pbs", "pbs"),
        ] {
            let error = format!("{:#}", Beside::parse(line).unwrap_err());
            assert!(error.contains(what) && error.contains("--launch"), "{line}: {error}");
        }
    }
}
