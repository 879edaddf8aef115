//! Features as unit rows of f32, and the similarity of two of them.

use anyhow::{Result, bail, ensure};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// Partial sums of a similarity.
const LANES: usize = 8;

/// Rows of length one, f32.
pub struct Rows {
    values: Vec<f32>,
    dim: usize,
}

impl Rows {
    /// x / max(|x|, 1e-12), as torch's `normalize`, each quotient rounded once: the length is summed in f64.
    ///
    /// # Shapes
    /// `features` [rows, dim]
    ///
    /// # Errors
    /// A value that is not finite; `what` and `whose` name the row.
    pub fn of(features: &Tensor, what: &str, whose: &str, threads: usize) -> Result<Rows> {
        let (rows, dim) = features.size2()?;
        ensure!(dim > 0, "features must have a width, are {:?}", features.size());
        let features = features.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let (dim, count) = (dim as usize, rows as usize * dim as usize);
        let mut values = vec![0f32; count];
        features.copy_data(&mut values, count);
        let broken = Mutex::new(None::<(usize, f32)>);
        in_pieces(&mut values, dim, threads, |begin, rows| {
            for (at, row) in rows.chunks_exact_mut(dim).enumerate() {
                if let Some(value) = row.iter().find(|value| !value.is_finite()) {
                    let mut first = broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    *first = first.filter(|(row, _)| *row < begin + at).or(Some((begin + at, *value)));
                    return;
                }
                let length = similarity_in_f64(row, row).sqrt().max(1e-12);
                row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        });
        if let Some((row, value)) = broken.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            let whose = if whose.is_empty() { String::new() } else { format!(" {whose}") };
            bail!(
                "the features of {what} {row}{whose} hold {value}; the encoder's weights or its dtype overflow"
            );
        }
        Ok(Rows { values, dim })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Values in one.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// One of them.
    pub fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.dim..(at + 1) * self.dim]
    }

    /// All of them, for sums in f64. [rows, dim]
    pub fn in_f64(&self) -> Tensor {
        self.tensor(0, self.len()).to_kind(Kind::Double)
    }

    /// The rows from `begin` on as a tensor. [rows, dim]
    pub fn tensor(&self, begin: usize, rows: usize) -> Tensor {
        let values = &self.values[begin * self.dim..(begin + rows) * self.dim];
        Tensor::from_slice(values).view([rows as i64, self.dim as i64])
    }
}

/// Hands rows of `width` values to threads, a piece each; `work` is told the first row of its piece.
pub fn in_pieces<T: Send>(
    values: &mut [T],
    width: usize,
    threads: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let rows = values.len() / width.max(1);
    let piece = rows.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (at, values) in values.chunks_mut(piece * width.max(1)).enumerate() {
            let work = &work;
            scope.spawn(move || work(at * piece, values));
        }
    });
}

/// The similarity of two rows: the f32 nearest to their product. A product of two f32 is exact in f64, so only the sums
/// round, to less than 1e-13 of the whole: it is the exact similarity but for f32's own rounding.
#[inline(always)]
pub fn similarity(a: &[f32], b: &[f32]) -> f32 {
    // A zero has no sign here: equal similarities are to be equal in every order.
    similarity_in_f64(a, b) as f32 + 0.0
}

#[inline(always)]
fn similarity_in_f64(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_pieces, b_pieces) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_pieces
        .remainder()
        .iter()
        .zip(b_pieces.remainder())
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum();
    for (a, b) in a_pieces.zip(b_pieces) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7] = sums;
    ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_similarity_is_the_nearest_f32_to_the_exact_one() {
        // 2²⁴ + 1 − 2²⁴: in f32 sums the one is lost.
        let big = [4096.0f32, 1.0, 4096.0];
        assert_eq!(similarity(&big, &[4096.0, 1.0, -4096.0]), 1.0);
        let long: Vec<f32> = (0..19).map(|at| at as f32).collect();
        assert_eq!(similarity(&long, &long), (0..19).map(|at| at * at).sum::<i32>() as f32);
    }

    #[test]
    fn rows_have_length_one_and_zero_stays_zero() {
        let features = Tensor::from_slice2(&[[3.0f32, 4.0], [0.0, 0.0], [1e30, 0.0]]);
        for threads in [1, 2, 5] {
            let rows = Rows::of(&features, "image", "", threads).unwrap();
            assert_eq!(rows.values, [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn the_first_row_that_is_no_number_is_named() {
        let mut values = vec![1f32; 20];
        (values[14], values[7]) = (f32::NAN, f32::INFINITY);
        let features = Tensor::from_slice(&values).view([10, 2]);
        for threads in [1, 2, 3] {
            let error = Rows::of(&features, "image", "of the bank", threads).err().unwrap().to_string();
            assert!(error.starts_with("the features of image 3 of the bank hold inf"), "{error}");
        }
    }
}
