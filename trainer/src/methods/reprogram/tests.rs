use super::*;
use crate::methods::testing::{fixture, pixels, site};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{bitwise_equal, initial};
use serde_json::{Value, json};

fn laid(document: Value, program: &Tensor, x: &Tensor) -> Tensor {
    let own = Reprogramming(serde_json::from_value(document).unwrap());
    let config = VitConfig::default();
    let tensors: Tensors = [(PROGRAM.to_owned(), program.shallow_clone())].into_iter().collect();
    own.begin(Start { config: &config, tensors: &tensors, text: None }).pixels(x.shallow_clone())
}

fn zeros(size: i64) -> Tensor {
    Tensor::zeros([1, 3, size, size], (Kind::Float, Device::Cpu))
}

#[test]
fn what_is_added_is_one_image_within_a_bound_of_one() {
    let program = initial::normal(1, "program", &[1, 3, 28, 28], 3.0);
    let added = laid(json!({}), &program, &pixels(2)) - pixels(2);
    // A difference of numbers around 1 is known to some 1e-7.
    assert!(added.abs().max().double_value(&[]) < 1.0 + 1e-6);
    assert!(added.allclose(&program.tanh().expand([2, -1, -1, -1], false), 0.0, 1e-6, false));
    assert!(bitwise_equal(&laid(json!({}), &zeros(28), &pixels(2)), &pixels(2)), "0 is the identity");
}

#[test]
fn a_border_is_zero_on_the_image_and_the_program_around_it() {
    let program = initial::normal(1, "program", &[1, 3, 28, 28], 3.0);
    let border = json!({"program": "border", "inner": 20});
    let empty = laid(border.clone(), &zeros(28), &pixels(2));
    let full = laid(border, &program, &pixels(2));
    let inside = |tensor: &Tensor| tensor.narrow(2, 4, 20).narrow(3, 4, 20);
    assert!(bitwise_equal(&inside(&full), &inside(&empty)));
    assert!(inside(&(&full - &empty)).abs().max().double_value(&[]) == 0.0);
    let around = framed(&Tensor::ones([1, 1, 20, 20], (Kind::Float, Device::Cpu)), 28).eq(0.0);
    let around = around.expand([2, 3, 28, 28], false);
    let of = |tensor: &Tensor| tensor.expand([2, 3, 28, 28], false).masked_select(&around);
    assert_eq!(around.sum(Kind::Int64).int64_value(&[]), 2 * 3 * (28 * 28 - 20 * 20));
    assert_eq!(of(&empty).abs().max().double_value(&[]), 0.0, "an empty frame");
    assert!(bitwise_equal(&of(&full), &of(&program.tanh())));
    assert!(of(&full).abs().max().double_value(&[]) <= 1.0);
}

#[test]
fn the_image_in_the_middle_is_the_whole_image_smaller() {
    // A flat image stays flat; a ramp stays a ramp between its ends, here at every second half-pixel.
    let flat = laid(json!({"program": "border", "inner": 14}), &zeros(28), &zeros(28).fill(0.75));
    assert!(framed(&zeros(14).fill(0.75), 28).allclose(&flat, 0.0, 1e-6, false));
    let ramp = Tensor::arange(28, (Kind::Float, Device::Cpu)).expand([1, 3, 28, 28], false);
    let small = shrunk(&ramp, 14);
    for column in 1..13 {
        assert!((small.double_value(&[0, 2, 7, column]) - (2.0 * column as f64 + 0.5)).abs() < 1e-4);
    }
    // No overshoot: within the range of the image.
    let noise = initial::uniform(2, "noise", &[2, 3, 28, 28], 1.0);
    assert!(shrunk(&noise, 14).abs().max().double_value(&[]) <= 1.0);
}

#[test]
fn the_values_on_the_image_have_no_gradient_and_those_around_it_have() {
    let backbone = tiny(true);
    let fixture =
        fixture(&backbone, json!({"kind": "reprogram", "program": "border", "inner": 20})).moved(0.1);
    let (name, gradient) = fixture.gradients(&pixels(2)).pop().unwrap();
    let gradient = gradient.unwrap();
    assert_eq!(name, "program");
    let image = gradient.narrow(2, 4, 20).narrow(3, 4, 20);
    assert_eq!(image.abs().max().double_value(&[]), 0.0);
    assert_eq!(gradient.ne(0.0).sum(Kind::Int64).int64_value(&[]), 3 * (28 * 28 - 20 * 20));
}

#[test]
fn a_border_s_own_start_is_the_shrunk_image_in_an_empty_frame() {
    let backbone = tiny(true);
    let fixture = fixture(&backbone, json!({"kind": "reprogram", "program": "border", "inner": 20}));
    let bare = Vit::bare(&backbone.config);
    let framed = bare.features(&backbone.tensors, &framed(&shrunk(&pixels(2), 20), 28));
    let found = fixture.vit.features(&fixture.tensors, &pixels(2));
    assert!(bitwise_equal(&found, &framed));
    assert!(!found.allclose(&bare.features(&backbone.tensors, &pixels(2)), 1e-2, 1e-2, false));
}

#[test]
fn half_precision_stays_in_its_dtype() {
    let half = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
    for document in [json!({}), json!({"program": "border"})] {
        let laid = laid(document, &half(&zeros(28)), &half(&pixels(2)));
        assert_eq!((laid.kind(), laid.size()), (Kind::BFloat16, vec![2, 3, 28, 28]));
    }
}

#[test]
fn a_cifar_image_in_the_middle_leaves_as_many_values_as_the_paper_counts() {
    let own = Reprogramming(serde_json::from_value(json!({"program": "border", "inner": 32})).unwrap());
    let config = VitConfig::default();
    let none = Tensors::new();
    let added = own.added(&super::Site { image_size: 224, ..site(&config, &none) }, 0).unwrap();
    assert_eq!(added.start.values() - 3 * 32 * 32, 147_456);
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let (config, none) = (VitConfig::default(), Tensors::new());
    for (inner, expected) in [
        (28, "leaves no frame in images of 28 px"),
        (0, "leaves no frame"),
        (21, "`method.inner` = 21 px cannot stand in the middle of 28 px; take 20 or 22"),
    ] {
        let own = Reprogramming(Reprogram { program: Program::Border, inner: Some(inner) });
        let error = own.added(&site(&config, &none), 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let own = Reprogramming(Reprogram { program: Program::Additive, inner: None });
    let tensors = own.added(&site(&config, &none), 0).unwrap().start;
    own.takes(&tensors, 28).unwrap();
    let error = own.takes(&tensors, 56).unwrap_err().to_string();
    assert!(error.contains("made for images of 28 px and cannot be laid over 56 px"), "{error}");
}
