use super::*;
use crate::weights::bitwise_equal;

/// Captions whose tokens lie around four corners, 0.01 from them.
fn captions() -> Vec<Tensor> {
    let corner = |at: i64| Tensor::from_slice(&[(at % 2) as f32 * 10.0, (at / 2) as f32 * 10.0]);
    let caption = |at: i64| {
        let corners: Vec<Tensor> = (0..3 + at % 2).map(|token| corner((at + token) % 4)).collect();
        Tensor::stack(&corners, 0) + initial::normal(1, &format!("{at}"), &[3 + at % 2, 2], 0.01)
    };
    (0..20).map(caption).collect()
}

#[test]
fn prototypes_are_the_means_of_what_is_near_them() {
    let memory = prototypes(&captions(), 4, 3).unwrap();
    assert_eq!(memory.size(), [4, 2]);
    let mut rounded: Vec<(i64, i64)> = (0..4)
        .map(|at| {
            let value = |axis| memory.double_value(&[at, axis]).round() as i64;
            (value(0), value(1))
        })
        .collect();
    rounded.sort_unstable();
    assert_eq!(rounded, [(0, 0), (0, 10), (10, 0), (10, 10)]);
    // A fixed point: each prototype is the mean of the tokens nearest to it.
    let tokens = Tensor::cat(&captions(), 0);
    let nearest = (tokens.unsqueeze(1) - memory.unsqueeze(0))
        .square()
        .sum_dim_intlist([-1].as_slice(), false, Kind::Float)
        .argmin(1, false);
    for at in 0..4 {
        let own = tokens.index_select(0, &nearest.eq(at).nonzero().squeeze_dim(1));
        let mean = own.mean_dim([0].as_slice(), false, Kind::Float);
        assert!(mean.allclose(&memory.get(at), 1e-5, 1e-5, false));
    }
}

#[test]
fn the_seed_decides_the_memory() {
    let of = |seed| prototypes(&captions(), 7, seed).unwrap();
    assert!(bitwise_equal(&of(3), &of(3)));
    assert!(!bitwise_equal(&of(3), &of(4)));
}

#[test]
fn fewer_distinct_tokens_than_prototypes_are_told() {
    let same = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 1.0, 2.0]).reshape([3, 2]);
    assert_eq!(prototypes(&[same.copy(), same.copy()], 2, 0).unwrap().size(), [2, 2]);
    let error = prototypes(&[same.copy(), same], 3, 0).unwrap_err().to_string();
    let expected =
        "the captions hold 2 distinct tokens and a replay memory of 3 was asked for; lower `method.memory`";
    assert_eq!(error, expected);
    assert!(prototypes(&[], 3, 0).is_err());
}

#[test]
fn a_token_of_weight_0_is_never_drawn() {
    assert_eq!(drawn(&[0.0, 1.0, 0.0, 3.0, 0.0], 0.0), 1);
    assert_eq!(drawn(&[0.0, 1.0, 0.0, 3.0, 0.0], 1.0), 3);
    assert_eq!(drawn(&[0.0, 1.0, 0.0, 3.0, 0.0], 4.0), 3);
}

#[test]
fn of_very_many_tokens_some_are_looked_at() {
    let many = initial::normal(1, "many", &[TOKENS_MAX as i64 + 9, 2], 1.0);
    let memory = prototypes(&[many], 3, 5).unwrap();
    assert!(memory.isfinite().all().int64_value(&[]) == 1);
}
