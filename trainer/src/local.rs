//! `train` and `evaluate` without a server: the same attempt in the same kind of folder, with a progress bar from its
//! journal and the curves as a table at the end. Run again on the same folder, it goes on where it was stopped.

use crate::analysis;
use crate::attempt::ending::Ending;
use crate::attempt::{Assignment, BLOBS, FEATURES, PROCESS_ENVIRONMENT};
use crate::data::asset::file_sha256;
use crate::evaluate::store::Place;
use crate::journal::JournalTail;
use crate::spec_file;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::{
    Alpha, AnalysisKind, Evaluation, Event, JournalLine, Kind, KnownPoint, LeaseGrant, Phase, PointRecord,
    ResumeFrom, Spec, Training, selection_half,
};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

/// What a finished run leaves beside journal and checkpoint.
const SUMMARY: &str = "summary.json";
/// How often the attempt is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Journal lines read at once.
const LINES: usize = 1000;

/// What to run, and where.
pub struct Local {
    /// The spec's file.
    pub spec: PathBuf,
    /// What the command says it does; a finetune spec evaluated has its training left out.
    pub kind: Kind,
    /// Where assets are.
    pub data: Vec<PathBuf>,
    /// The folder of journal, checkpoint and result.
    pub out: PathBuf,
    /// The other end of the line, instead of the spec's.
    pub theta1: Option<PathBuf>,
    /// Which of the variants that submitting the spec would make, from 1.
    pub variant: usize,
    /// Instead of the spec's seed.
    pub seed: Option<u64>,
    /// Intra-op threads.
    pub threads: u32,
    /// `cpu`, or `cuda:0` and so on.
    pub device: String,
    /// Folder of features that runs share; inside `out` if not given.
    pub cache: Option<PathBuf>,
    /// Most bytes of features that are kept there.
    pub cache_bytes: u64,
}

impl Local {
    /// Runs it to its end; an attempt that failed is an error.
    pub fn run(&self) -> Result<()> {
        std::fs::create_dir_all(self.out.join(BLOBS))
            .with_context(|| format!("making the folder {}", self.out.display()))?;
        let spec = self.read_spec()?;
        let assignment = self.assignment(spec)?;
        assignment.write(&self.out)?;
        self.watch(assignment.lease.spec.training.as_ref())?;
        let (lines, spec) = (read_journal(&self.out)?, &assignment.lease.spec);
        let path = self.out.join(SUMMARY);
        std::fs::write(&path, serde_json::to_vec_pretty(&summary(&lines, spec))?)
            .with_context(|| format!("writing {}", path.display()))?;
        print!("{}", table(&lines, spec));
        for line in &lines {
            match &line.event {
                Event::Spectrum(report) => print!("\n{}", analysis::table::spectrum(report)),
                Event::Similarity(report) => print!("\n{}", analysis::table::similarity(report)),
                _ => {}
            }
        }
        println!(
            "\n{} has spec, environment, digests, the last value of each metric, and the points",
            path.display()
        );
        Ok(())
    }

    /// The spec with its weight files turned into blobs, as submitting it would do.
    fn read_spec(&self) -> Result<Spec> {
        let mut document = spec_file::read(&self.spec, self.variant, self.seed)?;
        if self.kind == Kind::Evaluate {
            document["kind"] = json!("evaluate");
            if let Some(fields) = document.as_object_mut() {
                fields.retain(|field, _| {
                    !["method", "captions", "objective", "retention", "training"].contains(&field.as_str())
                });
            }
        }
        if let Some(path) = &self.theta1 {
            document["weights"]["theta1"] =
                json!({"file": path.canonicalize().with_context(|| path.display().to_string())?});
        }
        for end in ["theta0", "theta1"] {
            let Some(file) = document["weights"][end]["file"].as_str().map(str::to_owned) else { continue };
            // As in any tool that reads a spec: relative to the spec.
            let folder = self.spec.parent().unwrap_or(Path::new(""));
            let sha256 = self.link(&folder.join(file))?;
            document["weights"][end] = json!({"blob": sha256});
        }
        if let Some(Value::Array(soup)) = document.pointer_mut("/weights/theta1/soup/checkpoints") {
            let folder = self.spec.parent().unwrap_or(Path::new(""));
            // As a digest a checkpoint is on a server; here it is a file.
            for entry in soup {
                let Some(file) = entry.as_str().map(|file| folder.join(file)) else { continue };
                if file.is_file() {
                    *entry = json!(self.link(&file)?);
                }
            }
        }
        if let Some(weights) = document["weights"].as_object_mut() {
            weights.retain(|_, source| !source.is_null());
        }
        let mut spec = spec_file::parse(&self.spec, document)?;
        spec.evaluation.parts = 1; // there is nobody else here
        ensure!(
            (spec.kind == Kind::Evaluate) == (self.kind == Kind::Evaluate),
            "the spec is of kind {}; use `causeway-trainer {}`",
            spec.kind.as_str(),
            if spec.kind == Kind::Evaluate { "evaluate" } else { "train" }
        );
        Ok(spec)
    }

    /// Gives a weight file the place of a blob; its name there is its digest.
    fn link(&self, file: &Path) -> Result<String> {
        let sha256 = file_sha256(file)?;
        let place = self.out.join(BLOBS).join(&sha256);
        if !place.exists() {
            let target = file.canonicalize().with_context(|| file.display().to_string())?;
            std::os::unix::fs::symlink(target, &place)
                .with_context(|| format!("linking {} to {}", place.display(), file.display()))?;
        }
        Ok(sha256)
    }

    /// The assignment, with what an earlier process in this folder has done.
    fn assignment(&self, spec: Spec) -> Result<Assignment> {
        let lines = read_journal(&self.out)?;
        if !lines.is_empty() {
            let before = Assignment::read(&self.out)?.lease.spec;
            ensure!(
                before == spec,
                "{} holds the journal of another spec; choose another folder or remove it",
                self.out.display()
            );
        }
        let mut lease = LeaseGrant {
            id: Uuid::nil(),
            run_id: Uuid::nil(),
            attempt: 1,
            epoch: 0,
            device: self.device.clone(),
            devices: vec![self.device.clone()],
            gang: None,
            phase: if spec.kind == Kind::Evaluate { Phase::Evaluate } else { Phase::Train },
            spec,
            resume: None,
            checkpoint: None,
            known_points: Vec::new(),
            part: None,
            features: Vec::new(),
            analysed: Vec::new(),
            expires_in_ms: 0,
        };
        for line in lines {
            match line.event {
                Event::ResumeState { step, blob } => lease.resume = Some(ResumeFrom { step, blob }),
                Event::Checkpoint { blob, .. } => {
                    (lease.phase, lease.checkpoint) = (Phase::Evaluate, Some(blob));
                }
                Event::Point(point) => {
                    let known = known(&point, &lease.spec.evaluation);
                    lease.known_points.push(known);
                }
                Event::Spectrum(_) => lease.analysed.push(AnalysisKind::Spectrum),
                Event::Similarity(_) => lease.analysed.push(AnalysisKind::Similarity),
                _ => {}
            }
        }
        let data = self.data.iter().map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.clone()));
        let folder = self.cache.clone().unwrap_or_else(|| self.out.join(FEATURES));
        let cache = Some(Place { folder, most_bytes: self.cache_bytes });
        Ok(Assignment { lease, data: data.collect(), threads: self.threads, cache, server: None })
    }

    /// Starts the process and shows its progress until it ends.
    fn watch(&self, training: Option<&Training>) -> Result<()> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        // Its words go nowhere: the bar says them.
        command.arg("attempt").arg(&self.out).stdout(Stdio::null());
        let ours = PROCESS_ENVIRONMENT.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
        command.envs(ours);
        let mut child = command.spawn().context("starting the attempt")?;
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {wide_msg}")?;
        let bar = ProgressBar::new(0).with_style(style);
        let mut tail = JournalTail::new(&self.out);
        while !tail.read(LINES)?.is_empty() {}
        let status = loop {
            let status = child.try_wait().context("waiting for the attempt")?;
            for line in tail.read(LINES)? {
                if let Event::Progress(progress) = line.event {
                    bar.set_prefix(progress.phase.as_str());
                    bar.set_length(progress.total);
                    bar.set_position(progress.done);
                    let left = progress.seconds_left(training).unwrap_or_default();
                    let left = HumanDuration(Duration::from_secs_f64(left.clamp(0.0, 1e9).round()));
                    bar.set_message(format!(
                        "{left} left · {:.1} images/s · {}",
                        progress.images_per_second, progress.doing
                    ));
                }
            }
            match status {
                Some(status) => break status,
                None => std::thread::sleep(POLL),
            }
        };
        bar.finish_and_clear();
        match Ending::read(&self.out)? {
            Some(ending) if status.success() && ending == Ending::succeeded() => Ok(()),
            Some(ending) => bail!("{}", ending.reason),
            None => bail!("the attempt crashed: {status}"),
        }
    }
}

fn read_journal(folder: &Path) -> Result<Vec<JournalLine>> {
    let mut tail = JournalTail::new(folder);
    let mut lines = Vec::new();
    loop {
        let more = tail.read(LINES)?;
        if more.is_empty() {
            return Ok(lines);
        }
        lines.extend(more);
    }
}

fn known(point: &PointRecord, evaluation: &Evaluation) -> KnownPoint {
    let selected = (evaluation.refine > 0)
        .then(|| point.hits.count_among(&selection_half(&point.dataset, point.n as usize)));
    KnownPoint {
        backbone: point.backbone.clone(),
        checkpoint: point.checkpoint.clone(),
        dataset: point.dataset.clone(),
        protocol: point.protocol.id.clone(),
        alpha: point.alpha,
        selected,
    }
}

/// Everything that one wants to know of a finished run without reading its journal.
fn summary(lines: &[JournalLine], spec: &Spec) -> Value {
    let mut summary = json!({"spec": spec, "last": {}, "rollbacks": 0, "points": []});
    let mut names = BTreeMap::new();
    for line in lines {
        match &line.event {
            Event::Started { environment, .. } => summary["environment"] = json!(environment),
            Event::Backbone { digest, parameters, trainable } => {
                summary["backbone"] = json!({"digest": digest, "values": parameters, "trained": trainable});
            }
            Event::Captions { asset, digest, images, distinct } => {
                summary["captions"] =
                    json!({"asset": asset, "digest": digest, "images": images, "distinct": distinct});
            }
            Event::Metrics { step, values } => {
                for (name, value) in values {
                    summary["last"][name] = json!({"step": step, "value": value});
                }
            }
            Event::Values { steps, values, .. } => {
                for (name, column) in values {
                    summary["last"][name] = json!({"step": steps.last(), "value": column.last()});
                }
            }
            Event::RolledBack { rollbacks, .. } => summary["rollbacks"] = json!(rollbacks),
            Event::Checkpoint { step, blob, .. } => {
                summary["checkpoint"] = json!({"step": step, "blob": blob})
            }
            Event::Dataset { asset, digest, .. } => drop(names.insert(digest.as_str(), asset.as_str())),
            Event::Point(point) => {
                let dataset = names.get(point.dataset.as_str());
                if let Some(points) = summary["points"].as_array_mut() {
                    points.push(json!({
                        "dataset": dataset, "protocol": point.protocol.id, "alpha": point.alpha, "n": point.n,
                        "correct": point.correct, "correct_top5": point.correct_top5,
                        "correct_per_class": point.correct_per_class, "stamp": point.stamp
                    }));
                }
            }
            Event::Phase { .. } | Event::Progress(_) | Event::ResumeState { .. } | Event::Features(_) => {}
            Event::Spectrum(report) => summary["spectrum"] = json!(report),
            Event::Similarity(report) => summary["similarity"] = json!(report),
        }
    }
    summary
}

/// Accuracy by dataset, α and protocol, percent.
fn table(lines: &[JournalLine], spec: &Spec) -> String {
    let mut titles = BTreeMap::new();
    let mut accuracies = BTreeMap::new();
    for line in lines {
        match &line.event {
            Event::Dataset { asset, digest, title, queries, .. } => {
                titles.insert(asset.as_str(), (digest.as_str(), title.as_str(), *queries));
            }
            Event::Point(point) => {
                let accuracy = 100.0 * f64::from(point.correct) / f64::from(point.n.max(1));
                accuracies
                    .insert((point.dataset.as_str(), point.alpha, point.protocol.id.as_str()), accuracy);
            }
            _ => {}
        }
    }
    let protocols = spec.evaluation.protocols();
    // Those that were asked, and those of a refinement.
    let measured = accuracies.keys().map(|(_, alpha, _)| *alpha);
    let alphas: BTreeSet<Alpha> = spec.evaluation.alphas.iter().copied().chain(measured).collect();
    let mut text = String::new();
    for dataset in &spec.evaluation.datasets {
        let Some((digest, title, queries)) = titles.get(dataset.asset.as_str()) else { continue };
        text +=
            &format!("\n{title} ({}), {queries} images, accuracy in percent\n     α", dataset.role.as_str());
        for protocol in &protocols {
            text += &format!("  {:>6}", protocol.readout.label());
        }
        text += "\n";
        for alpha in &alphas {
            text += &format!("{:>6}", alpha.to_string());
            for protocol in &protocols {
                let cell = accuracies.get(&(*digest, *alpha, protocol.id.as_str()));
                let width = protocol.readout.label().chars().count().max(6);
                text += &format!("  {:>width$}", cell.map(|a| format!("{a:.1}")).unwrap_or_default());
            }
            text += "\n";
        }
    }
    text
}
