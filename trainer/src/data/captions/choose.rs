//! Which images of a collection are taken, and which caption of each. "COCO 10K" is the 10,000 images that come first
//! in an order made from seed and image alone: the same whatever order the files list them in, and the first half of
//! "COCO 20K". An image that cannot be used is passed over, and the next in that order takes its place.

use super::manifest::Missing;
use super::{Account, Candidate, CaptionsManifest, Choice, clean};
use crate::data::asset::Format;
use crate::data::dataset::Source;
use crate::weights::initial;
use anyhow::{Result, bail};

/// An image that was chosen, with its caption.
pub struct Chosen {
    pub key: String,
    pub source: Source,
    pub caption: String,
}

/// Goes through the candidates in their order.
pub struct Chooser<'a> {
    candidates: &'a [Candidate],
    order: std::vec::IntoIter<usize>,
    options: &'a CaptionsManifest,
    pub missing: Missing,
    pub account: Account,
}

impl<'a> Chooser<'a> {
    /// Starts at the beginning: of the list, or, with a limit, of the seed's order.
    pub fn new(
        candidates: &'a [Candidate],
        options: &'a CaptionsManifest,
        format: Format,
        incomplete: usize,
    ) -> Chooser<'a> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if options.limit.is_some() {
            // Equal keys stay in the order of the list.
            order.sort_by_cached_key(|at| rank(options.seed, &candidates[*at].key));
        }
        let account = Account { listed: candidates.len() + incomplete, incomplete, ..Account::default() };
        Chooser { candidates, order: order.into_iter(), options, missing: options.missing(format), account }
    }

    /// The next usable images, `count` or as many as are left.
    pub fn take(&mut self, count: usize) -> Result<Vec<Chosen>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let Some(at) = self.order.next() else { break };
            if let Some(chosen) = self.consider(&self.candidates[at])? {
                taken.push(chosen);
            }
        }
        Ok(taken)
    }

    fn consider(&mut self, candidate: &Candidate) -> Result<Option<Chosen>> {
        let name = || candidate.picture.name();
        let Some(source) = candidate.picture.find() else {
            if self.missing == Missing::Error {
                bail!(
                    "the image {} is missing; fetch it, or leave such images out with [captions] missing = \"skip\"",
                    name()
                );
            }
            self.account.missing.add(name());
            return Ok(None);
        };
        let mut captions: Vec<String> = candidate.text.read()?.iter().map(|text| clean(text)).collect();
        let written = captions.len();
        captions.retain(|caption| !caption.is_empty());
        self.account.empty += written - captions.len();
        if captions.is_empty() {
            self.account.captionless.add(name());
            return Ok(None);
        }
        let at = match self.options.caption {
            Choice::First => 0,
            Choice::Random => {
                let label = format!("caption/{}", candidate.key);
                initial::stream(self.options.seed, &label).below(captions.len() as u64) as usize
            }
        };
        Ok(Some(Chosen { key: candidate.key.clone(), source, caption: captions.swap_remove(at) }))
    }
}

/// Place of an image in a seed's order.
fn rank(seed: u64, key: &str) -> u64 {
    initial::stream(seed, &format!("subset/{key}")).next_u64()
}
