//! The rough products in bf16, two multiplications where f32 has one, by AVX-512's `vdpbf16ps`: twelve queries against
//! 32 rows of the bank in 24 registers, each product compared with its query's floor before it leaves them. What bf16
//! loses is bounded by Cauchy and Schwarz: with q̂ and ĉ the rounded query and the rounded b − μ,
//!
//! ```text
//! |(q·b − q·μ) − q̂·ĉ| ≤ |q − q̂|·|ĉ| + |q|·|b − μ − ĉ| + (dim + 16)·2⁻²³·|q̂|·|ĉ|
//! ```
//!
//! whose last term is the sum's own rounding. Around their mean μ rows are short, however alike an encoder makes them,
//! and so is the bound.

use super::super::rows::{Rows, in_pieces, similarity};
use super::Neighbour;
use super::search::{ROUNDING, Search, Shortlist, Way};
use std::arch::x86_64::{
    __m512bh, __m512i, _CMP_GE_OQ, _mm512_cmp_ps_mask, _mm512_dpbf16_ps, _mm512_load_si512,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::sync::{Mutex, PoisonError};

/// Queries of one step.
const QUERIES: usize = 12;
/// Rows of the bank in one step: two registers.
const COLUMNS: usize = 2 * LANES;
/// Values of f32 in a register.
const LANES: usize = 16;
/// Bytes of the bank that a block of queries meets before the next: with the block they fill a second-level cache.
const GROUP_BYTES: usize = 400 << 10;
/// Rows whose mean is taken: any point among the rows will do.
const CENTRE_ROWS: usize = 4096;
/// More than the length of a unit row can be, rounded as it is.
const UNIT: f64 = 1.000_001;

/// A register of pairs of bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

/// 32 rows of the bank at one pair of places.
type BankPair = [Line; 2];
/// Twelve queries at one pair of places.
type QueryPair = [u32; QUERIES];

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// The search by these products; [`available`] must hold.
pub fn run(search: &Search, way: &Way) -> Vec<Vec<Neighbour>> {
    assert!(available(), "this processor has no bf16 products");
    let bank = Bank::of(search.bank, way.threads);
    let mut lists = vec![Vec::new(); search.queries.len()];
    let block = way.block.min(lists.len().div_ceil(4 * way.threads)).max(1).next_multiple_of(QUERIES);
    let blocks = Mutex::new(lists.chunks_mut(block).enumerate());
    std::thread::scope(|scope| {
        for _ in 0..way.threads {
            scope.spawn(|| {
                loop {
                    let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((at, lists)) = next else { break };
                    // SAFETY: the instructions are available.
                    unsafe { bank.search(search, at * block, lists) };
                }
            });
        }
    });
    lists
}

/// The bank as the products want it.
struct Bank {
    /// For each 32 rows their pairs of places.
    pairs: Vec<BankPair>,
    /// Pairs of places in a row.
    width: usize,
    /// μ
    centre: Vec<f32>,
    /// Most of |ĉ|.
    length: f64,
    /// Most of |b − μ − ĉ|.
    residual: f64,
}

impl Bank {
    fn of(rows: &Rows, threads: usize) -> Bank {
        let (width, centre) = (rows.dim().div_ceil(2), centre(rows));
        let mut pairs = vec![[Line([0; LANES]); 2]; rows.len().div_ceil(COLUMNS) * width];
        let most = Mutex::new((0f64, 0f64));
        in_pieces(&mut pairs, width, threads, |begin, pairs| {
            let mut rounded = Rounded::new(width);
            let (mut length, mut residual) = (0f64, 0f64);
            for (at, panel) in pairs.chunks_exact_mut(width).enumerate() {
                let first = (begin + at) * COLUMNS;
                for row in first..(first + COLUMNS).min(rows.len()) {
                    rounded.round(
                        rows.row(row).iter().zip(&centre).map(|(b, mu)| f64::from(*b) - f64::from(*mu)),
                    );
                    (length, residual) = (length.max(rounded.length), residual.max(rounded.residual));
                    let column = row - first;
                    for (pair, word) in panel.iter_mut().zip(&rounded.words) {
                        pair[column / LANES].0[column % LANES] = *word;
                    }
                }
            }
            let mut most = most.lock().unwrap_or_else(PoisonError::into_inner);
            *most = (most.0.max(length), most.1.max(residual));
        });
        let (length, residual) = most.into_inner().unwrap_or_else(PoisonError::into_inner);
        Bank { pairs, width, centre, length, residual }
    }

    /// Fills the lists of the queries from `begin` on.
    ///
    /// # Safety
    /// [`available`] must hold.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn search(&self, search: &Search, begin: usize, lists: &mut [Vec<Neighbour>]) {
        let mut queries = vec![[0; QUERIES]; lists.len().div_ceil(QUERIES) * self.width];
        // A row of no query lets nothing pass.
        let mut floors = vec![[f32::INFINITY; QUERIES]; queries.len() / self.width];
        let mut rounded = Rounded::new(self.width);
        let mut shortlists: Vec<Shortlist> = (0..lists.len())
            .map(|at| {
                let query = search.queries.row(begin + at);
                rounded.round(query.iter().map(|value| f64::from(*value)));
                let panel = &mut queries[at / QUERIES * self.width..];
                for (pair, word) in panel.iter_mut().zip(&rounded.words) {
                    pair[at % QUERIES] = *word;
                }
                floors[at / QUERIES][at % QUERIES] = f32::NEG_INFINITY;
                let shift =
                    query.iter().zip(&self.centre).map(|(q, mu)| f64::from(*q) * f64::from(*mu)).sum();
                Shortlist::new(search.k, self.error(&rounded), shift)
            })
            .collect();

        // Written here, so that it is compiled for this processor.
        let exact = |query| move |place: u32| similarity(query, search.bank.row(place as usize));
        let panels = self.pairs.len() / self.width;
        let group = (GROUP_BYTES / (self.width * size_of::<BankPair>())).max(1);
        let mut products = [[0f32; COLUMNS]; QUERIES];
        for first in (0..panels).step_by(group) {
            for (block, floors) in floors.iter_mut().enumerate() {
                let queries = &queries[block * self.width..(block + 1) * self.width];
                for panel in first..(first + group).min(panels) {
                    let bank = &self.pairs[panel * self.width..(panel + 1) * self.width];
                    let passed = multiply(queries, bank, floors, &mut products);
                    if passed == [0; QUERIES] {
                        continue;
                    }
                    for (row, mut passed) in passed.into_iter().enumerate().filter(|(_, passed)| *passed != 0)
                    {
                        let at = block * QUERIES + row;
                        let (shortlist, query) = (&mut shortlists[at], search.queries.row(begin + at));
                        while passed != 0 {
                            let column = passed.trailing_zeros() as usize;
                            passed &= passed - 1;
                            let (place, product) = (panel * COLUMNS + column, products[row][column]);
                            let is_row = place < search.bank.len() && !search.is_itself(begin + at, place);
                            if is_row && product >= shortlist.floor {
                                shortlist.offer(product, place as u32, &exact(query));
                            }
                        }
                        floors[row] = shortlist.floor;
                    }
                }
            }
        }
        for (at, (list, mut shortlist)) in lists.iter_mut().zip(shortlists).enumerate() {
            shortlist.settle(&exact(search.queries.row(begin + at)));
            *list = shortlist.nearest();
        }
    }

    /// The bound of the module's equation, for every row of the bank.
    fn error(&self, query: &Rounded) -> f64 {
        let sums = (2 * self.width + 16) as f64 * f64::from(f32::EPSILON);
        query.residual * self.length + UNIT * self.residual + sums * query.length * self.length + ROUNDING
    }
}

/// The mean of some rows.
fn centre(rows: &Rows) -> Vec<f32> {
    let mut sums = vec![0f64; rows.dim()];
    let step = rows.len().div_ceil(CENTRE_ROWS);
    for row in (0..rows.len()).step_by(step) {
        sums.iter_mut().zip(rows.row(row)).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let count = rows.len().div_ceil(step) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// A row in bf16.
struct Rounded {
    /// Two values each, the first in the lower half.
    words: Vec<u32>,
    length: f64,
    residual: f64,
}

impl Rounded {
    fn new(width: usize) -> Rounded {
        Rounded { words: vec![0; width], length: 0.0, residual: 0.0 }
    }

    /// To the nearest, to the even one of two.
    fn round(&mut self, values: impl Iterator<Item = f64>) {
        let (mut length, mut residual) = (0f64, 0f64);
        self.words.fill(0);
        for (at, value) in values.enumerate() {
            let bits = (value as f32).to_bits();
            let bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            self.words[at / 2] |= bits << (16 * (at % 2));
            let rounded = f64::from(f32::from_bits(bits << 16));
            length += rounded * rounded;
            residual += (value - rounded) * (value - rounded);
        }
        (self.length, self.residual) = (length.sqrt(), residual.sqrt());
    }
}

/// The products of twelve queries with 32 rows, and for each query a bit for each product that reaches its floor.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn multiply(
    queries: &[QueryPair],
    bank: &[BankPair],
    floors: &[f32; QUERIES],
    products: &mut [[f32; COLUMNS]; QUERIES],
) -> [u32; QUERIES] {
    let mut sums = [[_mm512_setzero_ps(); 2]; QUERIES];
    for (queries, bank) in queries.iter().zip(bank) {
        let [left, right] = [pairs(load(&bank[0])), pairs(load(&bank[1]))];
        for row in 0..QUERIES {
            let query = pairs(_mm512_set1_epi32(queries[row].cast_signed()));
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], left, query);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], right, query);
        }
    }
    let mut passed = [0; QUERIES];
    for row in 0..QUERIES {
        let floor = _mm512_set1_ps(floors[row]);
        let left = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(sums[row][0], floor);
        let right = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(sums[row][1], floor);
        passed[row] = u32::from(left) | u32::from(right) << LANES;
        let (first, second) = products[row].split_at_mut(LANES);
        // SAFETY: each half holds a register's sixteen values.
        unsafe {
            _mm512_storeu_ps(first.as_mut_ptr(), sums[row][0]);
            _mm512_storeu_ps(second.as_mut_ptr(), sums[row][1]);
        }
    }
    passed
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is a register's 64 bytes, aligned to them.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// The same bits, read as pairs of bf16.
#[inline(always)]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which every value is one.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
