//! What a run asks of weights and features after its sweep. Each analysis is told as one document, and one that was told
//! by an earlier attempt is not computed again.

use super::narrate;
use crate::analysis::{report, similarity::Similarity};
use crate::evaluate::sweep::Measured;
use crate::weights::interpolate::Line;
use anyhow::{Context, Result};
use causeway_protocol::{AnalysisKind, Environment, Event, Phase, RunProgress, Spec};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two reports of progress.
const EVERY: Duration = Duration::from_secs(1);

/// What an analysis needs of its attempt.
pub struct Analyse<'a> {
    /// The run.
    pub spec: &'a Spec,
    /// Analyses that are there already.
    pub analysed: &'a [AnalysisKind],
    /// The evaluation's datasets.
    pub datasets: &'a [Measured],
    /// Digest of θ0.
    pub backbone: &'a str,
    /// From θ0 to θ1.
    pub line: &'a Line,
    /// What computes.
    pub environment: &'a Environment,
    /// The attempt's folder.
    pub folder: &'a Path,
    /// Where events go.
    pub emit: &'a mut dyn FnMut(Event) -> Result<()>,
}

impl Analyse<'_> {
    /// Computes what is asked and not there.
    ///
    /// # Errors
    /// Layers that cannot be decomposed, or images that cannot be read.
    pub fn run(self) -> Result<()> {
        let Some(analysis) = &self.spec.analysis else { return Ok(()) };
        let missing = |kind: AnalysisKind| !self.analysed.contains(&kind);
        let emit = self.emit;
        if let Some(asked) = analysis.spectrum.as_ref().filter(|_| missing(AnalysisKind::Spectrum)) {
            narrate::say("decomposing the layers");
            let mut pace = Pace::new("spectra: layers decomposed");
            let threads = self.environment.threads as usize;
            let report = report::spectra(self.line, self.backbone, asked, threads, &mut |done, total| {
                pace.after(done as u64, total as u64).map_or(Ok(()), &mut *emit)
            })?;
            emit(Event::Spectrum(Box::new(report)))?;
        }
        if let Some(asked) = analysis.similarity.as_ref().filter(|_| missing(AnalysisKind::Similarity)) {
            let measured = self.datasets.iter().find(|measured| measured.dataset.asset == asked.dataset);
            let measured =
                measured.with_context(|| format!("the dataset `{}` was not read", asked.dataset))?;
            narrate::say(&format!("comparing features on {}", measured.dataset.title));
            let mut pace = Pace::new("similarity: images compared");
            let report = Similarity {
                asked,
                evaluation: &self.spec.evaluation,
                dataset: &measured.dataset,
                digest: &measured.digest,
                backbone: self.backbone,
                line: self.line,
                stamp: super::environment::stamp(self.environment, self.spec.evaluation.batch_size),
                folder: self.folder,
                done: &mut |done, total| pace.after(done, total).map_or(Ok(()), &mut *emit),
            }
            .run()?;
            emit(Event::Similarity(Box::new(report)))?;
        }
        Ok(())
    }
}

/// Says how far an analysis is, now and then, and at its end.
struct Pace {
    doing: &'static str,
    before: u64,
    since: Instant,
}

impl Pace {
    fn new(doing: &'static str) -> Pace {
        Pace { doing, before: 0, since: Instant::now() }
    }

    fn after(&mut self, done: u64, total: u64) -> Option<Event> {
        let elapsed = self.since.elapsed();
        if elapsed < EVERY && done < total {
            return None;
        }
        let images_per_second = (done - self.before) as f64 / elapsed.as_secs_f64().max(1e-9);
        (self.before, self.since) = (done, Instant::now());
        let doing = self.doing.to_owned();
        let phase = Phase::Evaluate;
        Some(Event::Progress(RunProgress { phase, done, total, images_per_second, doing }))
    }
}
