//! What a run may ask of its weights and features besides accuracy: the spectra of the layers along the line, and how
//! similar θ_α is to θ0. `docs/analysis.md` says what the numbers mean and what they do not.

pub mod cka;
pub mod command;
pub mod layers;
pub mod neighbours;
pub mod power_law;
pub mod report;
pub mod similarity;
pub mod spectrum;
pub mod table;
pub mod tiles;

#[cfg(test)]
pub(crate) mod testing;
