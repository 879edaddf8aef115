//! One attempt: the training process. It reads its assignment and its blobs from its own folder, appends to the
//! journal there, and leaves a result. It opens no socket and knows no server: `work` runs it under an agent, `train`
//! and `evaluate` run it for a person, and it is the same attempt.

mod analyse;
mod command;
pub mod ending;
pub mod environment;
pub mod interrupt;
mod kept;
pub mod material;
pub(crate) mod narrate;
mod soup;

use crate::data::asset::{AssetKind, Library, file_sha256};
use crate::device;
use crate::evaluate::parts::Brought;
use crate::evaluate::readout::Readouts;
use crate::evaluate::store::{self, Place, Store};
use crate::evaluate::sweep::{self, Measured, Sweep};
use crate::journal::Journal;
use crate::methods::{self, Widths};
use crate::train::{self, TrainRun};
use crate::weights::Backbone;
use crate::weights::checkpoint::Recipe;
use crate::weights::interpolate::Line;
use analyse::Analyse;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{BlobRef, Environment, Event, Kind, LeaseGrant, Outcome, Phase, Spec, WeightSource};
use command::Crashed;
use ending::Ending;
use interrupt::Interrupted;
use material::Material;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tch::Device;

/// Name of the assignment in the attempt's folder.
const FILE_NAME: &str = "attempt.json";
/// Folder of the blobs that the agent has fetched, each named by its sha256.
pub const BLOBS: &str = "blobs";

/// Folder of features, inside the folder that it belongs to.
pub const FEATURES: &str = "features";

/// Set for the process unless its starter's environment says otherwise.
///
/// Threads that wait for work sleep instead of spinning: beside other processes, spinning halves the speed. But a sleeper
/// takes long to wake, most of all on a virtual machine, so they look a thousand times first: a sweep in bf16
/// takes 7 % less alone, and two on the same cores 5 % more each. And glibc keeps freed memory: activations come and go many times a second, megabytes each,
/// and memory that was given back is cleared and mapped anew page by page. 32 MiB is the most that it takes from the heap.
pub const PROCESS_ENVIRONMENT: [(&str, &str); 4] = [
    ("OMP_WAIT_POLICY", "PASSIVE"),
    ("GOMP_SPINCOUNT", "1000"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "9223372036854775807"),
];

/// What the process is to do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The lease it works under.
    pub lease: LeaseGrant,
    /// Where assets are.
    pub data: Vec<PathBuf>,
    /// Intra-op threads.
    pub threads: u32,
    /// Where features are kept; in the attempt's own folder if not given.
    #[serde(default)]
    pub cache: Option<Place>,
    /// URL of the server, for a command that reports there.
    #[serde(default)]
    pub server: Option<String>,
}

impl Assignment {
    /// Puts the assignment into the attempt's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE_NAME);
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Reads the assignment from the attempt's folder.
    pub fn read(folder: &Path) -> Result<Assignment> {
        let path = folder.join(FILE_NAME);
        let context = || format!("reading the assignment {}", path.display());
        serde_json::from_slice(&std::fs::read(&path).with_context(context)?).with_context(context)
    }
}

/// Runs the attempt in a folder and returns the process's exit code. Whatever happens is told: by the result, or, after
/// a panic inside libtorch or a disk without a byte left, by the exit code and the last line of stderr.
pub fn run(folder: &Path) -> i32 {
    std::panic::set_hook(Box::new(tell_panic));
    let attempted = catch_unwind(AssertUnwindSafe(|| {
        Ending::reserve(folder)?;
        let mut journal = Journal::open(folder)?;
        let assignment = Assignment::read(folder)?;
        if assignment.lease.spec.kind == Kind::Command {
            interrupt::listen();
            return command::run(folder, &mut journal, &assignment, &interrupt::asked);
        }
        Attempt::begin(folder, &mut journal, assignment)?.run()
    }));
    let Ok(attempted) = attempted else { return ending::EXIT_PANIC };
    let ended = match &attempted {
        Ok(Done::All) => Ending::succeeded(),
        Ok(Done::Training) => Ending::handed_over(),
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(interrupted) => Ending::yielded(interrupted),
            None => match error.downcast_ref::<Crashed>() {
                Some(crashed) => Ending::crashed(&crashed.reason),
                None => Ending::failed(error),
            },
        },
    };
    if ended.outcome == Outcome::Yielded {
        eprintln!("{}", ended.reason);
    } else if let Err(error) = &attempted {
        eprintln!("{error:?}");
        eprintln!("failed: {}", ended.reason);
    }
    match (ended.write(folder), &attempted) {
        (Ok(()), Err(error)) if ended.outcome == Outcome::Crashed => {
            error.downcast_ref::<Crashed>().map_or(ending::EXIT_FAILED, |crashed| crashed.code)
        }
        (Ok(()), _) if ended.outcome != Outcome::Failed => 0,
        (Ok(()), _) => ending::EXIT_FAILED,
        (Err(error), _) => {
            eprintln!("{error:#}");
            let full =
                ending::is_disk_full(&error) || attempted.is_err_and(|error| ending::is_disk_full(&error));
            if full { ending::EXIT_DISK_FULL } else { ending::EXIT_PANIC }
        }
    }
}

/// The last line that a panic prints is the one that says what happened: the agent shows it as the reason. libtorch's
/// messages go on with a trace of C++ frames.
fn tell_panic(panic: &std::panic::PanicHookInfo) {
    let message = panic.payload_as_str().unwrap_or("a panic without a message");
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    lines.for_each(|line| eprintln!("{line}"));
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    eprintln!("panicked{place}: {first}");
}

/// Into the journal, and in words into the log.
fn tell(journal: &mut Journal, event: Event) -> Result<()> {
    narrate::narrate(&event);
    journal.append(event)
}

/// Number of values that a run trains in the encoder.
fn trainable(spec: &Spec, backbone: &Backbone, widths: Widths) -> Result<u64> {
    let Ok(recipe) = Recipe::of(spec) else { return Ok(0) };
    Ok(methods::trainable(&recipe, backbone, widths)?.iter().map(|(_, values)| values).sum())
}

/// What an attempt that went well has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    /// All of it.
    All,
    /// The training; the evaluation is for the run's parts.
    Training,
}

/// An attempt under way.
struct Attempt<'a> {
    folder: &'a Path,
    journal: &'a mut Journal,
    lease: LeaseGrant,
    environment: Environment,
    library: Library,
    device: Device,
    cache: Place,
}

impl<'a> Attempt<'a> {
    fn begin(folder: &'a Path, journal: &'a mut Journal, assignment: Assignment) -> Result<Attempt<'a>> {
        let Assignment { lease, data, threads, cache, .. } = assignment;
        let cache =
            cache.unwrap_or_else(|| Place { folder: folder.join(FEATURES), most_bytes: store::MOST_BYTES });
        let device = device::open(&lease.device)?;
        tch::set_num_threads(threads as i32);
        tch::set_num_interop_threads(1);
        let environment = environment::environment(&lease.device, threads);
        // Nothing of earlier attempts is hidden once training is over.
        let all_steps = lease.spec.training.as_ref().map_or(0, |training| training.steps);
        let resumed_step = match lease.phase {
            Phase::Train => lease.resume.as_ref().map_or(0, |resume| resume.step),
            Phase::Evaluate => all_steps,
        };
        let phase = lease.phase;
        tell(journal, Event::Started { environment: environment.clone(), phase, resumed_step })?;
        Ok(Attempt { folder, journal, lease, environment, library: Library::find(&data), device, cache })
    }

    fn run(mut self) -> Result<Done> {
        let spec = self.lease.spec.clone();
        let backbone = match &spec.weights.theta0 {
            WeightSource::Fresh(architecture) => Backbone::fresh(architecture, spec.seed),
            source => Backbone::read(&self.weights(source)?),
        };
        let backbone = backbone.context("loading θ0")?;
        backbone.config.check_image_size(spec.evaluation.image_size).context("`evaluation.image_size`")?;
        // Other models are opened for this, so once.
        let widths = material::widths(&spec, &self.library)?;
        self.tell(Event::Backbone {
            digest: backbone.digest.clone(),
            parameters: backbone.tensors.values(),
            trainable: trainable(&spec, &backbone, widths)?,
        })?;
        // Before training, so that a corrupt image is known now and not when the checkpoint is waiting for it.
        let datasets =
            sweep::read_datasets(&self.library, &spec.evaluation, self.environment.threads as usize)?;
        let readouts = Readouts::prepare(&spec.evaluation, &datasets, &self.library, &backbone.config)?;

        let theta1 = match (spec.kind, self.lease.phase) {
            (Kind::Finetune | Kind::Pretrain, Phase::Train) => {
                let checkpoint = self.train(&spec, &backbone, &datasets, widths)?;
                if spec.evaluation.parts > 1 {
                    return Ok(Done::Training);
                }
                checkpoint
            }
            (Kind::Finetune | Kind::Pretrain, Phase::Evaluate) => {
                let checkpoint = self.lease.checkpoint.clone();
                self.blob(&checkpoint.context("the lease names no checkpoint to evaluate")?)?
            }
            (Kind::Command, _) => bail!("a command has no weights"),
            (Kind::Evaluate, _) => {
                match spec.weights.theta1.as_ref().context("`weights.theta1` is missing")? {
                    WeightSource::Soup(soup) => self.soup(&spec, soup, &backbone)?,
                    source => self.weights(source)?,
                }
            }
        };

        self.tell(Event::Phase { phase: Phase::Evaluate })?;
        let line = Line::open(&backbone, &theta1).context("loading θ1")?;
        line.check_image_size(spec.evaluation.image_size).context("`evaluation.image_size`")?;
        let line = line.with_positions(spec.evaluation.positions);
        let line = line.with_dtype(spec.evaluation.dtype).to_device(self.device);
        narrate::evaluated(line.method()).iter().for_each(|line| narrate::say(line));
        let stamp = environment::stamp(&self.environment, spec.evaluation.batch_size);
        let store = Store::open(&self.cache)?;
        let brought = Brought::take_in(&store, &self.lease.features, &self.folder.join(BLOBS))?;
        let (part, folder) = (self.lease.part, self.folder);
        let sweep = Sweep {
            evaluation: &spec.evaluation,
            datasets: &datasets,
            readouts: &readouts,
            backbone: &backbone.digest,
            line: &line,
            known: &self.lease.known_points,
            stamp,
            made_by: environment::made_by(&self.environment),
            store: &store,
            brought,
            emit: &mut |event| tell(self.journal, event),
        };
        match part {
            Some(part) => sweep.run_part(part, folder)?,
            None => {
                sweep.run()?;
                Analyse {
                    spec: &spec,
                    analysed: &self.lease.analysed,
                    datasets: &datasets,
                    backbone: &backbone.digest,
                    line: &line,
                    environment: &self.environment,
                    folder: self.folder,
                    emit: &mut |event| tell(self.journal, event),
                }
                .run()?;
            }
        }
        Ok(Done::All)
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        tell(self.journal, event)
    }

    /// Trains and returns the file of the checkpoint.
    fn train(
        &mut self,
        spec: &Spec,
        backbone: &Backbone,
        datasets: &[Measured],
        widths: Widths,
    ) -> Result<PathBuf> {
        self.tell(Event::Phase { phase: Phase::Train })?;
        let threads = self.environment.threads as usize;
        let material = Material::read(spec, &self.library, datasets, widths, (self.device, threads))?;
        self.tell(material.event(spec))?;
        if let (Some(method), Some(objective)) = (&spec.method, &spec.objective) {
            narrate::shown(method, objective).iter().for_each(|line| narrate::say(line));
        }
        let resume = self.lease.resume.clone().map(|resume| self.blob(&resume.blob)).transpose()?;
        interrupt::listen();
        let checkpoint = train::train(TrainRun {
            spec,
            backbone,
            pairs: material.pairs(),
            language_model: material.language_model.as_ref(),
            given: &material.given,
            kept: &material.kept,
            text_encoder: material.text_encoder.as_ref(),
            resume: resume.as_deref(),
            folder: self.folder,
            device: self.device,
            journal: &mut |event| tell(self.journal, event),
        })?;
        interrupt::obey();
        Ok(self.folder.join(checkpoint.file))
    }

    /// The file of a set of weights.
    fn weights(&self, source: &WeightSource) -> Result<PathBuf> {
        match source {
            WeightSource::Asset(name) => {
                let asset = self.library.get(name, AssetKind::Weights)?;
                asset.verify()?;
                Ok(asset.weights_file())
            }
            WeightSource::Blob(sha256) => self.checked(self.folder.join(BLOBS).join(sha256), sha256),
            WeightSource::Fresh(_) | WeightSource::Soup(_) => bail!("{source:?} has no file"),
            WeightSource::Run(run) => {
                bail!(
                    "the checkpoint of run {run} is known to the server alone: submit the spec there, or name a blob"
                )
            }
            WeightSource::File(path) => {
                bail!("weights are named by asset or blob here, not by the path {path}")
            }
        }
    }

    /// A file that an earlier attempt made: fetched by the agent, or still in this folder.
    fn blob(&self, blob: &BlobRef) -> Result<PathBuf> {
        let fetched = self.folder.join(BLOBS).join(&blob.sha256);
        let path = if fetched.exists() { fetched } else { self.folder.join(&blob.file) };
        self.checked(path, &blob.sha256)
    }

    fn checked(&self, path: PathBuf, sha256: &str) -> Result<PathBuf> {
        let found = file_sha256(&path)?;
        ensure!(found == sha256, "{} is damaged: its sha256 is {found}, not {sha256}", path.display());
        Ok(path)
    }
}
