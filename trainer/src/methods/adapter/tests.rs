use super::*;
use crate::methods::testing::{fixture, pixels, site};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::json;

fn adapters(document: serde_json::Value) -> Adapters {
    Adapters(serde_json::from_value(document).unwrap())
}

#[test]
fn the_numbers_of_values_are_the_papers() {
    let (config, none) = (VitConfig::default(), Tensors::new());
    let values = |document| adapters(document).added(&site(&config, &none), 0).unwrap().start.values();
    assert_eq!(values(json!({"learned_scale": false})), 12 * (2 * 768 * 8 + 8 + 768));
    assert_eq!(values(json!({})), 165_984);
    assert_eq!(values(json!({"form": "houlsby"})), 313_536);
    assert_eq!(values(json!({"form": "houlsby", "rank": 64})), 2_379_264);
}

#[test]
fn at_the_start_up_has_a_gradient_and_down_and_scale_have_none() {
    let backbone = tiny(true);
    for (name, gradient) in fixture(&backbone, json!({"kind": "adapter"})).gradients(&pixels(2)) {
        let largest = gradient.unwrap().abs().max().double_value(&[]);
        assert_eq!(largest > 0.0, name.contains(".up."), "{name}: {largest}");
    }
}

#[test]
fn houlsby_s_start_is_near_the_identity_but_its_theta0_is_the_identity() {
    let backbone = tiny(true);
    let fixture = fixture(&backbone, json!({"kind": "adapter", "init": "houlsby"}));
    let bare = Vit::bare(&backbone.config).features(&backbone.tensors, &pixels(2));
    let features = fixture.vit.features(&fixture.tensors, &pixels(2));
    let change = (features - &bare).norm().double_value(&[]) / bare.norm().double_value(&[]);
    // Two blocks of O(√r · σ² · √dim) each, after the growth that a tiny random network gives.
    assert!(change > 0.0 && change < 1e-2, "{change}");
    let down = "blocks.0.adapter.down.weight";
    assert!(bitwise_equal(&fixture.added.start[down], &fixture.added.theta0[down]));
}

#[test]
fn a_scale_is_the_rows_of_up_multiplied() {
    let (config, none) = (tiny(false).config, Tensors::new());
    let spec = json!({"init": "houlsby"});
    let mut tensors = adapters(spec.clone()).added(&site(&config, &none), 3).unwrap().start;
    tensors.insert("blocks.0.adapter.scale", initial::normal(1, "s", &[64], 1.0));
    let x = initial::normal(1, "x", &[2, 5, 64], 1.0);
    let after = |spec, tensors: &Tensors| {
        let own = adapters(spec);
        let start = Start { config: &config, tensors, text: None };
        own.begin(start).after_block(0, &x, x.shallow_clone())
    };
    let scaled = after(spec, &tensors);
    let up = &tensors["blocks.0.adapter.up.weight"] * tensors["blocks.0.adapter.scale"].unsqueeze(1);
    tensors.insert("blocks.0.adapter.up.weight", up);
    let fused = after(json!({"init": "houlsby", "learned_scale": false}), &tensors);
    assert!(fused.allclose(&scaled, 1e-5, 1e-6, false));
}
