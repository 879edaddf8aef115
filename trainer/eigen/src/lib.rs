//! Squared singular values by way of the Gram matrix: faer's product of one triangle, faer's reduction to tridiagonal form,
//! which reads the matrix once a step where LAPACK's reads it twice, and the eigenvalues of that without square roots, more
//! than twice as fast as faer's own. A crate of its own because it has to be compiled as one unit: spread over several, and
//! without link-time optimisation, faer's kernels are not inlined and take 3.6 times as long.

mod tridiagonal;

use anyhow::{Context, Result, ensure};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par};

/// Memory to compute in, kept from one matrix to the next: pages that are fresh for each cost a tenth of the whole.
pub struct Workspace {
    /// The Gram matrix in its lower triangle, then its tridiagonal form. [side, side]
    gram: Mat<f64>,
    /// Factors of the reflections, which nobody asks for.
    reflections: Mat<f64>,
    scratch: MemBuffer,
}

impl Default for Workspace {
    fn default() -> Workspace {
        Workspace::of(0)
    }
}

impl Workspace {
    fn of(side: usize) -> Workspace {
        let scratch = tridiag_in_place_scratch::<f64>(side, Par::Seq, Default::default());
        let reflections = Mat::zeros(1, side.saturating_sub(1));
        Workspace { gram: Mat::zeros(side, side), reflections, scratch: MemBuffer::new(scratch) }
    }

    /// The squares of the singular values in ascending order: the eigenvalues of XXᵀ, or of XᵀX where that is smaller.
    /// In one thread.
    ///
    /// # Shapes
    /// `matrix` [rows, columns], row by row
    ///
    /// # Errors
    /// A slice of another length, or an iteration that does not converge, as with values that are not finite.
    pub fn squared_singular_values(
        &mut self,
        matrix: &[f64],
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f64>> {
        ensure!(
            matrix.len() == rows * columns,
            "{} values are no matrix of {rows} × {columns}",
            matrix.len()
        );
        let side = rows.min(columns);
        if side == 0 {
            return Ok(Vec::new());
        }
        if self.gram.nrows() != side {
            *self = Workspace::of(side);
        }
        let x = MatRef::from_row_major_slice(matrix, rows, columns);
        let x = if rows <= columns { x } else { x.transpose() };
        let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        let gram = self.gram.as_mut();
        matmul(gram, lower, Accum::Replace, x, whole, x.transpose(), whole, 1.0, Par::Seq);
        let (gram, reflections) = (self.gram.as_mut(), self.reflections.as_mut());
        tridiag_in_place(gram, reflections, Par::Seq, MemStack::new(&mut self.scratch), Default::default());
        let diagonal = (0..side).map(|at| self.gram[(at, at)]).collect();
        let beside = (1..side).map(|at| self.gram[(at, at - 1)]).collect();
        tridiagonal::eigenvalues(diagonal, beside).context("the eigenvalues of its Gram matrix")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-13 * expected.max(1.0), "{found} is not {expected}");
        }
    }

    #[test]
    fn a_matrix_that_can_be_solved_by_hand() {
        // XXᵀ = [[5, 4], [4, 5]]: 1 and 9.
        let x = [2.0, 1.0, 0.0, 1.0, 2.0, 0.0];
        near(&Workspace::default().squared_singular_values(&x, 2, 3).unwrap(), &[1.0, 9.0]);
        let transposed = [2.0, 1.0, 1.0, 2.0, 0.0, 0.0];
        near(&Workspace::default().squared_singular_values(&transposed, 3, 2).unwrap(), &[1.0, 9.0]);
        near(&Workspace::default().squared_singular_values(&[3.0], 1, 1).unwrap(), &[9.0]);
        near(&Workspace::default().squared_singular_values(&[], 0, 4).unwrap(), &[]);
    }

    #[test]
    fn the_differences_of_a_chain_have_the_spectrum_that_is_known() {
        // Differences of neighbours, a row each: XXᵀ is 2 on the diagonal and −1 beside it, 2 − 2 cos(kπ / (n + 1)).
        let n = 100;
        let at = |row: usize, column: usize| match column.wrapping_sub(row) {
            0 => -1.0,
            1 => 1.0,
            _ => 0.0,
        };
        let matrix: Vec<f64> = (0..n * (n + 1)).map(|place| at(place / (n + 1), place % (n + 1))).collect();
        let known = (1..=n).map(|k| 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (n as f64 + 1.0)).cos());
        near(
            &Workspace::default().squared_singular_values(&matrix, n, n + 1).unwrap(),
            &known.collect::<Vec<_>>(),
        );
    }

    #[test]
    fn what_is_no_matrix_is_an_error() {
        assert!(Workspace::default().squared_singular_values(&[1.0, 2.0, 3.0], 2, 2).is_err());
    }
}
