//! The scientific figures. A figure's model (domains, ticks, means, bands, best α, label places) is computed once,
//! here; the SVG in the page, the SVG for a paper, the table of numbers and the chart in the browser are all drawn
//! from it, so that they cannot disagree.

mod alpha;
mod best;
mod bootstrap;
mod difference;
mod frontier;
mod identity;
mod input;
mod paired;
mod panel;
mod paper;
mod robustness;
mod rungs;
mod scale;
mod series;
mod similarity;
mod slices;
mod spectrum;
pub mod stats;
mod words;

pub use alpha::{AlphaFigure, FigureOptions, LineKey, Panel, PanelLine, Place, View, alpha_figure};
pub use best::{Best, BestRule, Change, Chosen};
pub use bootstrap::Differences;
pub use difference::{Difference, difference_axis_svg, difference_svg, shared_axis};
pub use frontier::frontier_svg;
pub use identity::{DASHES, Identity, Marker, identity, short};
pub use input::{Dataset, FigureInput, Halves, Queries, Score, SeedCurve, Variant};
pub use paired::{Paired, PairedInterval, paired};
pub use panel::{Layout, NARROW, Palette, WIDE, escape, key_svg, method_svg, panel_svg};
pub use paper::{PaperCaption, paper_svg};
pub use robustness::{Baseline, RobustnessKind, effective, relative};
pub use rungs::{RungChart, RungLine, TrialEnd, rung_key_svg, rungs_svg};
pub use series::{SeriesChart, series_svg};
pub use similarity::{CkaFigure, cka_svgs, distance_svg, share};
pub use slices::{Slice, SliceAxis, SlicePlace, slice_svg, slices_axis};
pub use spectrum::{
    AlongFigure, SPECTRUM_NARROW, SPECTRUM_WIDE, SpectrumFigure, SpectrumLayer, SpectrumSeries, TOP,
    along_svg, spectrum_key_svg, spectrum_svg,
};
pub use words::{points, role_word, signed, tone, value};
