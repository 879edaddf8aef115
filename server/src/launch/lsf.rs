//! LSF, by template: a batch file with an array of pilots, for `bsub`. With `--jsrun` in the way of Summit, whose batch
//! files run on a launch node and reach the compute node through `jsrun`. This has been tested as text, and never run.

use super::pilot::{PilotArgs, word};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fmt::Write;

/// Options of `causeway launch lsf`.
#[derive(Args, Debug, Clone)]
pub struct LsfArgs {
    /// What every pilot is.
    #[command(flatten)]
    pilot: PilotArgs,
    /// Pilots in the array
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pilots: u32,
    /// Project that is charged
    #[arg(long)]
    project: Option<String>,
    /// Queue
    #[arg(long)]
    queue: Option<String>,
    /// Time limit of a pilot, H:MM or minutes
    #[arg(long)]
    time: String,
    /// GPUs of a pilot
    #[arg(long, default_value_t = 6)]
    gpus: u32,
    /// Cores of a pilot
    #[arg(long, default_value_t = 42, value_parser = clap::value_parser!(u32).range(1..))]
    cores: u32,
    /// Start the trainer through jsrun, on a whole node, as on Summit
    #[arg(long)]
    jsrun: bool,
    /// Another option of bsub, such as --bsub='-alloc_flags gpudefault'; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    bsub: Vec<String>,
    /// Print the batch file; there is nothing else to do here
    #[arg(long, required = true)]
    print: bool,
}

impl LsfArgs {
    /// The batch file.
    pub fn text(&self) -> Result<String> {
        let LsfArgs { pilot, pilots, gpus, cores, .. } = self;
        pilot.check()?;
        let minutes = minutes(&self.time)
            .with_context(|| format!("--time {:?} is no time limit: H:MM or minutes", self.time))?;
        let warning = pilot.margin_seconds.div_ceil(60);
        ensure!(
            minutes >= 2 * warning,
            "--time {}: a pilot is told to end {warning} min before its limit (--margin-seconds), so a limit of less than \
             {} min leaves no time to work",
            self.time,
            2 * warning
        );
        let server = pilot.pilot_server.as_deref();
        let server = server.context("--pilot-server: give the server's URL as the nodes reach it")?;
        let work = pilot.work_dir.to_string_lossy();

        let mut text = format!(
            "#!/bin/bash -l\n\
             # {pilots} pilots of {server}. The token first, and the logs' folder:\n\
             #   install -d -m 700 {work} {work}/log && install -m 600 TOKEN_FILE {work}/worker.token\n\
             #   bsub < this file\n\
             #BSUB -J \"causeway[1-{pilots}]\"\n#BSUB -W {}\n#BSUB -wa TERM\n#BSUB -wt {warning}\n#BSUB -rn\n\
             #BSUB -o {work}/log/causeway-%I.out\n",
            self.time
        );
        for (option, value) in [("-P", &self.project), ("-q", &self.queue)] {
            if let Some(value) = value {
                word(if option == "-P" { "--project" } else { "--queue" }, value)?;
                writeln!(text, "#BSUB {option} {value}")?;
            }
        }
        if self.jsrun {
            text += "#BSUB -nnodes 1\n";
        } else {
            writeln!(text, "#BSUB -n {cores}\n#BSUB -R \"span[hosts=1]\"")?;
            if *gpus > 0 {
                writeln!(text, "#BSUB -gpu \"num={gpus}\"")?;
            }
        }
        for option in &self.bsub {
            ensure!(
                option.starts_with('-') && !option.contains('\n'),
                "--bsub {option:?}: one option of bsub, which begins with -"
            );
            writeln!(text, "#BSUB {option}")?;
        }
        let name = "\"causeway-$LSB_JOBINDEX.$LSB_JOBID\"";
        let command = pilot.command(server, &pilot.devices(*gpus), "\"$state\"", name)?;
        let begin = format!(
            "state={work}/nodes/$(hostname)/pilot-$LSB_JOBINDEX\nmkdir -p \"$state\"\nexec {command}\n"
        );
        write!(text, "\nset -e\numask 077\n{}", pilot.setup_lines())?;
        if self.jsrun {
            let begin = shlex::try_quote(&begin).context("the trainer's options hold a zero byte")?;
            write!(
                text,
                "jsrun -n 1 -r 1 -a 1 -c {cores} -g {gpus} bash -c {begin} &\n\
                 agent=$!\n\
                 # The warning comes to this shell, on the launch node; jsrun hands it on to the agent.\n\
                 trap 'kill -TERM \"$agent\" 2>/dev/null || true' TERM\n\
                 while kill -0 \"$agent\" 2>/dev/null; do wait \"$agent\" || true; done\n"
            )?;
        } else {
            text += &begin;
        }
        Ok(text)
    }
}

/// A time limit as LSF writes it, in minutes.
fn minutes(time: &str) -> Option<u64> {
    match time.split_once(':') {
        None => time.parse().ok(),
        Some((hours, minutes)) => Some(hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::pilot::tests::args;

    fn summit() -> LsfArgs {
        let pilot = PilotArgs {
            data: vec!["/gpfs/proj/data".into()],
            work_dir: "/gpfs/proj/causeway".into(),
            trainer: Some("/gpfs/proj/bin/causeway-trainer".into()),
            setup: Vec::new(),
            ..args()
        };
        LsfArgs {
            pilot,
            pilots: 4,
            project: Some("ABC123".into()),
            queue: None,
            time: "2:00".into(),
            gpus: 6,
            cores: 42,
            jsrun: true,
            bsub: Vec::new(),
            print: true,
        }
    }

    #[test]
    fn on_summit_a_pilot_has_a_node_of_six_gpus_through_jsrun() {
        assert_eq!(summit().text().unwrap(), include_str!("../../../docker/lsf/pilots.lsf"));
    }

    #[test]
    fn on_another_lsf_the_trainer_takes_the_place_of_the_script() {
        let queue = Some("gpu".into());
        let plain =
            LsfArgs { jsrun: false, gpus: 2, cores: 8, queue, bsub: vec!["-M 64GB".into()], ..summit() };
        let text = plain.text().unwrap();
        let options: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#BSUB ")).collect();
        assert_eq!(
            options,
            [
                "-J \"causeway[1-4]\"",
                "-W 2:00",
                "-wa TERM",
                "-wt 2",
                "-rn",
                "-o /gpfs/proj/causeway/log/causeway-%I.out",
                "-P ABC123",
                "-q gpu",
                "-n 8",
                "-R \"span[hosts=1]\"",
                "-gpu \"num=2\"",
                "-M 64GB",
            ]
        );
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("exec /gpfs/proj/bin/causeway-trainer work --server https://head:7411 "),
            "{last}"
        );
    }

    #[test]
    fn the_batch_files_are_sound_bash() {
        for jsrun in [true, false] {
            let text = LsfArgs { jsrun, ..summit() }.text().unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let checked = std::process::Command::new("bash").arg("-n").arg(file.path()).output().unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }

    #[test]
    fn a_limit_that_leaves_no_time_is_refused() {
        for (time, what) in [("3", "leaves no time"), ("soon", "H:MM or minutes"), ("0:03", "leaves no time")]
        {
            let error = LsfArgs { time: time.into(), ..summit() }.text().unwrap_err().to_string();
            assert!(error.contains("--time") && error.contains(what), "{error}");
        }
        let unknown = LsfArgs { pilot: PilotArgs { pilot_server: None, ..args() }, ..summit() };
        assert!(unknown.text().unwrap_err().to_string().contains("--pilot-server"));
    }
}
