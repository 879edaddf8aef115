//! Eigenvalues of a symmetric tridiagonal matrix by the QL iteration of Pal, Walker and Kahan, which keeps the squares of
//! the elements beside the diagonal and so takes no square root within a sweep (Parlett, The Symmetric Eigenvalue Problem,
//! §8.14 and §8.15; LAPACK's dsterf is the same iteration).
//!
//! One step of a sweep rotates by c² = p / (p + b²) and s² = b² / (p + b²), where p is the square of the element that was
//! last rotated onto the diagonal, over its c²:
//!
//! γ' = c²·(a − σ) − s²·γ,  p' = γ'² / c²

use anyhow::{Result, bail, ensure};

/// Sweeps for each eigenvalue, on average: two are usual, LAPACK allows thirty.
const SWEEPS: usize = 30;

/// The eigenvalues in ascending order.
///
/// # Shapes
/// `diagonal` [n], `beside` [n − 1]
///
/// # Errors
/// Values that are not finite, or no convergence.
pub fn eigenvalues(mut diagonal: Vec<f64>, beside: Vec<f64>) -> Result<Vec<f64>> {
    let largest = diagonal.iter().chain(&beside).fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let finite = diagonal.iter().chain(&beside).all(|value| value.is_finite());
    ensure!(finite, "values that are not finite have no eigenvalues");
    if largest == 0.0 {
        return Ok(diagonal);
    }
    // Scaled to a largest element of one, no square leaves the range of numbers that matter.
    diagonal.iter_mut().for_each(|value| *value /= largest);
    let mut squares: Vec<f64> = beside.iter().map(|value| (value / largest).powi(2)).collect();
    // A sweep finds the eigenvalue at the beginning, and sooner if the small ones stand there.
    if diagonal.last().map(|last| last.abs()) < diagonal.first().map(|first| first.abs()) {
        diagonal.reverse();
        squares.reverse();
    }
    let mut sweeps = SWEEPS * diagonal.len();
    let mut first = 0;
    while first < diagonal.len() {
        let last = block_end(&diagonal, &mut squares, first);
        if last == first {
            first += 1;
            continue;
        }
        if sweeps == 0 {
            bail!("no convergence after {} sweeps over {} rows", SWEEPS * diagonal.len(), diagonal.len());
        }
        sweeps -= 1;
        sweep(&mut diagonal[first..=last], &mut squares[first..last]);
    }
    diagonal.iter_mut().for_each(|value| *value *= largest);
    diagonal.sort_by(f64::total_cmp);
    Ok(diagonal)
}

/// The last row of the block that begins at `first`: behind it stands an element that rounding cannot tell from zero.
fn block_end(diagonal: &[f64], squares: &mut [f64], first: usize) -> usize {
    let negligible = |at: usize| {
        let rounding = (f64::EPSILON / 2.0).powi(2) * (diagonal[at] * diagonal[at + 1]).abs();
        squares[at] <= rounding + f64::MIN_POSITIVE
    };
    let end = (first..squares.len()).find(|at| negligible(*at));
    if let Some(end) = end {
        squares[end] = 0.0;
    }
    end.unwrap_or(squares.len())
}

/// One sweep from the last row of a block to its first, shifted by the eigenvalue of the first two rows that is nearer to
/// the first (Wilkinson's shift).
fn sweep(diagonal: &mut [f64], squares: &mut [f64]) {
    let last = squares.len();
    let half = (diagonal[1] - diagonal[0]) / (2.0 * squares[0].sqrt());
    let shift = diagonal[0] - squares[0].sqrt() / (half + half.hypot(1.0).copysign(half));
    let (mut cosine, mut sine) = (1.0, 0.0);
    let mut gamma = diagonal[last] - shift;
    let mut p = gamma * gamma;
    for at in (0..last).rev() {
        let square = squares[at];
        let sum = p + square;
        if at + 1 < last {
            squares[at + 1] = sine * sum;
        }
        // 1 / c² beside c²: the next step waits for one division instead of two.
        let (before, inverse) = (cosine, sum / p);
        (cosine, sine) = (p / sum, square / sum);
        let old = gamma;
        gamma = cosine * (diagonal[at] - shift) - sine * old;
        diagonal[at + 1] = old + (diagonal[at] - gamma);
        // With c = 0 the rotation is a quarter turn: what was beside the diagonal stands on it.
        p = if cosine != 0.0 && inverse.is_finite() { gamma * gamma * inverse } else { before * square };
    }
    squares[0] = sine * p;
    diagonal[0] = shift + gamma;
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::{Mat, Side};

    fn near(found: &[f64], expected: &[f64], scale: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 4e-15 * scale, "{found} is not {expected}");
        }
    }

    #[test]
    fn matrices_that_can_be_solved_by_hand() {
        near(&eigenvalues(vec![], vec![]).unwrap(), &[], 1.0);
        near(&eigenvalues(vec![-3.0], vec![]).unwrap(), &[-3.0], 3.0);
        near(&eigenvalues(vec![0.0; 3], vec![0.0; 2]).unwrap(), &[0.0; 3], 1.0);
        near(&eigenvalues(vec![5.0, 5.0], vec![4.0]).unwrap(), &[1.0, 9.0], 9.0);
        // A quarter turn: nothing on the diagonal. √2 · cos(kπ/4).
        near(&eigenvalues(vec![0.0; 3], vec![1.0; 2]).unwrap(), &[-(2f64.sqrt()), 0.0, 2f64.sqrt()], 2.0);
        // Two blocks.
        near(&eigenvalues(vec![2.0, 2.0, 7.0], vec![1.0, 0.0]).unwrap(), &[1.0, 3.0, 7.0], 7.0);
        assert!(eigenvalues(vec![1.0, f64::NAN], vec![1.0]).is_err());
        assert!(eigenvalues(vec![1.0, 1.0], vec![f64::INFINITY]).is_err());
    }

    #[test]
    fn the_chain_of_any_length_and_scale() {
        for n in [2usize, 3, 17, 256, 1000] {
            for scale in [1e-150, 1e-3, 1.0, 1e200] {
                let found = eigenvalues(vec![2.0 * scale; n], vec![-scale; n - 1]).unwrap();
                let known = |k: usize| 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (n as f64 + 1.0)).cos();
                let known: Vec<f64> = (1..=n).map(|k| scale * known(k)).collect();
                near(&found, &known, scale * n as f64);
            }
        }
    }

    #[test]
    fn what_faer_finds() {
        // Graded by ten orders of magnitude, as layers are, and with equal neighbours.
        let graded = |at: usize| 10f64.powi(-((at % 40) as i32) / 4);
        for n in [5usize, 64, 300] {
            let diagonal: Vec<f64> = (0..n).map(graded).collect();
            let beside: Vec<f64> = (1..n).map(|at| 0.7 * (graded(at) * graded(at - 1)).sqrt()).collect();
            let whole = Mat::from_fn(n, n, |row, column| match row.abs_diff(column) {
                0 => diagonal[row],
                1 => beside[row.min(column)],
                _ => 0.0,
            });
            let expected = whole.self_adjoint_eigenvalues(Side::Lower).unwrap();
            near(&eigenvalues(diagonal, beside).unwrap(), &expected, n as f64);
        }
    }
}
