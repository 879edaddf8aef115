//! The spectra of a line as one document: each layer at each α, and what did not move once.

use super::layers::{Layer, layers};
use super::spectrum::{self, Job};
use crate::weights::interpolate::Line;
use anyhow::{Context, Result};
use causeway_protocol::{Alpha, LayerSpectrum, SpectrumAnalysis, SpectrumReport};
use tch::Device;

/// Whose algorithm this is. Other versions of it give other numbers.
const FOLLOWS: &str = "weightwatcher 0.7.7";

/// Decomposes the layers of a line. `done` is told how many of how many decompositions there are.
///
/// # Errors
/// A layer that cannot be decomposed, by name.
pub fn spectra(
    line: &Line,
    backbone: &str,
    asked: &SpectrumAnalysis,
    threads: usize,
    done: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SpectrumReport> {
    let layers = layers(line, asked.qkv);
    let moved = layers.iter().filter(|layer| layer.moved).count();
    let total = layers.len() + moved * (asked.alphas.len().saturating_sub(1));
    let mut found: Vec<Vec<_>> = layers.iter().map(|_| Vec::new()).collect();
    let mut before = 0;
    // One α after the other: its moved tensors are in memory, and no other's.
    for (at, alpha) in asked.alphas.iter().enumerate() {
        let tensors = line.at(*alpha);
        let now: Vec<usize> = (0..layers.len()).filter(|layer| at == 0 || layers[*layer].moved).collect();
        let jobs = now.iter().map(|layer| job(&layers[*layer], &tensors, *alpha)).collect::<Result<_>>()?;
        let values = spectrum::all(jobs, threads, &mut |count| done(before + count, total))
            .with_context(|| format!("the spectra at α = {alpha}"))?;
        before += now.len();
        now.into_iter().zip(values).for_each(|(layer, values)| found[layer].push(values));
    }
    let one = |(layer, values): (Layer, Vec<_>)| LayerSpectrum {
        shape: layer.sides(),
        name: layer.name,
        block: layer.block,
        added: layer.added,
        moved: layer.moved,
        values,
    };
    let checkpoint = Some(line.digest().to_owned()).filter(|digest| !digest.is_empty());
    Ok(SpectrumReport {
        follows: FOLLOWS.to_owned(),
        backbone: backbone.to_owned(),
        checkpoint,
        qkv: asked.qkv,
        alphas: asked.alphas.clone(),
        layers: layers.into_iter().zip(found).map(one).collect(),
    })
}

fn job(layer: &Layer, tensors: &crate::weights::Tensors, alpha: Alpha) -> Result<Job> {
    let weight = layer.of(tensors).with_context(|| format!("{} is missing", layer.tensor))?;
    Ok(Job { name: layer.name.clone(), weight: weight.to_device(Device::Cpu), alpha })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::spectrum::{Route, eigenvalues, values};
    use crate::analysis::testing::{adapter_line, full_line};
    use causeway_protocol::Qkv;

    fn asked(alphas: &[f64], qkv: Qkv) -> SpectrumAnalysis {
        let alphas = alphas.iter().map(|alpha| Alpha::from_f64(*alpha).unwrap()).collect();
        SpectrumAnalysis { alphas, qkv }
    }

    #[test]
    fn what_did_not_move_is_decomposed_once_and_the_rest_at_each_alpha() {
        let (backbone, line) = full_line(&["blocks.1.mlp.fc2.weight", "blocks.1.attn.qkv.weight"]);
        let mut told = Vec::new();
        let report =
            spectra(&line, &backbone.digest, &asked(&[0.0, 0.5, 1.0], Qkv::Fused), 2, &mut |n, of| {
                told.push((n, of));
                Ok(())
            })
            .unwrap();
        assert_eq!(told.last(), Some(&(9 + 2 * 2, 13)));
        assert_eq!((told.len(), report.layers.len()), (13, 9));
        for layer in &report.layers {
            assert_eq!(layer.values.len(), if layer.moved { 3 } else { 1 }, "{}", layer.name);
            for alpha in &report.alphas {
                let weight = &line.at(*alpha)[&layer.name];
                let direct =
                    values(&eigenvalues(weight, Route::Gram).unwrap(), layer.at(*alpha).unwrap().alpha);
                assert_eq!(*layer.at(*alpha).unwrap(), direct, "{} at {alpha}", layer.name);
            }
        }
        assert_eq!(report.checkpoint.as_deref(), Some(line.digest()));
        let mean = report.mean_ww_alpha(Alpha::ONE).unwrap();
        let of = |layer: &LayerSpectrum| layer.at(Alpha::ONE).unwrap().tail.as_ref().unwrap().ww_alpha;
        assert!((mean - report.layers.iter().map(of).sum::<f64>() / 9.0).abs() < 1e-12);
    }

    #[test]
    fn what_a_method_adds_is_told_apart_and_left_out_of_the_mean() {
        let (backbone, line) = adapter_line(8);
        let report =
            spectra(&line, &backbone.digest, &asked(&[0.0, 1.0], Qkv::Split), 1, &mut |_, _| Ok(())).unwrap();
        let up = report.layers.iter().find(|layer| layer.name == "blocks.0.adapter.up.weight").unwrap();
        assert!(up.added && up.moved);
        // θ0 of an adapter is zero: no spectrum, no tail.
        assert_eq!((up.values[0].norm, up.values[0].tail.as_ref()), (0.0, None));
        assert!(up.values[1].tail.as_ref().unwrap().few, "eight eigenvalues");
        assert_eq!(
            report.mean_ww_alpha(Alpha::ZERO),
            report.mean_ww_alpha(Alpha::ONE),
            "the backbone stayed"
        );
    }
}
