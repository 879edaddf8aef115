use super::*;
use crate::methods::testing::{fixture, pixels, site};
use crate::methods::{Norm, tuner};
use crate::models::vit::{Vit, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::json;
use std::ops::Range;

fn side(reduction: u32) -> SideNetwork {
    SideNetwork(Ladder { reduction })
}

#[test]
fn beside_a_vit_b_it_is_as_large_as_computed_by_hand() {
    let added = side(8).added(&site(&VitConfig::default(), &Tensors::new()), 0).unwrap().start;
    let of = |begin: &str| -> usize {
        let own = added.iter().filter(|(name, _)| name.starts_with(begin));
        own.map(|(_, tensor)| tensor.numel()).sum()
    };
    // Width 96: 12·96² values of weights a block, 13·96 of biases and norms.
    assert_eq!(of("ladder.blocks."), 12 * (12 * 96 * 96 + 13 * 96));
    assert_eq!(of("ladder.down."), 13 * (96 * 768 + 96));
    assert_eq!(of("ladder.up."), 768 * 96 + 768);
    assert_eq!(added.values(), 2_376_493);
}

#[test]
fn side_heads_are_as_wide_as_the_backbone_s_where_they_divide() {
    let heads = |dim, heads, reduction| {
        let config = side(reduction).config(&VitConfig { dim, heads, ..VitConfig::default() });
        (config.dim, config.heads)
    };
    assert_eq!(heads(768, 12, 8), (96, 1), "64 does not divide 96");
    assert_eq!(heads(768, 12, 4), (192, 3));
    assert_eq!(heads(384, 6, 8), (48, 1));
    assert_eq!(heads(1024, 16, 8), (128, 2));
}

#[test]
fn a_reduction_that_does_not_divide_the_width_is_refused() {
    let error = side(7).added(&site(&tiny(true).config, &Tensors::new()), 0).unwrap_err().to_string();
    assert!(error.contains("`method.reduction` = 7 does not divide the backbone's width of 64"), "{error}");
}

/// Keeps every tensor that it sees of the backbone, and lets the method act.
struct Watch<'a> {
    method: Option<Box<dyn Pass + 'a>>,
    seen: Vec<Tensor>,
}

impl Watch<'_> {
    fn keep(&mut self, x: Tensor) -> Tensor {
        self.seen.push(x.shallow_clone());
        x
    }
}

impl Pass for Watch<'_> {
    fn embedded(&mut self, x: Tensor) -> Tensor {
        let x = self.method.as_mut().map_or(x.shallow_clone(), |method| method.embedded(x));
        self.keep(x)
    }

    fn normed(&mut self, _block: i64, _norm: Norm, x: Tensor) -> Tensor {
        self.keep(x)
    }

    fn linear(&mut self, _block: i64, _layer: &str, _rows: Range<i64>, _x: &Tensor, y: Tensor) -> Tensor {
        self.keep(y)
    }

    fn between(&mut self, _block: i64, x: Tensor) -> Tensor {
        self.keep(x)
    }

    fn after_block(&mut self, block: i64, middle: &Tensor, x: Tensor) -> Tensor {
        let x = self.method.as_mut().map_or(x.shallow_clone(), |m| m.after_block(block, middle, x));
        self.keep(x)
    }
}

/// Everything that the backbone computes from `x` on, with the side network beside it or without; and the side's end.
fn watched(config: &VitConfig, tensors: &Tensors, x: &Tensor, with: bool) -> (Vec<Tensor>, Tensor) {
    let own = side(4);
    let method = with.then(|| own.begin(Start { config, tensors, text: None }));
    let mut watch = Watch { method, seen: Vec::new() };
    let mut x = watch.embedded(x.shallow_clone());
    for block in 0..config.depth {
        let tokens = x.size()[1];
        x = config.block(tensors, &format!("blocks.{block}"), (block, &mut watch), &x, tokens);
    }
    let end = watch.method.as_mut().map_or(x.shallow_clone(), |method| method.finish(x));
    (watch.seen, end)
}

#[test]
fn the_backbone_computes_the_same_bits_with_and_without() {
    let backbone = tiny(true);
    let moved = fixture(&backbone, json!({"kind": "ladder", "reduction": 4})).moved(0.1);
    let x = initial::normal(3, "x", &[2, 5, 64], 1.0);
    let (with, _) = watched(&backbone.config, &moved.tensors, &x, true);
    let (without, _) = watched(&backbone.config, &moved.tensors, &x, false);
    // x₀; of each block two norms, four linear layers, the middle and the end.
    assert_eq!((with.len(), without.len()), (1 + 2 * 8, 1 + 2 * 8));
    assert!(with.iter().zip(&without).all(|(with, without)| bitwise_equal(with, without)));
}

#[test]
fn the_graph_holds_nothing_of_the_backbone_and_no_gradient_goes_there() {
    let backbone = tiny(true);
    let mut tensors = fixture(&backbone, json!({"kind": "ladder", "reduction": 4})).moved(0.1).tensors;
    let names: Vec<String> = tensors.names().filter(|name| side(4).trains(name)).map(str::to_owned).collect();
    for name in &names {
        let leaf = tensors[name].copy().set_requires_grad(true);
        tensors.insert(name, leaf);
    }
    let x = initial::normal(3, "x", &[2, 5, 64], 1.0);
    let (seen, end) = watched(&backbone.config, &tensors, &x, true);
    assert!(seen.iter().all(|tensor| !tensor.requires_grad()));
    assert!(end.requires_grad());
    end.square().sum(Kind::Float).backward();
    for (name, tensor) in tensors.iter() {
        assert_eq!(tensor.grad().defined(), side(4).trains(name), "{name}");
    }
}

#[test]
fn with_a_gate_of_zero_the_tokens_are_the_backbone_s_whatever_else_has_moved() {
    let backbone = tiny(false);
    let mut moved = fixture(&backbone, json!({"kind": "ladder", "reduction": 4})).moved(0.3);
    let bare = Vit::bare(&backbone.config).tokens(&backbone.tensors, &pixels(3), None, None);
    let open = moved.vit.tokens(&moved.tensors, &pixels(3), None, None);
    assert!(!open.allclose(&bare, 1e-2, 1e-2, false));
    moved.tensors.insert("ladder.gate", Tensor::zeros([], (Kind::Float, Device::Cpu)));
    assert!(bitwise_equal(&moved.vit.tokens(&moved.tensors, &pixels(3), None, None), &bare));
}

#[test]
fn at_the_start_only_the_gate_has_a_gradient_and_once_it_is_open_all_have() {
    let backbone = tiny(true);
    let mut fixture = fixture(&backbone, json!({"kind": "ladder", "reduction": 4}));
    let largest = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.abs().max().double_value(&[]));
    for (name, gradient) in fixture.gradients(&pixels(3)) {
        assert_eq!(largest(gradient).is_some_and(|largest| largest > 0.0), name == "ladder.gate", "{name}");
    }
    fixture.tensors.insert("ladder.gate", Tensor::from(0.5f32));
    for (name, gradient) in fixture.gradients(&pixels(3)) {
        assert!(largest(gradient).is_some_and(|largest| largest > 0.0), "{name}");
    }
}

#[test]
fn a_mixing_weight_of_zero_is_one_half_of_each() {
    // One side block whose branches are 0 passes the mixture on: γ·Up(LN(½·s₀ + ½·Down₁ h₁)).
    let backbone = tiny(false);
    let config = VitConfig { depth: 1, ..backbone.config.clone() };
    let mut tensors = side(4).added(&site(&config, &backbone.tensors), 5).unwrap().start;
    for name in ["attn.proj", "mlp.fc2"] {
        let name = format!("ladder.blocks.0.{name}.weight");
        let zeros = tensors[&name].zeros_like();
        tensors.insert(name, zeros);
    }
    tensors.insert("ladder.gate", Tensor::from(2f32));
    let [first, last] = ["first", "last"].map(|name| initial::normal(6, name, &[2, 5, 64], 1.0));
    let own = side(4);
    let mut pass = own.begin(Start { config: &config, tensors: &tensors, text: None });
    let first = pass.embedded(first);
    let last = pass.after_block(0, &first, last);
    let found = pass.finish(last.zeros_like());
    let down = |x: &Tensor, at: i64| x.linear(&tensors[&format!("ladder.down.{at}.weight")], None::<&Tensor>);
    let mixed = (down(&first, 0) + down(&last, 1)) / 2.0;
    let normed = mixed.layer_norm([16], None::<&Tensor>, None::<&Tensor>, EPS, false);
    let expected = normed.linear(&tensors["ladder.up.weight"], None::<&Tensor>) * 2.0;
    assert!(found.allclose(&expected, 1e-5, 1e-6, false));
}

#[test]
fn it_is_the_method_of_its_spec() {
    let method = crate::methods::testing::method(json!({"kind": "ladder"}));
    assert!(tuner(&method).needs_all_tokens() && tuner(&method).trains("ladder.gate"));
    assert!(!tuner(&method).trains("blocks.0.attn.qkv.weight"));
}
