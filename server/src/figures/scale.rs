//! Axes and label places. All panels span the same number of points, each from its own offset, so that slopes
//! compare between datasets.

/// The spans a panel may have, in points, and the distance of ticks in each.
const SPANS: [(f64, f64); 6] =
    [(5.0, 1.0), (10.0, 2.0), (20.0, 5.0), (40.0, 10.0), (60.0, 20.0), (100.0, 25.0)];

/// Share of the data's extent that must stay free, both sides together.
const ROOM: f64 = 0.1;

/// The common span and, for each panel, where it begins.
#[derive(Clone, PartialEq, Debug)]
pub struct CommonSpan {
    /// Points that each panel spans.
    pub span: f64,
    /// Distance of ticks, points.
    pub step: f64,
    /// Lower end of each panel, in the order given.
    pub from: Vec<f64>,
}

/// The smallest span that holds every extent (lowest, highest; percent) with some room.
pub fn common_span(extents: &[(f64, f64)]) -> CommonSpan {
    for (span, step) in SPANS {
        let from: Option<Vec<f64>> = extents.iter().map(|extent| offset(*extent, span, step)).collect();
        if let Some(from) = from {
            return CommonSpan { span, step, from };
        }
    }
    CommonSpan { span: 100.0, step: 25.0, from: vec![0.0; extents.len()] }
}

/// The multiple of `step` from which `span` holds the extent with the least lopsided room.
fn offset((lowest, highest): (f64, f64), span: f64, step: f64) -> Option<f64> {
    let room = (highest - lowest) * ROOM / 2.0;
    let (need_lo, need_hi) = ((lowest - room).max(0.0), (highest + room).min(100.0));
    let centred = (lowest + highest - span) / 2.0;
    let nearest = (centred / step).round() * step;
    [nearest, nearest - step, nearest + step]
        .into_iter()
        .map(|from| from.clamp(0.0, 100.0 - span))
        .find(|from| *from <= need_lo + 1e-9 && from + span >= need_hi - 1e-9)
}

/// One scale for differences, with 0 on a tick: (from, to, step).
pub fn difference_scale(lowest: f64, highest: f64) -> (f64, f64, f64) {
    let extent = (highest.max(0.0) - lowest.min(0.0)).max(1.0) * (1.0 + ROOM);
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 25.0, 50.0]
        .into_iter()
        .find(|step| extent / step <= 6.0)
        .unwrap_or(50.0);
    let room = extent * ROOM / 4.0;
    let from = ((lowest.min(0.0) - room) / step).floor() * step;
    let to = ((highest.max(0.0) + room) / step).ceil() * step;
    (from, to, step)
}

/// A scale of about four steps of 1, 2 or 5 times a power of ten that holds all from `lo` to `hi`: (from, to, step).
pub fn nice_axis(lo: f64, hi: f64) -> (f64, f64, f64) {
    let extent = (hi - lo).max(1e-3 * hi.abs()).max(1e-9);
    let rough = extent / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough);
    ((lo / step).floor() * step, (hi / step).ceil() * step, step)
}

/// Multiples of `step` from `from` to `to`.
pub fn ticks(from: f64, to: f64, step: f64) -> Vec<f64> {
    let count = ((to - from) / step).round() as usize;
    (0..=count).map(|at| ((from + at as f64 * step) * 1e6).round() / 1e6).collect()
}

/// Moves label centres apart until neighbours are `gap` apart and all lie within `top..bottom`, as little as
/// needed: neighbours that collide become a block, which sits at the mean of where its members want to be.
pub fn spread(wanted: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    // (members, sum of the block starts that its members ask for)
    let mut blocks: Vec<(Vec<usize>, f64)> = Vec::new();
    let start = |block: &(Vec<usize>, f64)| {
        let height = (block.0.len() as f64 - 1.0) * gap;
        (block.1 / block.0.len() as f64).clamp(top, (bottom - height).max(top))
    };
    for label in order {
        blocks.push((vec![label], wanted[label]));
        while let [.., before, last] = blocks.as_slice() {
            if start(before) + before.0.len() as f64 * gap <= start(last) + 1e-9 {
                break;
            }
            let (members, sum) = blocks.pop().unwrap_or_default();
            if let Some(block) = blocks.last_mut() {
                let shift = block.0.len() as f64 * gap * members.len() as f64;
                block.1 += sum - shift;
                block.0.extend(members);
            }
        }
    }
    let mut placed = vec![0.0; wanted.len()];
    for block in &blocks {
        let from = start(block);
        for (at, label) in block.0.iter().enumerate() {
            placed[*label] = from + at as f64 * gap;
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_panels_span_the_same_points_from_their_own_offset() {
        let found = common_span(&[(71.0, 78.0), (20.0, 21.0), (96.0, 100.0)]);
        assert_eq!((found.span, found.step), (10.0, 2.0));
        assert_eq!(found.from, vec![70.0, 16.0, 90.0]);
        assert_eq!(common_span(&[(0.0, 100.0)]).span, 100.0);
        assert_eq!(common_span(&[(50.0, 50.0)]).span, 5.0);
    }

    #[test]
    fn differences_have_zero_on_a_tick() {
        let (from, to, step) = difference_scale(-7.3, 2.1);
        assert_eq!((from, to, step), (-8.0, 4.0, 2.0));
        assert_eq!(ticks(from, to, step), vec![-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0]);
    }

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        assert_eq!(spread(&[10.0, 50.0], 14.0, 0.0, 100.0), vec![10.0, 50.0]);
        assert_eq!(spread(&[50.0, 50.0], 14.0, 0.0, 100.0), vec![43.0, 57.0]);
        assert_eq!(spread(&[2.0, 1.0, 3.0], 14.0, 0.0, 100.0), vec![14.0, 0.0, 28.0]);
        assert_eq!(spread(&[99.0, 100.0], 14.0, 0.0, 100.0), vec![86.0, 100.0]);
    }
}
