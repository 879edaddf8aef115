//! What a training learns from: the images with their captions, checked against the evaluation's datasets, and what has
//! read the captions beforehand.

use super::kept::kept;
use super::narrate::say;
use crate::data::asset::{Asset, AssetKind, Library};
use crate::data::augment::{Augment, Frame, RATIO};
use crate::data::captions::Captions;
use crate::data::leaks::{self, Likeness, Scanned};
use crate::data::loader::{AHEAD, Batches, Feed, KEEP_BYTES, Loader};
use crate::evaluate::sweep::Measured;
use crate::methods::token_replay::{MEMORY, memory};
use crate::methods::{Given, Widths, cross_modal};
use crate::models::language::LanguageModel;
use crate::models::text::TextEncoder;
use crate::objectives::text_tower::Untrained;
use crate::order::Order;
use crate::retention::Kept;
use crate::train::{Images, Pairs};
use anyhow::{Context, Result};
use causeway_protocol::{CaptionForm, Event, Method, Preprocess, Reading, Spec, Training};
use std::ops::Range;
use tch::{Device, Tensor};

/// Near-duplicates that are told one by one.
const TOLD: usize = 20;

/// The captions of a run and everything made from them.
pub struct Material {
    captions: Captions,
    embeddings: Option<Tensor>,
    /// The model that the caption loss asks.
    pub language_model: Option<LanguageModel>,
    ids: Vec<Vec<i64>>,
    texts: Vec<Tensor>,
    /// What the method takes from other models.
    pub given: Given,
    /// Images that hold the encoder near θ0.
    pub kept: Kept,
    /// The text encoder and the captions' tokens, where it is trained too.
    pub text_encoder: Option<Untrained>,
    /// Opens the batches of some steps.
    open: Box<dyn Fn(Order, Range<u64>) -> Result<Images>>,
}

impl Material {
    /// Reads and checks all of it; `widths` are what [`widths`] says.
    ///
    /// # Errors
    /// An asset that is missing or damaged, an image that cannot be read, an image that is also evaluated on.
    pub fn read(
        spec: &Spec,
        library: &Library,
        datasets: &[Measured],
        widths: Widths,
        (device, threads): (Device, usize),
    ) -> Result<Material> {
        let (Some(named), Some(training), Some(objective)) =
            (&spec.captions, &spec.training, &spec.objective)
        else {
            anyhow::bail!("a spec of kind {} has nothing to train", spec.kind.as_str());
        };
        let asset = subset(library.get(&named.asset, AssetKind::Captions)?, named);
        let captions = Captions::read(&asset, threads, &|_, _| ())?;
        say(&format!("captions {}: {}", named.asset, captions.account));
        check_leaks(&captions, datasets, named.allow_leaks, threads)?;

        let encoder = named.text_encoder.as_ref().map(|name| text_encoder(name, library)).transpose()?;
        let still = encoder.as_ref().filter(|_| !named.train_text_encoder);
        let embeddings = still.map(|encoder| {
            let embeddings = encoder.embed(&captions.distinct); // [distinct, text]
            embeddings.context("embedding the captions")
        });
        let language_model = objective.caption.as_ref().map(|caption| {
            let model = language_model(&caption.language_model, library)?;
            anyhow::Ok(model.to_device(device))
        });
        let language_model = language_model.transpose()?;
        let ids = match &language_model {
            None => Vec::new(),
            Some(model) => {
                captions.distinct.iter().map(|text| model.tokenize(text)).collect::<Result<_>>()?
            }
        };
        let open = opener(&captions, training, device, threads);
        let embeddings = embeddings.transpose()?;
        let form = spec.method.as_ref().and_then(|method| method.reads()).map(|reads| reads.form);
        let texts = match (form, &encoder, &embeddings) {
            (Some(CaptionForm::Embedding), _, Some(embeddings)) => embeddings.split(1, 0),
            (Some(CaptionForm::Tokens), Some(encoder), _) => encoder.token_rows(&captions.distinct)?,
            _ => Vec::new(),
        };
        let mut given = Given { widths, ..Given::default() };
        if let Some(Method::TokenReplay(own)) = &spec.method
            && own.reading == Reading::A
        {
            let memory = memory::prototypes(&texts, own.memory, spec.seed);
            given.tensors.insert(MEMORY, memory.context("making the replay memory")?);
        }
        if let Some(Method::CrossModal(own)) = &spec.method {
            let model = self::language_model(&own.language_model, library)?;
            given.tensors.insert(cross_modal::TABLE, cross_modal::dictionary(&model, own.words)?);
        }
        let embeddings = embeddings.map(|embeddings| embeddings.to_device(device));
        let kept = kept(spec, library, &captions, datasets, threads)?;
        let trained = encoder.filter(|_| named.train_text_encoder);
        let text_encoder = trained.map(|encoder| Untrained::new(encoder, &captions.distinct)).transpose()?;
        Ok(Material { captions, embeddings, language_model, ids, texts, given, kept, text_encoder, open })
    }

    /// What was read, for the journal.
    pub fn event(&self, spec: &Spec) -> Event {
        Event::Captions {
            asset: spec.captions.as_ref().map(|captions| captions.asset.clone()).unwrap_or_default(),
            digest: self.captions.digest().unwrap_or_default(),
            images: self.captions.images.len() as u64,
            distinct: self.captions.distinct.len() as u64,
        }
    }

    /// As the training loop takes them.
    pub fn pairs(&self) -> Pairs<'_> {
        Pairs {
            count: self.captions.images.len(),
            images: &*self.open,
            captions: &self.captions.rows,
            embeddings: self.embeddings.as_ref(),
            ids: &self.ids,
            texts: &self.texts,
        }
    }
}

fn text_encoder(name: &str, library: &Library) -> Result<TextEncoder> {
    let asset = library.get(name, AssetKind::TextEncoder)?;
    asset.verify()?;
    TextEncoder::open(&asset.folder, asset.manifest.format)
}

fn language_model(name: &str, library: &Library) -> Result<LanguageModel> {
    let asset = library.get(name, AssetKind::LanguageModel)?;
    asset.verify()?;
    LanguageModel::open(&asset.folder, asset.manifest.format)
}

/// How wide what a spec's method takes from other models is.
///
/// # Errors
/// An asset that is missing or damaged.
pub fn widths(spec: &Spec, library: &Library) -> Result<Widths> {
    let mut widths = Widths::default();
    let Some(method) = &spec.method else { return Ok(widths) };
    let named = spec.captions.as_ref().and_then(|captions| captions.text_encoder.as_ref());
    if let (Some(reads), Some(name)) = (method.reads(), named) {
        let encoder = text_encoder(name, library)?;
        widths.text = match reads.form {
            CaptionForm::Embedding => encoder.dim(),
            CaptionForm::Tokens => encoder.token_dim(),
        };
    }
    if let Method::CrossModal(own) = method {
        widths.word = language_model(&own.language_model, library)?.dim();
    }
    Ok(widths)
}

/// The asset with the spec's own choice of images.
pub fn subset(asset: &Asset, named: &causeway_protocol::Captions) -> Asset {
    let mut asset = asset.clone();
    if let Some(limit) = named.limit {
        let options = asset.manifest.captions.get_or_insert_default();
        (options.limit, options.seed) = (Some(limit as usize), named.subset_seed);
    }
    asset
}

/// Tells what training and evaluation have in common.
///
/// # Errors
/// An image that is in both, pixel for pixel, unless that is allowed.
fn check_leaks(captions: &Captions, datasets: &[Measured], allowed: bool, threads: usize) -> Result<()> {
    let scanned = datasets
        .iter()
        .map(|measured| Scanned { dataset: &measured.dataset, fingerprints: &measured.fingerprints });
    let leaks = leaks::leaks(captions, &scanned.collect::<Vec<_>>(), threads)?;
    let told = leaks.iter().filter(|leak| allowed || leak.likeness != Likeness::Exact);
    for leak in told.clone().take(TOLD) {
        say(&leak.to_string());
    }
    let more = told.count().saturating_sub(TOLD);
    if more > 0 {
        say(&format!("and {more} more images that training and evaluation share or nearly share"));
    }
    if allowed {
        return Ok(());
    }
    leaks::refuse_exact(&leaks).context("`captions.allow_leaks` = true trains all the same")
}

/// Opens the batches of a range of steps, made ahead of need in threads of their own.
fn opener(
    captions: &Captions,
    training: &Training,
    device: Device,
    threads: usize,
) -> Box<dyn Fn(Order, Range<u64>) -> Result<Images>> {
    let images = captions.images.clone();
    let frame = match training.crop_scale {
        None => Frame::Fixed(Preprocess::Direct),
        Some(scale) => Frame::RandomCrop { scale, ratio: RATIO },
    };
    let augment = Augment { frame, flip: training.flip };
    let size = training.image_size as usize;
    Box::new(move |order, steps| {
        let feed = Feed {
            images: images.clone(),
            batches: Batches::Shuffled { order, positions: 0..order.batch },
            size,
            augment,
            threads: threads.min(2),
            ahead: AHEAD,
            keep_bytes: KEEP_BYTES,
        };
        let mut loader = Loader::start(feed, steps.clone())?;
        let next = move |_| {
            let (pixels, waited) = loader.next()?;
            Ok((pixels.to_device(device), waited))
        };
        Ok(Box::new(steps.map(next)))
    })
}
