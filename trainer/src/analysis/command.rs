//! `spectrum` and `similarity` without a spec: weights in any format, a table, and the report as JSON on request.

use super::{report, similarity::Similarity, table};
use crate::attempt::environment;
use crate::data::asset::{AssetKind, Library};
use crate::data::dataset::Dataset;
use crate::weights::Backbone;
use crate::weights::interpolate::Line;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{
    Alpha, Analysis, EvaluatedDataset, Evaluation, Qkv, Role, SimilarityAnalysis, SpectrumAnalysis,
};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The spectra of one set of weights, or of a line.
pub struct Spectrum {
    /// θ0.
    pub weights: PathBuf,
    /// θ1, if there is a line.
    pub theta1: Option<PathBuf>,
    /// The α of the line; both ends if none are given.
    pub alphas: Option<Vec<Alpha>>,
    /// Query, key and value as three matrices.
    pub split_qkv: bool,
    /// Where the report goes.
    pub json: Option<PathBuf>,
    /// Layers at a time.
    pub threads: u32,
}

impl Spectrum {
    /// Prints the table.
    ///
    /// # Errors
    /// Weights that cannot be read, or layers that cannot be decomposed.
    pub fn run(&self) -> Result<()> {
        ensure!(self.theta1.is_some() || self.alphas.is_none(), "--alphas needs --theta1: the other end");
        let backbone = Backbone::read(&self.weights)?;
        let (line, usual) = match &self.theta1 {
            Some(theta1) => (Line::open(&backbone, theta1)?, vec![Alpha::ZERO, Alpha::ONE]),
            None => (Line::alone(&backbone)?, vec![Alpha::ZERO]),
        };
        let qkv = if self.split_qkv { Qkv::Split } else { Qkv::Fused };
        let asked = SpectrumAnalysis { alphas: self.alphas.clone().unwrap_or(usual), qkv };
        let bar = ProgressBar::new(0);
        let report =
            report::spectra(&line, &backbone.digest, &asked, self.threads as usize, &mut |done, total| {
                told(&bar, done as u64, total as u64)
            })?;
        bar.finish_and_clear();
        print!("{}", table::spectrum(&report));
        write_json(self.json.as_deref(), &report)
    }
}

/// Two sets of weights on a dataset.
pub struct Compare {
    /// θ0.
    pub weights: PathBuf,
    /// θ1.
    pub theta1: PathBuf,
    /// Where assets are.
    pub data: Vec<PathBuf>,
    /// What is asked, as a spec would.
    pub asked: SimilarityAnalysis,
    /// Side of the encoder's input, pixels.
    pub image_size: u32,
    /// Where the report goes.
    pub json: Option<PathBuf>,
    /// Folder of the small images; none are kept if it is not given.
    pub images: Option<PathBuf>,
    /// Threads of one forward pass.
    pub threads: u32,
}

impl Compare {
    /// Prints the table.
    ///
    /// # Errors
    /// Weights or images that cannot be read, or a question that breaks a rule of specs.
    pub fn run(&self) -> Result<()> {
        self.check()?;
        tch::set_num_threads(self.threads as i32);
        let backbone = Backbone::read(&self.weights)?;
        backbone.config.check_image_size(self.image_size).context("--image-size")?;
        let line = Line::open(&backbone, &self.theta1)?;
        line.check_image_size(self.image_size).context("--image-size")?;
        let library = Library::find(&self.data);
        let asset = library.get(&self.asked.dataset, AssetKind::Dataset)?;
        asset.verify()?;
        let dataset = Dataset::list(asset)?;
        let fingerprints = dataset.fingerprints(self.threads as usize, &|_| ())?;
        let digest = dataset.digest_of(&fingerprints);
        let scratch = std::env::temp_dir().join(format!("causeway-{}", std::process::id()));
        let folder = self.images.as_deref().unwrap_or(&scratch);
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let evaluation = self.evaluation()?;
        let environment = environment::environment("cpu", self.threads);
        let bar = ProgressBar::new(0);
        let report = Similarity {
            asked: &self.asked,
            evaluation: &evaluation,
            dataset: &dataset,
            digest: &digest,
            backbone: &backbone.digest,
            line: &line,
            stamp: environment::stamp(&environment, evaluation.batch_size),
            folder,
            done: &mut |done, total| told(&bar, done, total),
        }
        .run();
        bar.finish_and_clear();
        if self.images.is_none() {
            let _ = std::fs::remove_dir_all(&scratch);
        }
        let report = report?;
        print!("{}", table::similarity(&report));
        write_json(self.json.as_deref(), &report)
    }

    fn evaluation(&self) -> Result<Evaluation> {
        let evaluation = json!({"datasets": [], "image_size": self.image_size});
        let mut evaluation: Evaluation = serde_json::from_value(evaluation)?;
        evaluation.datasets.push(EvaluatedDataset { asset: self.asked.dataset.clone(), role: Role::Ood });
        Ok(evaluation)
    }

    /// The rules that a spec with this question would have to keep.
    fn check(&self) -> Result<()> {
        let analysis = Analysis { spectrum: None, similarity: Some(self.asked.clone()) };
        let spec = json!({
            "experiment": "similarity", "kind": "evaluate",
            "weights": {"theta0": {"asset": "theta0"}, "theta1": {"asset": "theta1"}},
            "evaluation": self.evaluation()?, "analysis": analysis
        });
        match causeway_protocol::parse_spec(spec) {
            Ok(_) => Ok(()),
            Err(problems) => {
                let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                anyhow::bail!("{}", all.join("; "))
            }
        }
    }
}

fn told(bar: &ProgressBar, done: u64, total: u64) -> Result<()> {
    bar.set_length(total);
    bar.set_position(done);
    Ok(())
}

fn write_json(path: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_vec_pretty(report)?)
        .with_context(|| format!("writing {}", path.display()))
}
