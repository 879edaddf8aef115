use super::*;
use crate::methods::testing::{fixture, pixels, site};
use crate::models::vit::{Vit, VitConfig, tiny};
use crate::weights::{Tensors, bitwise_equal};
use serde_json::json;

/// All places, by their words.
const FORMS: [&str; 6] = ["adapter_plus", "pre", "intermediate", "houlsby", "pfeiffer", "parallel"];

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
    for form in FORMS {
        let document = json!({"kind": "adapter", "form": form, "learned_scale": true});
        for (name, gradient) in fixture(&backbone, document).gradients(&pixels(2)) {
            let largest = gradient.unwrap().abs().max().double_value(&[]);
            assert_eq!(largest > 0.0, name.contains(".up."), "{form} {name}: {largest}");
        }
    }
}

#[test]
fn frozen_tensors_get_no_gradient() {
    let backbone = tiny(true);
    for form in FORMS {
        let fixture = fixture(&backbone, json!({"kind": "adapter", "form": form})).moved(0.1);
        let own = adapters(json!({"form": form}));
        let leaf = |(name, tensor): (&str, &Tensor)| {
            (name.to_owned(), tensor.copy().set_requires_grad(own.trains(name)))
        };
        let tensors: Tensors = fixture.tensors.iter().map(leaf).collect();
        fixture.vit.features(&tensors, &pixels(2)).square().sum(Kind::Float).backward();
        for (name, tensor) in tensors.iter() {
            assert_eq!(tensor.grad().defined(), fixture.added.start.get(name).is_some(), "{form} {name}");
        }
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

#[test]
fn a_fixed_scale_is_up_multiplied() {
    let (config, none) = (tiny(false).config, Tensors::new());
    let spec = |scale: f64| json!({"form": "parallel", "init": "houlsby", "scale": scale});
    let mut tensors = adapters(spec(0.1)).added(&site(&config, &none), 3).unwrap().start;
    tensors.insert("blocks.0.adapter.up.bias", initial::normal(1, "b", &[64], 1.0));
    let x = initial::normal(1, "x", &[2, 5, 64], 1.0);
    let after = |scale, tensors: &Tensors| {
        let own = adapters(spec(scale));
        let start = Start { config: &config, tensors, text: None };
        own.begin(start).after_block(0, &x, x.shallow_clone())
    };
    let scaled = after(0.1, &tensors);
    for leaf in ["up.weight", "up.bias"] {
        let name = format!("blocks.0.adapter.{leaf}");
        tensors.insert(name.clone(), &tensors[&name] * 0.1);
    }
    assert!(after(1.0, &tensors).allclose(&scaled, 1e-5, 1e-6, false));
    // By default the parallel form is multiplied by 0.1, as AdaptFormer, and the others by 1.
    assert_eq!(adapters(json!({"form": "parallel"})).0.fixed_scale(), 0.1);
    assert_eq!(adapters(json!({"form": "pfeiffer"})).0.fixed_scale(), 1.0);
}

mod formulas;
