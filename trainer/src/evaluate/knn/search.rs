//! The search for the nearest rows, exact at the price of a rough product. Every pair is first compared by a product a
//! whose distance from the similarity s, less a constant of the query, is at most e, proven from the rows themselves. Of
//! k rows with a ≥ A the k-th similarity is at least A − e, so a row with a < A − 2e cannot be among the k nearest. What
//! is left, hardly more than k rows a query, is compared exactly. Nothing that is found depends on the rough product.

use super::super::rows::{Rows, in_pieces, similarity};
use super::Neighbour;
#[cfg(target_arch = "x86_64")]
use super::bf16;
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Queries that a thread takes at once: their rows and a piece of the bank fill a second-level cache.
const BLOCK: usize = 240;
/// What a shortlist holds beyond k before it is thinned.
const SPARE: usize = 64;
/// Above f32's rounding of a similarity, so that rows of equal similarity stay in the running together.
pub const ROUNDING: f64 = 1e-6;
/// Queries and rows of the bank in one of libtorch's products: 32 MB.
const PRODUCT: (usize, usize) = (512, 16_384);
/// Products that are looked at together.
const GLANCE: usize = 16;

/// How to search. It changes the time and never the result.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Threads at work.
    pub threads: usize,
    /// Most queries that one of them takes at once.
    pub block: usize,
    /// Rough products in bf16 by the processor's own instructions; else in f32 by libtorch.
    pub bf16: bool,
}

impl Way {
    /// The fastest here.
    pub fn best() -> Way {
        #[cfg(target_arch = "x86_64")]
        let bf16 = bf16::available();
        #[cfg(not(target_arch = "x86_64"))]
        let bf16 = false;
        Way { threads: tch::get_num_threads().max(1) as usize, block: BLOCK, bf16 }
    }
}

/// Who is searched for, and among whom.
pub struct Search<'a> {
    /// Those who may be near.
    pub bank: &'a Rows,
    /// Those whose nearest are asked.
    pub queries: &'a Rows,
    /// Whether the queries are the bank, each of whom is not its own neighbour.
    pub leave_one_out: bool,
    /// How many are asked: at most as many as there are.
    pub k: usize,
}

impl Search<'_> {
    /// The k nearest of each query, by (similarity descending, place ascending).
    ///
    /// # Errors
    /// If libtorch has no memory.
    pub fn run(&self, way: &Way) -> Result<Vec<Vec<Neighbour>>> {
        #[cfg(target_arch = "x86_64")]
        if way.bf16 {
            return Ok(bf16::run(self, way));
        }
        self.by_products(way)
    }

    /// By libtorch's products in f32. Whatever order they sum in, dim + 1 roundings of 2⁻²⁴ bound their error.
    fn by_products(&self, way: &Way) -> Result<Vec<Vec<Neighbour>>> {
        let error = 2.0 * (self.bank.dim() + 1) as f64 * f64::from(f32::EPSILON) + ROUNDING;
        let mut lists = Vec::with_capacity(self.queries.len());
        for begin in (0..self.queries.len()).step_by(PRODUCT.0) {
            let count = PRODUCT.0.min(self.queries.len() - begin);
            let some = self.queries.tensor(begin, count); // [count, dim]
            let mut shortlists: Vec<Shortlist> =
                (0..count).map(|_| Shortlist::new(self.k, error, 0.0)).collect();
            let products = Tensor::zeros([(count * PRODUCT.1) as i64], (Kind::Float, Device::Cpu));
            let mut values = vec![0f32; count * PRODUCT.1];
            for first in (0..self.bank.len()).step_by(PRODUCT.1) {
                let columns = PRODUCT.1.min(self.bank.len() - first);
                let mut products =
                    products.narrow(0, 0, (count * columns) as i64).view([count as i64, columns as i64]);
                products = some.f_matmul_out(&products, &self.bank.tensor(first, columns).tr())?;
                products.f_copy_data(&mut values, count * columns)?;
                let values = &values;
                in_pieces(&mut shortlists, 1, way.threads, |piece, shortlists| {
                    for (row, shortlist) in shortlists.iter_mut().enumerate() {
                        let row = piece + row;
                        self.look(begin + row, first, &values[row * columns..(row + 1) * columns], shortlist);
                    }
                });
            }
            in_pieces(&mut shortlists, 1, way.threads, |piece, shortlists| {
                for (row, shortlist) in shortlists.iter_mut().enumerate() {
                    shortlist.settle(&self.exact(begin + piece + row));
                }
            });
            lists.extend(shortlists.into_iter().map(Shortlist::nearest));
        }
        Ok(lists)
    }

    /// Looks through a query's products with the rows of the bank from `first` on.
    fn look(&self, query: usize, first: usize, products: &[f32], shortlist: &mut Shortlist) {
        let exact = self.exact(query);
        for (glance, some) in products.chunks(GLANCE).enumerate() {
            if some.iter().fold(false, |any, product| any | (*product >= shortlist.floor)) {
                for (at, product) in some.iter().enumerate() {
                    let place = first + glance * GLANCE + at;
                    if *product >= shortlist.floor && !self.is_itself(query, place) {
                        shortlist.offer(*product, place as u32, &exact);
                    }
                }
            }
        }
    }

    /// Whether a row of the bank is the query itself, left out.
    #[inline]
    pub fn is_itself(&self, query: usize, place: usize) -> bool {
        self.leave_one_out && query == place
    }

    /// The exact similarity of a query to a row of the bank.
    #[inline(always)]
    pub fn exact(&self, query: usize) -> impl Fn(u32) -> f32 {
        let row = self.queries.row(query);
        |place| similarity(row, self.bank.row(place as usize))
    }
}

/// The rows that may be among the nearest of one query.
pub struct Shortlist {
    k: usize,
    /// Bound on |product − (similarity − shift)|.
    error: f64,
    shift: f64,
    /// A row whose product is below it is not among the nearest.
    pub floor: f32,
    /// Rows with their products.
    likely: Vec<(f32, u32)>,
    /// The k nearest of those that were compared exactly.
    best: Vec<Neighbour>,
}

impl Shortlist {
    /// An empty one.
    pub fn new(k: usize, error: f64, shift: f64) -> Shortlist {
        Shortlist {
            k,
            error,
            shift,
            floor: f32::NEG_INFINITY,
            likely: Vec::with_capacity(k),
            best: Vec::new(),
        }
    }

    /// Takes a row that is not below the floor.
    #[inline]
    pub fn offer(&mut self, product: f32, place: u32, exact: &impl Fn(u32) -> f32) {
        self.likely.push((product, place));
        if self.likely.len() >= 2 * (self.k + SPARE) {
            self.thin(exact);
        }
    }

    /// Keeps a shortlist short. Where rows are so alike that their products decide too little, they are compared exactly.
    fn thin(&mut self, exact: &impl Fn(u32) -> f32) {
        self.rule_out();
        if self.likely.len() > self.k + SPARE {
            self.compare(exact);
        }
    }

    /// Compares exactly all that are left.
    pub fn settle(&mut self, exact: &impl Fn(u32) -> f32) {
        self.rule_out();
        self.compare(exact);
    }

    /// Lets go of rows that k others are surely nearer than.
    fn rule_out(&mut self) {
        if self.likely.len() > self.k {
            let by_product = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0);
            let (_, (product, _), _) = self.likely.select_nth_unstable_by(self.k - 1, by_product);
            let floor = f64::from(*product) - 2.0 * self.error;
            self.raise(floor);
        }
        let floor = self.floor;
        self.likely.retain(|(product, _)| *product >= floor);
    }

    fn compare(&mut self, exact: &impl Fn(u32) -> f32) {
        self.best
            .extend(self.likely.drain(..).map(|(_, place)| Neighbour { place, similarity: exact(place) }));
        self.best.sort_unstable_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.place.cmp(&b.place)));
        self.best.truncate(self.k);
        if let Some(last) = self.best.get(self.k - 1) {
            self.raise(f64::from(last.similarity) - self.shift - self.error);
        }
    }

    /// The nearest, after all have been settled.
    pub fn nearest(self) -> Vec<Neighbour> {
        self.best
    }

    fn raise(&mut self, floor: f64) {
        self.floor = self.floor.max((floor as f32).next_down());
    }
}
