use super::*;
use crate::methods::testing;
use crate::models::vit::{VitConfig, tiny};
use crate::weights::{Tensors, initial};

#[test]
fn a_vit_s_has_24_sites_and_18_432_values() {
    let config = VitConfig { dim: 384, layer_scale: true, ..VitConfig::default() };
    let added = Modulation(Film::default()).added(&testing::site(&config, &Tensors::new()), 0).unwrap().start;
    assert_eq!(added.names().filter(|name| name.ends_with("beta")).count(), 24);
    assert_eq!(added.values(), 18_432);
}

#[test]
fn folding_into_the_norm_is_the_same_as_modulating_its_output() {
    let backbone = tiny(false);
    let at = |leaf: &str| &backbone.tensors[&format!("blocks.1.norm2.{leaf}")];
    let mut tensors = Tensors::new();
    for leaf in ["delta_gamma", "beta"] {
        tensors.insert(name(1, Norm::Second, leaf), initial::normal(4, leaf, &[64], 0.5));
    }
    let x = initial::normal(4, "x", &[2, 5, 64], 1.0);
    let layer_norm =
        |weight: &Tensor, bias: &Tensor| x.layer_norm([64], Some(weight), Some(bias), 1e-6, false);
    let film = Modulation(Film::default());
    let mut pass = film.begin(Start { config: &backbone.config, tensors: &tensors, text: None });
    let (weight, bias) = pass.norm(1, Norm::Second, at("weight"), at("bias"));
    let modulated = (&tensors["blocks.1.film2.delta_gamma"] + 1.0) * layer_norm(at("weight"), at("bias"))
        + &tensors["blocks.1.film2.beta"];
    assert!(layer_norm(&weight, &bias).allclose(&modulated, 1e-5, 1e-5, false));
    assert!(!modulated.allclose(&layer_norm(at("weight"), at("bias")), 1e-2, 1e-2, false));
}
