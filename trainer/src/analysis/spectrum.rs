//! The spectrum of each layer, as weightwatcher 0.7.7 takes it: the eigenvalues λ = σ² of WᵀW, and the power law of the
//! largest ([`super::power_law`]). Layers are the tensors `….weight` of two dimensions, and the patch convolution, whose
//! kernel positions are slices [out, in] with pooled eigenvalues halved; LayerNorms, biases, class token and position
//! table are none.
//!
//! weightwatcher takes σ from an SVD in f64. Here λ come from the Gram matrix of the smaller side in f64, which costs a
//! fraction: the eigenvalues of a symmetric matrix alone, without vectors. Rounding moves an eigenvalue by about ε·λmax
//! (Weyl), far below the threshold from which the fit looks, 1e-5; where it would not be, the SVD is taken.

use super::power_law::{self, PowerLaw};
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Alpha, SpectrumValues, Tail, TailStatus};
use std::sync::{Mutex, mpsc};
use tch::{Kind, Tensor};

/// Smaller eigenvalues are not fitted: absolute, weightwatcher's EVALS_THRESH.
const THRESHOLD: f64 = 1e-5;
/// A layer with fewer eigenvalues than this is left out: weightwatcher's min_evals.
pub const MIN_EVALS: i64 = 8;
/// Share of the threshold by which rounding in the Gram matrix may move an eigenvalue.
const TRUSTED: f64 = 1e-3;

/// How eigenvalues are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Of the Gram matrix, unless rounding could show.
    Gram,
    /// From singular values: the reference.
    Svd,
}

/// Number of eigenvalues that a layer of this shape has; none for what is no matrix.
pub fn count(shape: &[i64]) -> Option<i64> {
    match shape {
        [rows, columns] => Some(*rows.min(columns)),
        [outer, inner, height, width] => Some(outer.min(inner) * height * width),
        _ => None,
    }
}

/// The eigenvalues of a layer in ascending order.
///
/// # Shapes
/// `weight` [rows, columns] or [out, in, height, width], f32 or less
///
/// # Errors
/// Values that are not finite, or a decomposition that does not converge.
pub fn eigenvalues(weight: &Tensor, route: Route) -> Result<Vec<f64>> {
    Room::default().eigenvalues(weight, route)
}

/// What a thread computes in, one layer after the other: fresh memory for each would cost a tenth of the whole.
#[derive(Default)]
struct Room {
    /// A layer's values as they come. [slices, rows, columns]
    given: Vec<f32>,
    /// The same in f64.
    numbers: Vec<f64>,
    workspace: causeway_eigen::Workspace,
}

impl Room {
    fn eigenvalues(&mut self, weight: &Tensor, route: Route) -> Result<Vec<f64>> {
        let (slices, scale) = match weight.size()[..] {
            [_, _] => (weight.unsqueeze(0), 1.0),
            // One slice at each position of the kernel, each times √½: weightwatcher's conv2d_norm.
            [outer, inner, height, width] => {
                (weight.permute([2, 3, 0, 1]).reshape([height * width, outer, inner]), 0.5)
            }
            ref other => anyhow::bail!("its shape is {other:?}; a layer is a matrix or a convolution"),
        }; // [slices, rows, columns]
        let slices = slices.to_kind(Kind::Float); // a line's arithmetic may be less
        self.given.resize(slices.numel(), 0.0);
        slices.f_copy_data(&mut self.given, slices.numel())?;
        self.numbers.clear();
        self.numbers.extend(self.given.iter().map(|number| f64::from(*number)));
        ensure!(self.numbers.iter().all(|number| number.is_finite()), "it holds values that are not finite");
        let values = match route {
            Route::Gram => self.of_gram(&slices)?,
            Route::Svd => of_svd(&slices)?,
        };
        let mut values: Vec<f64> = values.into_iter().map(|value| scale * value.max(0.0)).collect();
        values.sort_by(f64::total_cmp);
        Ok(values)
    }

    /// `slices` [slices, rows, columns], whose numbers are here.
    fn of_gram(&mut self, slices: &Tensor) -> Result<Vec<f64>> {
        let (rows, columns) = (usize::try_from(slices.size()[1])?, usize::try_from(slices.size()[2])?);
        let mut values = Vec::new();
        for slice in self.numbers.chunks_exact((rows * columns).max(1)) {
            values.extend(self.workspace.squared_singular_values(slice, rows, columns)?);
        }
        let largest = values.iter().copied().fold(0.0, f64::max);
        let rounding = f64::EPSILON * rows.max(columns) as f64 * largest;
        if rounding > TRUSTED * THRESHOLD { of_svd(slices) } else { Ok(values) }
    }
}

/// `slices` [slices, rows, columns]
fn of_svd(slices: &Tensor) -> Result<Vec<f64>> {
    let (_, singular, _) = slices.to_kind(Kind::Double).f_svd(true, false).context("its singular values")?;
    Ok(Vec::try_from(singular.square().contiguous().view(-1))?)
}

/// A layer's numbers at α.
pub fn values(ascending: &[f64], alpha: Alpha) -> SpectrumValues {
    let norm: f64 = ascending.iter().sum();
    let spectral_norm = ascending.last().copied().unwrap_or(0.0);
    let fitted: Vec<f64> = ascending.iter().copied().filter(|value| *value > THRESHOLD).collect();
    SpectrumValues {
        alpha,
        num_evals: ascending.len() as u32,
        norm,
        spectral_norm,
        stable_rank: (spectral_norm > 0.0).then(|| norm / spectral_norm),
        log_norm: (norm > 0.0).then(|| norm.log10()),
        tail: power_law::fit(&fitted).map(|law| tail(ascending, &law)),
    }
}

fn tail(ascending: &[f64], law: &PowerLaw) -> Tail {
    let largest = ascending.last().copied().unwrap_or(0.0);
    // Σ λ^α = λmax^α Σ (λ / λmax)^α: a large exponent overflows nothing.
    let sum: f64 = ascending.iter().map(|value| (value / largest).powf(law.alpha)).sum();
    Tail {
        ww_alpha: law.alpha,
        d: law.d,
        sigma: law.sigma,
        xmin: law.xmin,
        num_pl_spikes: ascending.iter().filter(|value| **value >= law.xmin).count() as u32,
        alpha_weighted: law.alpha * largest.log10(),
        log_alpha_norm: law.alpha * largest.log10() + sum.log10(),
        status: TailStatus::of(law.alpha),
        few: law.few,
    }
}

/// A layer to be decomposed.
pub struct Job {
    /// What errors call it.
    pub name: String,
    /// The layer.
    pub weight: Tensor,
    /// Where on the line.
    pub alpha: Alpha,
}

/// Decomposes layers in `threads` threads, each with one thread of libtorch: the reduction to tridiagonal form, which is
/// most of the work, is bound by memory and gains little from threads of its own. In the order of the jobs.
///
/// # Errors
/// The first layer that cannot be decomposed, by name.
pub fn all(
    jobs: Vec<Job>,
    threads: usize,
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<SpectrumValues>> {
    let before = tch::get_num_threads();
    tch::set_num_threads(1);
    let found = with_one_thread_each(jobs, threads, done);
    tch::set_num_threads(before);
    found
}

fn with_one_thread_each(
    jobs: Vec<Job>,
    threads: usize,
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<SpectrumValues>> {
    let mut places: Vec<(usize, Job)> = jobs.into_iter().enumerate().collect();
    // The dearest first, so that no thread is left with one at the end.
    places.sort_by_key(|(_, job)| std::cmp::Reverse(job.weight.numel()));
    let mut found: Vec<Option<SpectrumValues>> = places.iter().map(|_| None).collect();
    let queue = Mutex::new(places.into_iter());
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (send, queue) = (send.clone(), &queue);
            scope.spawn(move || {
                let mut room = Room::default();
                loop {
                    let next = queue.lock().map(|mut queue| queue.next());
                    let Ok(Some((place, job))) = next else { return };
                    let one =
                        room.eigenvalues(&job.weight, Route::Gram).map(|found| values(&found, job.alpha));
                    // Nobody listens any more after an error.
                    if send.send((place, one.with_context(|| format!("decomposing {}", job.name)))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (count, (place, one)) in receive.into_iter().enumerate() {
            found[place] = Some(one?);
            done(count + 1)?;
        }
        anyhow::Ok(())
    })?;
    found.into_iter().map(|one| one.context("a thread ended without its layer")).collect()
}

#[cfg(test)]
mod tests;
