use super::*;
use crate::methods::testing::text;
use crate::weights::bitwise_equal;
use tch::Device;

fn draw(name: &str, shape: &[i64]) -> Tensor {
    initial::normal(5, name, shape, 1.0)
}

fn mask(rows: &[[bool; 3]]) -> Tensor {
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, 3])
}

#[test]
fn an_attention_has_four_matrices_of_width_times_rank_and_a_gate() {
    let mut added = Added::default();
    Attention::add(&mut added, "blocks.0.fusion.", (768, 8), 1);
    assert_eq!(added.start.values(), 4 * 768 * 8 + 1);
    assert_eq!(added.theta0["blocks.0.fusion.gate"], Tensor::from(0f32));
}

#[test]
fn weights_are_a_softmax_over_the_keys_that_are_open() {
    // Two keys at a score of 0 and ln 2 after the division by √4: weights of 1/3 and 2/3.
    let query = Tensor::from_slice(&[1f32, 0.0, 0.0, 0.0]).reshape([1, 1, 4]);
    let key = Tensor::zeros([1, 3, 4], (Kind::Float, Device::Cpu));
    let _ = key.get(0).get(2).get(0).fill_(2.0 * 2f64.ln());
    let found = weights(&query, &key, Some(&mask(&[[true, false, true]])));
    let expected = Tensor::from_slice(&[1f32 / 3.0, 0.0, 2.0 / 3.0]).reshape([1, 1, 3]);
    assert!(found.allclose(&expected, 1e-6, 0.0, false), "{found}");
}

#[test]
fn what_may_see_nothing_sees_0_and_has_a_gradient() {
    let (query, key) = (draw("q", &[2, 4, 8]).set_requires_grad(true), draw("k", &[2, 3, 8]));
    let found = weights(&query, &key, Some(&mask(&[[false; 3], [true, false, true]])));
    assert_eq!(found.get(0).abs().max().double_value(&[]), 0.0);
    assert!(found.get(1).sum_dim_intlist([-1].as_slice(), false, Kind::Float).allclose(
        &Tensor::ones([4], (Kind::Float, Device::Cpu)),
        1e-6,
        0.0,
        false
    ));
    let gradient = Tensor::run_backward(&[found.square().sum(Kind::Float)], &[&query], false, false);
    assert_eq!(gradient[0].get(0).abs().max().double_value(&[]), 0.0);
    assert!(gradient[0].get(1).abs().max().double_value(&[]) > 0.0, "{}", gradient[0]);
}

#[test]
fn stand_ins_are_seen_where_a_caption_is_missing_and_nowhere_else() {
    let (captions, without) = (text(&[2, 0, 3]), draw("without", &[2, 32]));
    let keys = Keys::captions(Some(&captions), Some(&without), &draw("p", &[64, 32]));
    assert_eq!(keys.tokens.size(), [3, 5, 64]);
    let expected = [
        [true, true, false, false, false],
        [false, false, false, true, true],
        [true, true, true, false, false],
    ];
    assert_eq!(keys.open.unwrap(), Tensor::from_slice(&expected.concat()).reshape([3, 5]));
    let keys = Keys::captions(None, Some(&without), &draw("p", &[64, 32]));
    assert!(keys.open.is_none() && keys.tokens.size() == [1, 2, 64]);
    let keys = Keys::captions(None, None, &draw("p", &[64, 32]));
    assert_eq!(keys.open.unwrap(), Tensor::from_slice(&[false]).reshape([1, 1]));
}

#[test]
fn no_gradient_reaches_the_text_encoder() {
    let captions = text(&[2, 0]);
    let tokens = captions.tokens.set_requires_grad(true);
    let captions = Text { tokens: tokens.shallow_clone(), ..captions };
    let projection = draw("p", &[64, 32]).set_requires_grad(true);
    let keys = Keys::captions(Some(&captions), None, &projection);
    keys.tokens.square().sum(Kind::Float).backward();
    assert!(projection.grad().defined() && !tokens.grad().defined());
}

#[test]
fn a_closed_gate_leaves_every_bit() {
    let mut added = Added::default();
    Attention::add(&mut added, "", (64, 8), 1);
    let attention = Attention { tensors: &added.start, place: String::new() };
    let x = draw("x", &[2, 5, 64]);
    let found = attention.of(&x, &Keys { tokens: draw("t", &[2, 3, 64]), open: None });
    assert!(found.abs().max().double_value(&[]) > 0.1);
    assert!(bitwise_equal(&attention.gated(&x, found), &x));
}
