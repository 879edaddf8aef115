//! What a run may ask about its weights and features besides accuracy, and what it is told: the spectra of the layers,
//! and how similar θ_α is to θ0. Both are documents of a run, computed once after its sweep.

use crate::{Alpha, BlobRef, NumericsStamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is analysed after the sweep.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// Power laws fitted to the eigenvalues of each layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectrum: Option<SpectrumAnalysis>,
    /// Features and nearest neighbours of θ_α beside those of θ0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<SimilarityAnalysis>,
}

/// Eigenvalues of WᵀW of each layer and the power law of their tail, as weightwatcher fits it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpectrumAnalysis {
    /// The α at which the layers that moved are decomposed, ascending; the others are the same for all and are
    /// decomposed once.
    #[serde(default = "both_ends")]
    pub alphas: Vec<Alpha>,
    /// Whether query, key and value are one matrix or three: their exponents differ, and so does the number of layers.
    #[serde(default)]
    pub qkv: Qkv,
}

/// How the query, key and value of a block are taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Qkv {
    /// As one matrix of three times as many rows: DINO's and timm's naming.
    #[default]
    Fused,
    /// As three matrices: Hugging Face's.
    Split,
}

/// Linear CKA by block, and nearest neighbours of some queries, between θ0 and θ_α.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SimilarityAnalysis {
    /// Name of the dataset asset: one of the evaluation's.
    pub dataset: String,
    /// Scored images whose features are compared, chosen by `seed`.
    #[serde(default = "default_images")]
    pub images: u32,
    /// Scored images whose nearest neighbours are shown, chosen by `seed`, of different classes as far as they go.
    #[serde(default = "default_queries")]
    pub queries: u32,
    /// Neighbours of each.
    #[serde(default = "default_neighbours")]
    pub neighbours: u32,
    /// Search so many images of the bank, chosen by `seed`; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank: Option<u32>,
    /// The α that are compared with θ0, ascending. α = 0 is always among them.
    #[serde(default = "middle_and_end")]
    pub alphas: Vec<Alpha>,
    /// Chooses images and queries.
    #[serde(default)]
    pub seed: u64,
}

/// A kind of analysis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnalysisKind {
    /// [`SpectrumReport`].
    Spectrum,
    /// [`SimilarityReport`].
    Similarity,
}

/// The spectra of a line's layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpectrumReport {
    /// Whose algorithm the numbers follow: "weightwatcher 0.7.7".
    pub follows: String,
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of θ1; none where there is only θ0.
    pub checkpoint: Option<String>,
    /// How query, key and value were taken.
    pub qkv: Qkv,
    /// The α asked for, ascending.
    pub alphas: Vec<Alpha>,
    /// The layers in the order in which an image passes them; what a method added stands behind its block.
    pub layers: Vec<LayerSpectrum>,
}

/// One layer's spectra.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LayerSpectrum {
    /// The tensor: `blocks.3.attn.qkv.weight`, or `blocks.3.attn.q.weight` where it was split.
    pub name: String,
    /// Its block, from 0; none before and behind the blocks.
    pub block: Option<u32>,
    /// Whether a method added it. Such matrices are thin: their exponents do not compare with a backbone's.
    pub added: bool,
    /// Whether it differs between θ0 and θ1.
    pub moved: bool,
    /// Rows, columns, and for a convolution the number of its slices.
    pub shape: Vec<u32>,
    /// One at each α where it moved, else one for all of them, at the first.
    pub values: Vec<SpectrumValues>,
}

/// A layer's eigenvalues at one α, in numbers. The names are weightwatcher's, but for its `alpha`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpectrumValues {
    /// Where on the line.
    pub alpha: Alpha,
    /// Number of eigenvalues.
    pub num_evals: u32,
    /// Their sum: the squared Frobenius norm.
    pub norm: f64,
    /// The largest.
    pub spectral_norm: f64,
    /// Sum over largest; none of a matrix of zeros.
    pub stable_rank: Option<f64>,
    /// Decimal logarithm of the sum; none of a matrix of zeros.
    pub log_norm: Option<f64>,
    /// The power law of the largest; none where there are too few, or no spread in them.
    pub tail: Option<Tail>,
}

/// A power law fitted to a layer's largest eigenvalues.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tail {
    /// The exponent. Never to be confused with α of the line.
    pub ww_alpha: f64,
    /// Kolmogorov and Smirnov's distance between tail and fit: the smaller, the more a power law it is.
    pub d: f64,
    /// Standard error of the exponent.
    pub sigma: f64,
    /// The eigenvalue from which on it is fitted.
    pub xmin: f64,
    /// Eigenvalues from there on.
    pub num_pl_spikes: u32,
    /// ww_alpha times the decimal logarithm of the largest eigenvalue.
    pub alpha_weighted: f64,
    /// Decimal logarithm of Σ λ^ww_alpha.
    pub log_alpha_norm: f64,
    /// weightwatcher's word for the exponent.
    pub status: TailStatus,
    /// Fitted to fewer than twenty eigenvalues, by another estimate: not to be compared with the others.
    pub few: bool,
}

/// weightwatcher's words for an exponent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TailStatus {
    /// Below 2.
    OverTrained,
    /// 2 to 6.
    Within,
    /// Above 6.
    UnderTrained,
}

impl TailStatus {
    /// The smallest exponent that is within.
    pub const LOW: f64 = 2.0;
    /// The largest.
    pub const HIGH: f64 = 6.0;

    /// The word for an exponent.
    pub fn of(ww_alpha: f64) -> TailStatus {
        match ww_alpha {
            low if low < TailStatus::LOW => TailStatus::OverTrained,
            high if high > TailStatus::HIGH => TailStatus::UnderTrained,
            _ => TailStatus::Within,
        }
    }

    /// The word, as weightwatcher writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            TailStatus::OverTrained => "over-trained",
            TailStatus::Within => "within",
            TailStatus::UnderTrained => "under-trained",
        }
    }
}

impl LayerSpectrum {
    /// Its values at α: those at the first where it did not move.
    pub fn at(&self, alpha: Alpha) -> Option<&SpectrumValues> {
        match self.moved {
            true => self.values.iter().find(|values| values.alpha == alpha),
            false => self.values.first(),
        }
    }
}

impl SpectrumReport {
    /// Mean exponent of the backbone's layers at α, each counted alike, as weightwatcher's summary has it.
    pub fn mean_ww_alpha(&self, alpha: Alpha) -> Option<f64> {
        let layers = self.layers.iter().filter(|layer| !layer.added);
        let tails = layers.filter_map(|layer| layer.at(alpha)?.tail.as_ref());
        let (sum, count) = tails.fold((0.0, 0.0), |(sum, count), tail| (sum + tail.ww_alpha, count + 1.0));
        (count > 0.0).then(|| sum / count)
    }
}

/// How similar θ_α is to θ0, in features, in weights and in what is nearest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SimilarityReport {
    /// Digest of θ0.
    pub backbone: String,
    /// Digest of θ1.
    pub checkpoint: String,
    /// Digest of the dataset.
    pub dataset: String,
    /// As figures show it.
    pub title: String,
    /// Licence of the images.
    pub licence: String,
    /// Where they come from.
    pub source: String,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Everything that decides a feature besides weights and pixels, as protocols' ids end.
    pub features: String,
    /// Images whose features were compared.
    pub images: u32,
    /// Images of the bank among which neighbours were looked for, and how many there are.
    pub bank: (u32, u32),
    /// Chose images and queries.
    pub seed: u64,
    /// α = 0, then those asked for, ascending.
    pub alphas: Vec<Alpha>,
    /// Linear CKA with θ0, one for each α.
    pub cka: Vec<BlockCka>,
    /// How far each layer moved from θ0 to θ1. On the line it is α times that.
    pub distances: Vec<LayerDistance>,
    /// Some queries and what is nearest to them.
    pub queries: Vec<QueryNeighbours>,
    /// The images of these, as one file.
    pub tiles: Option<Tiles>,
    /// What computed it.
    pub stamp: NumericsStamp,
}

/// Linear CKA between θ0 and θ_α on the same images, without the bias of few images. None where features do not vary.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BlockCka {
    /// Where on the line.
    pub alpha: Alpha,
    /// Of the class token after each block.
    pub class: Vec<Option<f64>>,
    /// Of the mean over the patches' tokens after each block.
    pub patches: Vec<Option<f64>>,
    /// Of the feature that k-NN compares.
    pub feature: Option<f64>,
}

/// How far a layer moved.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LayerDistance {
    /// The tensor.
    pub name: String,
    /// Its block, from 0; none before and behind the blocks.
    pub block: Option<u32>,
    /// Whether a method added it.
    pub added: bool,
    /// ‖θ0‖, Frobenius.
    pub norm: f64,
    /// ‖θ1 − θ0‖.
    pub distance: f64,
}

impl LayerDistance {
    /// ‖θ1 − θ0‖ / ‖θ0‖; none where θ0 is zero.
    pub fn relative(&self) -> Option<f64> {
        (self.norm > 0.0).then(|| self.distance / self.norm)
    }
}

/// A query and its neighbours at each α.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueryNeighbours {
    /// Its place among the scored images.
    pub place: u32,
    /// Its class.
    pub label: u32,
    /// Its tile.
    pub tile: u32,
    /// The neighbours at each α of the report, most similar first.
    pub neighbours: Vec<Vec<ShownNeighbour>>,
}

/// A neighbour.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ShownNeighbour {
    /// Its place in the bank.
    pub place: u32,
    /// Its class.
    pub label: u32,
    /// Cosine of its feature and the query's.
    pub similarity: f64,
    /// Its tile.
    pub tile: u32,
}

/// Small images in one file, row by row: square tiles, each image in the middle of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tiles {
    /// The JPEG.
    pub blob: BlobRef,
    /// Side of a tile, pixels.
    pub side: u32,
    /// Tiles in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

impl Tiles {
    /// Left and upper edge of a tile, pixels.
    pub fn place(&self, tile: u32) -> (u32, u32) {
        let columns = self.columns.max(1);
        (tile % columns * self.side, tile / columns * self.side)
    }
}

fn both_ends() -> Vec<Alpha> {
    vec![Alpha::ZERO, Alpha::ONE]
}

fn middle_and_end() -> Vec<Alpha> {
    Alpha::from_ten_thousandths(5000).into_iter().chain([Alpha::ONE]).collect()
}

fn default_images() -> u32 {
    512
}

fn default_queries() -> u32 {
    6
}

fn default_neighbours() -> u32 {
    5
}
