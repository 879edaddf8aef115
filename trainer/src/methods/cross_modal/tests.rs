use super::*;
use crate::methods::testing::{Fixture, WIDTHS, fixture, pixels, site};
use crate::models::language::tiny as language;
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::{Value, json};

fn document(sparsity: u32) -> Value {
    json!({"kind": "cross_modal", "language_model": "m", "words": 12, "sparsity": sparsity, "rank": 4, "alone_steps": 3})
}

fn rewording(sparsity: u32) -> Rewording {
    let mut spec = document(sparsity);
    spec.as_object_mut().unwrap().remove("kind");
    Rewording::new(&serde_json::from_value(spec).unwrap())
}

fn start<'a>(config: &'a VitConfig, tensors: &'a Tensors) -> Start<'a> {
    Start { config, tensors, text: None }
}

fn moved(sparsity: u32) -> (VitConfig, Fixture) {
    let backbone = tiny(true);
    let moved = fixture(&backbone, document(sparsity)).moved(0.3);
    (backbone.config, moved)
}

fn visual() -> Tensor {
    initial::normal(3, "visual", &[2, 5, 64], 1.0)
}

#[test]
fn a_token_chooses_at_most_so_many_words_and_their_weights_sum_to_one() {
    for sparsity in [1, 3, 12] {
        let (config, moved) = moved(sparsity);
        let choice = rewording(sparsity).choice(start(&config, &moved.tensors), &visual());
        assert_eq!(choice.size(), [2, 5, 12]);
        let chosen = choice.ne(0.0).sum_dim_intlist(-1, false, Kind::Int64);
        assert!(chosen.max().int64_value(&[]) <= i64::from(sparsity) && chosen.min().int64_value(&[]) > 0);
        assert!(choice.min().double_value(&[]) >= 0.0);
        let sums = choice.sum_dim_intlist(-1, false, Kind::Float);
        assert!(sums.allclose(&sums.ones_like(), 0.0, 1e-6, false));
    }
}

#[test]
fn without_a_bound_on_the_words_the_choice_is_the_softmax_and_with_one_its_largest_made_to_sum_to_one() {
    let (config, moved) = moved(12);
    let t = &moved.tensors;
    let all = rewording(12).choice(start(&config, t), &visual());
    let (query, key) = (visual().matmul(&t[QUERY].tr()), t[TABLE].matmul(&t[KEY].tr()));
    // √4 = 2.
    let softmax = (query.matmul(&key.tr()) / 2.0).softmax(-1, Kind::Float);
    assert!(all.allclose(&softmax, 1e-5, 1e-6, false));
    let three = rewording(3).choice(start(&config, t), &visual());
    let kept = three.gt(0.0).to_kind(Kind::Float) * &softmax;
    let expected = &kept / kept.sum_dim_intlist(-1, true, Kind::Float);
    assert!(three.allclose(&expected, 1e-5, 1e-6, false));
    let dropped: Tensor = (1.0 - three.gt(0.0).to_kind(Kind::Float)) * &softmax;
    let smallest_kept = (kept.eq(0.0).to_kind(Kind::Float) + &kept).amin(-1, false);
    assert!(dropped.amax(-1, false).le_tensor(&smallest_kept).all().int64_value(&[]) == 1);
}

#[test]
fn the_start_is_the_identity_and_the_class_token_is_left_alone_later_too() {
    let backbone = tiny(true);
    let own = rewording(3);
    let fresh = fixture(&backbone, document(3));
    let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels(3));
    assert!(bitwise_equal(&fresh.vit.features(&fresh.tensors, &pixels(3)), &bare));
    let x = visual();
    assert!(bitwise_equal(
        &own.begin(start(&backbone.config, &fresh.tensors)).embedded(x.shallow_clone()),
        &x
    ));
    let moved = fresh.moved(0.3);
    let changed = own.begin(start(&backbone.config, &moved.tensors)).embedded(x.shallow_clone()) - &x;
    assert_eq!(changed.select(1, 0).abs().max().double_value(&[]), 0.0);
    assert!(changed.narrow(1, 1, 4).abs().amax([1, 2], false).min().double_value(&[]) > 0.01);
}

#[test]
fn the_share_is_that_of_the_visual_tokens_norm() {
    let (config, moved) = moved(3);
    let (own, start) = (rewording(3), start(&config, &moved.tensors));
    let changed = own.begin(start).embedded(visual()) - visual();
    let told = own.tells(start, &visual());
    let expected = changed.norm().double_value(&[]) / visual().narrow(1, 1, 4).norm().double_value(&[]);
    assert_eq!(told[0].0, "reprogrammed_share");
    assert!((told[0].1 - expected).abs() < 1e-5 && expected > 0.01, "{told:?} {expected}");
    let fresh = fixture(&tiny(true), document(3));
    assert_eq!(fresh.vit.tells(&fresh.tensors, &pixels(2)), [("reprogrammed_share", 0.0)]);
}

#[test]
fn words_are_spread_over_the_vocabulary_and_have_length_one() {
    let model = language::gpt2();
    let before = model.tensors().digest().unwrap();
    let table = dictionary(&model, 4).unwrap();
    // 257 ids in four parts.
    let rows = model.embed_tokens(&Tensor::from_slice(&[0i64, 64, 128, 192]));
    for at in 0..4 {
        let row = rows.get(at);
        assert!(table.get(at).allclose(&(&row / row.norm()), 1e-5, 1e-6, false));
    }
    assert_eq!(dictionary(&model, 257).unwrap().size(), [257, 8]);
    let error = dictionary(&model, 258).unwrap_err().to_string();
    assert!(error.contains("`method.words` = 258, but the language model has 257"), "{error}");
    assert_eq!(model.tensors().digest().unwrap(), before);
}

#[test]
fn the_dictionary_is_frozen_must_be_given_and_has_no_gradient() {
    let own = rewording(3);
    assert!(!own.trains(TABLE) && own.trains(OUT) && own.trains("blocks.0.adapter.scale"));
    let (config, none) = (tiny(true).config, Tensors::new());
    let mut added = own.added(&site(&config, &none), 0).unwrap();
    assert_eq!(added.start[TABLE].size(), [12, WIDTHS.word]);
    let error = added.take(&Tensors::new()).unwrap_err().to_string();
    assert!(error.contains("nothing gives words.table its values"), "{error}");
    let mut given = Tensors::new();
    given.insert(TABLE, initial::normal(1, "table", &[12, WIDTHS.word], 1.0));
    added.take(&given).unwrap();
    assert!(bitwise_equal(&added.theta0[TABLE], &given[TABLE]));
    let wide = super::Site { widths: Default::default(), ..site(&config, &none) };
    let error = own.added(&wide, 0).unwrap_err().to_string();
    assert!(error.contains("`m` has not said how wide its words are"), "{error}");
}

#[test]
fn only_the_adapters_stand_still_at_first() {
    let own = rewording(3);
    for (name, steps) in [
        (OUT, 0),
        (QUERY, 0),
        ("blocks.0.adapter.up.weight", 3),
        ("blocks.1.adapter.scale", 3),
        ("norm.bias", 0),
    ] {
        assert_eq!(own.stands_still(name), steps, "{name}");
    }
}

#[test]
fn a_lower_temperature_makes_a_harder_choice() {
    let (config, moved) = moved(3);
    let largest = |temperature: f64| {
        let own = Rewording::new(&CrossModal { temperature, ..rewording(3).spec });
        own.choice(start(&config, &moved.tensors), &visual()).max().double_value(&[])
    };
    assert!(largest(0.1) > largest(1.0) && largest(1.0) > largest(10.0));
    assert!((largest(1e6) - 1.0 / 3.0).abs() < 1e-4);
}
