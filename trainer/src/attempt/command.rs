//! `kind = "command"`: an attempt that is a program of the lab's own. It runs in a folder of its own with its assets named
//! in its environment, prints into the run's log, and appends what is to be kept to the file in `CAUSEWAY_JOURNAL`, whose
//! lines become the attempt's. SIGTERM, which reaches the whole group of processes, asks it to give way.

use super::environment;
use super::interrupt::Interrupted;
use super::{Assignment, BLOBS, Done, PROCESS_ENVIRONMENT, tell};
use crate::agent::last_words;
use crate::data::asset::{Library, file_sha256};
use crate::journal::Journal;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{BlobRef, CommandLine, Event, LeaseGrant, Phase, ReportToken, RunProgress};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The program's folder, inside the attempt's.
const WORK: &str = "work";
/// Copies of the files that it reports.
const KEPT: &str = "kept";
/// The file it reports into.
const JOURNAL: &str = "command.jsonl";
/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(100);
/// Longest line that it may report, bytes.
const LINE_MAX: usize = 1 << 20;

/// The program ended otherwise than it should.
#[derive(Debug)]
pub struct Crashed {
    /// Why, in a sentence.
    pub reason: String,
    /// The exit code that the attempt's process is to end with.
    pub code: i32,
}

impl std::fmt::Display for Crashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Crashed {}

/// Runs the program of a lease to its end.
///
/// # Errors
/// [`Crashed`]; [`Interrupted`]; an asset that is not here; a program that cannot be started; a file that it reports and that is not there.
pub(super) fn run(
    folder: &Path,
    journal: &mut Journal,
    assignment: &Assignment,
    asked: &dyn Fn() -> bool,
) -> Result<Done> {
    let lease = &assignment.lease;
    let environment = environment::environment(&lease.device, assignment.threads);
    let resumed_step = lease.resume.as_ref().map_or(0, |resume| resume.step);
    tell(journal, Event::Started { environment, phase: Phase::Train, resumed_step })?;
    let mut reports = Reports { folder, read: 0, line: 0, rest: Vec::new() };
    let mut child = start(folder, assignment)?;
    let status = loop {
        let ended = child.try_wait().context("waiting for the command")?;
        reports.take(journal, ended.is_some())?;
        match ended {
            Some(status) => break status,
            None => std::thread::sleep(EVERY),
        }
    };
    if status.success() {
        return Ok(Done::All);
    }
    if asked() {
        return Err(Interrupted { step: None }.into());
    }
    Err(crashed(status, folder).into())
}

fn crashed(status: ExitStatus, folder: &Path) -> Crashed {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("the command ended with exit code {code}"),
        (None, signal) => format!("the command was killed by signal {}", signal.unwrap_or_default()),
    };
    let words = last_words(folder).map(|words| format!("; its last words: {words}")).unwrap_or_default();
    Crashed { reason: how + &words, code: status.code().unwrap_or(128 + status.signal().unwrap_or_default()) }
}

/// Starts the program in its folder. It dies with the attempt's process, whatever kills that.
fn start(folder: &Path, assignment: &Assignment) -> Result<Child> {
    let lease = &assignment.lease;
    let asked = lease.spec.command.as_ref().context("`command` is missing")?;
    let library = Library::find(&assignment.data);
    let folders = asked.assets.iter().map(|name| {
        let asset =
            library.assets.get(name).with_context(|| format!("there is no asset `{name}` on this worker"))?;
        Ok((name.as_str(), asset.folder.clone()))
    });
    let assets = folders.collect::<Result<Vec<_>>>()?;
    let arguments = asked.argv.iter().map(|argument| {
        assets.iter().fold(argument.clone(), |text, (name, folder)| {
            text.replace(&format!("{{asset:{name}}}"), &folder.to_string_lossy())
        })
    });
    let arguments: Vec<String> = arguments.collect();
    let (program, rest) = arguments.split_first().context("`command.argv` is empty")?;
    let work = folder.join(WORK);
    for made in [&work, &folder.join(KEPT)] {
        fs::create_dir_all(made).with_context(|| format!("making the folder {}", made.display()))?;
    }
    let mut command = Command::new(program);
    for (name, _) in PROCESS_ENVIRONMENT.iter().filter(|(name, _)| name.starts_with("MALLOC_")) {
        command.env_remove(name); // it is not known to allocate as a training does
    }
    command.args(rest).current_dir(&work).stdin(Stdio::null()).envs(&asked.environment);
    for (name, folder) in &assets {
        command.env(format!("CAUSEWAY_ASSET_{}", variable(name)), folder);
    }
    let devices = if lease.devices.is_empty() { vec![lease.device.clone()] } else { lease.devices.clone() };
    command
        .env("CAUSEWAY_JOURNAL", folder.join(JOURNAL))
        .env("CAUSEWAY_RUN_ID", lease.run_id.to_string())
        .env("CAUSEWAY_ATTEMPT", lease.attempt.to_string())
        .env("CAUSEWAY_SEED", lease.spec.seed.to_string())
        .env("CAUSEWAY_DEVICES", devices.join(","))
        .env("CAUSEWAY_THREADS", assignment.threads.to_string());
    if let Some(server) = &assignment.server {
        let token = ReportToken { lease: lease.id, epoch: lease.epoch };
        command
            .env("CAUSEWAY_REPORT_URL", format!("{}/api/v1/report", server.trim_end_matches('/')))
            .env("CAUSEWAY_REPORT_TOKEN", token.to_string());
    }
    if let Some(resume) = &lease.resume {
        command.env("CAUSEWAY_RESUME", folder.join(BLOBS).join(&resume.blob.sha256));
    }
    if let Some(visible) = visible_gpus(&devices, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()) {
        command.env("CUDA_VISIBLE_DEVICES", visible);
    }
    place(&mut command, lease);
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command.spawn().with_context(|| format!("starting the command `{program}`"))
}

/// The place among several workers, under the names that torch.distributed reads. A worker runs one program, which may
/// start one process for each of its devices.
fn place(command: &mut Command, lease: &LeaseGrant) {
    let Some(gang) = &lease.gang else { return };
    command
        .env("CAUSEWAY_NODES", gang.nodes.to_string())
        .env("CAUSEWAY_RANK", gang.rank.to_string())
        .env("MASTER_ADDR", &gang.address)
        .env("MASTER_PORT", gang.port.to_string())
        .env("WORLD_SIZE", gang.nodes.to_string())
        .env("RANK", gang.rank.to_string());
}

/// `my-data.v2` → `MY_DATA_V2`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// What CUDA shall see of `cuda:N` devices, which are counted in what this process sees; none where none is a GPU.
fn visible_gpus(devices: &[String], seen: Option<&str>) -> Option<String> {
    let seen: Option<Vec<&str>> = seen.map(|seen| seen.split(',').collect());
    let gpus = devices.iter().filter_map(|device| {
        let index = device.strip_prefix("cuda")?.trim_start_matches(':');
        let index = if index.is_empty() { "0" } else { index };
        let place: usize = index.parse().ok()?;
        Some(seen.as_ref().and_then(|seen| seen.get(place)).map_or(index, |name| name.trim()).to_owned())
    });
    let gpus: Vec<String> = gpus.collect();
    (!gpus.is_empty()).then(|| gpus.join(","))
}

/// What the program has reported so far.
struct Reports<'a> {
    folder: &'a Path,
    /// Bytes read.
    read: u64,
    /// Lines read.
    line: usize,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Reports<'_> {
    /// Takes the lines that are new into the attempt's journal. A line that cannot be read is complained of in the log and
    /// left out: hours of work must not end over a number.
    fn take(&mut self, journal: &mut Journal, ended: bool) -> Result<()> {
        let path = self.folder.join(JOURNAL);
        let Ok(mut file) = fs::File::open(&path) else { return Ok(()) };
        let context = || format!("reading {}", path.display());
        file.seek(SeekFrom::Start(self.read)).with_context(context)?;
        let count = file.read_to_end(&mut self.rest).with_context(context)?;
        self.read += count as u64;
        if ended && self.rest.last().is_some_and(|byte| *byte != b'\n') {
            self.rest.push(b'\n');
        }
        ensure!(
            self.rest.len() <= LINE_MAX || self.rest.contains(&b'\n'),
            "line {} of CAUSEWAY_JOURNAL has more than {LINE_MAX} bytes",
            self.line + 1
        );
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for text in whole.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
            self.line += 1;
            let told = serde_json::from_slice(text)
                .context("is none of the lines that the documentation names")
                .and_then(|line| self.event(line));
            match told {
                Ok(event) => journal.append(event)?,
                Err(error) => eprintln!("line {} of CAUSEWAY_JOURNAL is left out: {error:#}", self.line),
            }
        }
        Ok(())
    }

    fn event(&self, line: CommandLine) -> Result<Event> {
        Ok(match line {
            CommandLine::Metrics { step, values } => {
                ensure!(values.values().all(|value| value.is_finite()), "a value is not finite");
                Event::Metrics { step, values }
            }
            CommandLine::Progress { done, total } => Event::Progress(RunProgress::of_command(done, total)),
            CommandLine::Checkpoint { path, step } => Event::Checkpoint {
                step,
                blob: self.keep(&path)?,
                backbone: String::new(),
                method: "command".to_owned(),
            },
            CommandLine::Resume { path, step } => Event::ResumeState { step, blob: self.keep(&path)? },
        })
    }

    /// Copies a file that the program may go on writing over.
    fn keep(&self, path: &str) -> Result<BlobRef> {
        let relative = Path::new(path);
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            bail!("the file `{path}` is not inside the working folder");
        }
        let source = self.folder.join(WORK).join(relative);
        let temporary = self.folder.join(KEPT).join("new");
        let bytes = fs::copy(&source, &temporary).with_context(|| format!("copying the file `{path}`"))?;
        let sha256 = file_sha256(&temporary)?;
        let file = PathBuf::from(KEPT).join(&sha256);
        fs::rename(&temporary, self.folder.join(&file))
            .with_context(|| format!("keeping the file `{path}`"))?;
        Ok(BlobRef { sha256, bytes, file: file.to_string_lossy().into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_protocol::parse_spec;
    use serde_json::json;

    /// Runs a shell script as the command of an attempt; gives what became of it and the journal's lines.
    fn attempt(script: &str, asked: &dyn Fn() -> bool) -> (Result<Done>, Vec<serde_json::Value>) {
        let folder = tempfile::tempdir().unwrap();
        let spec = json!({"experiment": "e", "kind": "command", "seed": 5,
                          "command": {"argv": ["sh", "-c", script], "environment": {"MINE": "a b"}}});
        let lease = json!({"id": uuid::Uuid::nil(), "run_id": uuid::Uuid::nil(), "attempt": 1, "epoch": 1,
            "device": "cpu:0", "devices": ["cpu:0", "cpu:1"], "spec": parse_spec(spec).unwrap(), "phase": "train",
            "gang": {"rank": 1, "nodes": 2, "address": "first", "port": 20000},
            "resume": null, "checkpoint": null, "known_points": [], "expires_in_ms": 1});
        let lease = serde_json::from_value(lease).unwrap();
        let server = Some("http://there/".to_owned());
        let assignment = Assignment { lease, data: Vec::new(), threads: 1, cache: None, server };
        let mut journal = Journal::open(folder.path()).unwrap();
        let done = run(folder.path(), &mut journal, &assignment, asked);
        let text = fs::read_to_string(folder.path().join(crate::journal::FILE_NAME)).unwrap();
        (done, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    #[test]
    fn what_a_command_reports_becomes_the_attempt_s_journal() {
        let script = r#"
            echo '{"metrics": {"step": 1, "values": {"loss": 0.5}}}' >> "$CAUSEWAY_JOURNAL"
            echo 'no json' >> "$CAUSEWAY_JOURNAL"
            printf 'abc' > model.bin
            echo '{"checkpoint": {"path": "model.bin", "step": 2}}' >> "$CAUSEWAY_JOURNAL"
            echo '{"checkpoint": {"path": "../model.bin", "step": 2}}' >> "$CAUSEWAY_JOURNAL"
            printf '{"progress": {"done": 2, "total": 2}}' >> "$CAUSEWAY_JOURNAL""#;
        let (done, lines) = attempt(script, &|| false);
        assert_eq!(done.unwrap(), Done::All);
        let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["started", "metrics", "checkpoint", "progress"]);
        assert_eq!(lines[1]["values"]["loss"], 0.5);
        // sha256 of "abc", FIPS 180-2's example.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((&lines[2]["blob"]["sha256"], &lines[2]["blob"]["bytes"]), (&json!(sha256), &json!(3)));
    }

    #[test]
    fn a_command_knows_its_place_and_its_variables() {
        let script = r#"test "$MINE" = "a b" && test "$CAUSEWAY_SEED" = 5 && test "$RANK/$WORLD_SIZE" = 1/2 &&
            test "$MASTER_ADDR:$MASTER_PORT" = first:20000 &&
            test "$CAUSEWAY_REPORT_URL" = http://there/api/v1/report &&
            test "$CAUSEWAY_REPORT_TOKEN" = cwr_00000000000000000000000000000000.1 && test "$CAUSEWAY_DEVICES" = cpu:0,cpu:1"#;
        assert_eq!(attempt(script, &|| false).0.unwrap(), Done::All);
    }

    #[test]
    fn a_command_that_fails_is_told_by_its_code_and_one_that_gives_way_has_done_so() {
        let error = attempt("exit 7", &|| false).0.unwrap_err();
        let crashed = error.downcast_ref::<Crashed>().unwrap();
        assert_eq!((crashed.code, crashed.reason.as_str()), (7, "the command ended with exit code 7"));
        let yielded = attempt("kill -TERM $$", &|| true).0.unwrap_err();
        assert_eq!(yielded.downcast_ref::<Interrupted>(), Some(&Interrupted { step: None }));
        assert_eq!(attempt("true", &|| true).0.unwrap(), Done::All, "it had done everything");
        let missing = attempt("exec /no/such/program", &|| false).0.unwrap_err();
        assert_eq!(missing.downcast_ref::<Crashed>().unwrap().code, 127);
    }

    #[test]
    fn gpus_are_named_as_cuda_will_count_them() {
        let devices = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(visible_gpus(&devices(&["cpu:0"]), None), None);
        assert_eq!(visible_gpus(&devices(&["cuda:1", "cuda:3"]), None).unwrap(), "1,3");
        assert_eq!(visible_gpus(&devices(&["cuda:1"]), Some("4,GPU-x")).unwrap(), "GPU-x");
    }
}
