//! DINO's weighted k-NN (eval_knn.py; methods.md §12): features are L2-normalised, the k most similar of the bank vote
//! for their class with exp(similarity / T). What its code leaves to chance is decided here: neighbours by
//! (similarity descending, place ascending), classes by (score descending, label ascending).

use anyhow::{Result, ensure};
use causeway_protocol::Hits;
use tch::{Kind, Tensor};

/// Queries in one product. Fixed, so that the same features always go through the same kernels.
const QUERY_CHUNK: i64 = 512;
/// Bank images in one product: bounds memory to 32 MB whatever the bank's size.
const BANK_CHUNK: i64 = 16_384;
/// Classes whose first members count as a top-5 hit.
const TOP: usize = 5;

/// What is scored against what.
pub struct Question<'a> {
    /// Features of the bank, `[bank, dim]`, f32.
    pub bank: &'a Tensor,
    /// Label of each bank image.
    pub bank_labels: &'a [u32],
    /// Features of the queries, `[queries, dim]`, f32; none to score the bank against itself, each image left out.
    pub queries: Option<&'a Tensor>,
    /// Label of each query.
    pub query_labels: &'a [u32],
    /// Number of classes.
    pub classes: usize,
}

/// Which queries are right for one k.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Score {
    /// Those whose first class is right.
    pub hits: Hits,
    /// How many have their label among the first five classes.
    pub correct_top5: u32,
}

/// A neighbour: its place in the bank and how similar it is.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Neighbour {
    place: u32,
    similarity: f32,
}

/// Scores every k from one search. A k larger than the bank is the bank.
pub fn score(question: &Question, ks: &[u32], temperature: f64) -> Result<Vec<Score>> {
    let neighbours = nearest(question, ks, QUERY_CHUNK, BANK_CHUNK)?;
    let one = |k: &u32| {
        let rankings = neighbours.iter().map(|list| {
            let list = &list[..list.len().min(*k as usize)];
            rank(list, question.bank_labels, question.classes, temperature)
        });
        let mut first = Vec::with_capacity(neighbours.len());
        let mut correct_top5 = 0;
        for (ranking, label) in rankings.zip(question.query_labels) {
            first.push(ranking[0] == *label);
            correct_top5 += u32::from(ranking.contains(label));
        }
        Score { hits: Hits::from_flags(&first), correct_top5 }
    };
    Ok(ks.iter().map(one).collect())
}

/// The neighbours of each query for the largest k.
fn nearest(
    question: &Question,
    ks: &[u32],
    query_chunk: i64,
    bank_chunk: i64,
) -> Result<Vec<Vec<Neighbour>>> {
    let bank = normalise(question.bank);
    let queries = question.queries.map_or_else(|| bank.shallow_clone(), normalise);
    let (bank_size, query_size) = (bank.size()[0], queries.size()[0]);
    ensure!(
        bank_size as usize == question.bank_labels.len()
            && query_size as usize == question.query_labels.len(),
        "{bank_size} + {query_size} features for {} + {} labels",
        question.bank_labels.len(),
        question.query_labels.len()
    );
    let leave_one_out = question.queries.is_none();
    let most = bank_size as usize - usize::from(leave_one_out);
    let k = ks.iter().max().map_or(0, |k| *k as usize).min(most);
    ensure!(k > 0, "there are no neighbours to ask");

    let mut lists: Vec<Vec<Neighbour>> = vec![Vec::with_capacity(k + 1); query_size as usize];
    for query_begin in (0..query_size).step_by(query_chunk as usize) {
        let some_queries = queries.narrow(0, query_begin, query_chunk.min(query_size - query_begin));
        for bank_begin in (0..bank_size).step_by(bank_chunk as usize) {
            let columns = bank_chunk.min(bank_size - bank_begin);
            let similarities = some_queries.matmul(&bank.narrow(0, bank_begin, columns).tr()); // [queries, columns]
            let values = Vec::<f32>::try_from(similarities.contiguous().view(-1))?;
            for (row, values) in values.chunks_exact(columns as usize).enumerate() {
                let query = query_begin as usize + row;
                let itself = leave_one_out.then_some(query);
                keep_nearest(&mut lists[query], values, bank_begin as usize, itself, k)?;
            }
        }
    }
    Ok(lists)
}

/// x / max(|x|, 1e-12), f32, as torch's `normalize`.
fn normalise(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let norm = features.norm_scalaropt_dim(2.0, [1], true).clamp_min(1e-12); // [images, 1]
    features / norm
}

/// Merges a piece of the bank into the k nearest so far. Places ascend, so an equal similarity never moves an earlier
/// place back: the tie rule.
fn keep_nearest(
    list: &mut Vec<Neighbour>,
    similarities: &[f32],
    begin: usize,
    itself: Option<usize>,
    k: usize,
) -> Result<()> {
    for (at, similarity) in similarities.iter().copied().enumerate() {
        let place = begin + at;
        ensure!(similarity.is_finite(), "the similarity to image {place} of the bank is {similarity}");
        if itself == Some(place) || (list.len() == k && similarity <= list[k - 1].similarity) {
            continue;
        }
        let slot = list.partition_point(|neighbour| neighbour.similarity >= similarity);
        list.insert(slot, Neighbour { place: place as u32, similarity });
        list.truncate(k);
    }
    Ok(())
}

/// The first five classes by vote. The votes of f32 similarities are summed in f64, in which exp(1 / T) is finite for
/// every T that a spec may ask for.
fn rank(neighbours: &[Neighbour], labels: &[u32], classes: usize, temperature: f64) -> Vec<u32> {
    let mut scores = vec![0f64; classes];
    for neighbour in neighbours {
        scores[labels[neighbour.place as usize] as usize] +=
            (f64::from(neighbour.similarity) / temperature).exp();
    }
    let mut order: Vec<u32> = (0..classes as u32).collect();
    // Stable, so that classes of equal score stay in the order of their labels.
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    order.truncate(TOP);
    order
}

#[cfg(test)]
mod tests;
