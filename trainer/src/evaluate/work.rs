//! What a sweep costs, by counting. A forward pass of an image with t tokens of width d through a block with an MLP of
//! width m takes
//!
//! 2·(4d² + 2dm)·t + 4t²·d
//!
//! operations, a multiplication and an addition being two; the patch embedding takes 2·3p²·d·t. Where the feature is the
//! class token, the last block takes keys and values of all tokens and the rest of one: 4d²·t + 4td + 4d² + 4dm. Blocks
//! that are equal at both ends of the line are computed once for all α, so A of them cost
//!
//! shared + A·own instead of A·(shared + own).
//!
//! What a method adds is not counted: it is small, and the same for every α.

use crate::models::vit::VitConfig;
use crate::weights::interpolate::Line;

/// Operations of one image.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Work {
    /// Once for all α.
    pub shared: f64,
    /// For each α.
    pub own: f64,
    /// For each α in a tool that shares nothing and computes every token of every block.
    pub usual: f64,
}

impl Work {
    /// What the images of a sweep along a line cost.
    pub fn of(line: &Line, image_size: u32) -> Work {
        Work::with(line.config(), image_size, line.shared_blocks(), line.needs_all_tokens())
    }

    fn with(config: &VitConfig, image_size: u32, shared_blocks: Option<i64>, all_tokens: bool) -> Work {
        let side = (i64::from(image_size) / config.patch) as f64;
        let (tokens, dim, mlp) = (1.0 + side * side, config.dim as f64, config.mlp_dim as f64);
        let embedding = 6.0 * (config.patch * config.patch) as f64 * dim * side * side;
        let block = 2.0 * (4.0 * dim * dim + 2.0 * dim * mlp) * tokens + 4.0 * tokens * tokens * dim;
        let class_alone = 4.0 * dim * dim * tokens + 4.0 * tokens * dim + 4.0 * dim * dim + 4.0 * dim * mlp;
        let depth = config.depth as f64;
        let last = if all_tokens { block } else { class_alone };
        let whole = embedding + (depth - 1.0) * block + last;
        let shared = match shared_blocks {
            None => 0.0,
            // The last block is computed for each α, for its class token alone.
            Some(blocks) if all_tokens => embedding + blocks as f64 * block,
            Some(blocks) => embedding + (blocks as f64).min(depth - 1.0) * block,
        };
        Work { shared, own: whole - shared, usual: embedding + depth * block }
    }

    /// Operations of one image at so many α.
    pub fn at(&self, alphas: usize) -> f64 {
        if alphas == 0 { 0.0 } else { self.shared + alphas as f64 * self.own }
    }

    /// Operations of so many images at so many α, of which `resident` are computed together.
    pub fn operations(&self, images: usize, alphas: usize, resident: usize) -> f64 {
        let groups = alphas.div_ceil(resident.max(1)) as f64;
        images as f64 * (groups * self.shared + alphas as f64 * self.own)
    }

    /// How many times faster than the usual way so many α can be at the same rate of operations.
    pub fn bound(&self, alphas: usize) -> f64 {
        alphas as f64 * self.usual / self.at(alphas).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vit_b_16_costs_what_is_published_and_less_where_only_the_class_token_is_asked() {
        let work = |shared, all| Work::with(&VitConfig::default(), 224, shared, all);
        // 17.56 GMAC (methods.md §1).
        assert!((work(None, true).own / 2e9 - 17.56).abs() < 0.01, "{:?}", work(None, true));
        assert_eq!(work(None, true).usual, work(None, true).own);
        // Eleven blocks and about a sixth of the twelfth.
        let alone = work(None, false);
        assert!((alone.usual / alone.own - 1.074).abs() < 0.002, "{}", alone.usual / alone.own);
    }

    #[test]
    fn blocks_that_are_shared_cost_once() {
        let work = |shared, all| Work::with(&VitConfig::default(), 224, shared, all);
        let nine = work(Some(9), false);
        assert!((nine.shared + nine.own - work(None, false).own).abs() < 1.0);
        // 12A / (k + A(12 − k)) for k = 9 and A = 11 (methods.md §23), where the last block is like the others.
        let all = work(Some(9), true);
        assert!((all.bound(11) - 132.0 / 42.0).abs() < 0.05, "{}", all.bound(11));
        assert!(nine.bound(11) > all.bound(11));
        // The last block is not among the shared ones where it is computed for the class token.
        assert_eq!(work(Some(12), false), work(Some(11), false));
        assert_eq!(work(Some(12), true).own, 0.0);
        assert_eq!((nine.at(0), nine.at(1)), (0.0, nine.shared + nine.own));
    }
}
