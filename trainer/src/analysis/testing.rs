//! Small lines for the tests of the analysis.

use crate::methods::{self, Widths, testing};
use crate::models::vit::tiny;
use crate::weights::checkpoint;
use crate::weights::interpolate::Line;
use crate::weights::{Backbone, Tensors, initial};
use serde_json::json;

/// A line on which the named tensors of a small backbone moved.
pub fn full_line(moved: &[&str]) -> (Backbone, Line) {
    let backbone = tiny(false);
    let step = |name: &str| initial::normal(5, name, &backbone.tensors[name].size(), 0.05);
    let theta1 = moved.iter().map(|name| ((*name).to_owned(), &backbone.tensors[name] + step(name)));
    let line = line(&backbone, json!({"kind": "full"}), theta1.collect(), Tensors::new());
    (backbone, line)
}

/// A line to an adapter of this rank whose second matrices moved.
pub fn adapter_line(rank: u32) -> (Backbone, Line) {
    let backbone = tiny(false);
    let method = json!({"kind": "adapter", "rank": rank, "learned_scale": false});
    let added = methods::added(&testing::recipe(method.clone()), &backbone, Widths::default()).unwrap();
    let theta1 = added.start.iter().map(|(name, start)| {
        let moved = name.ends_with("up.weight");
        let step = initial::normal(5, name, &start.size(), if moved { 0.05 } else { 0.0 });
        (name.to_owned(), start + step)
    });
    let line = line(&backbone, method, theta1.collect(), added.theta0);
    (backbone, line)
}

fn line(backbone: &Backbone, method: serde_json::Value, theta1: Tensors, theta0: Tensors) -> Line {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theta1.safetensors");
    let recipe = testing::recipe(method);
    checkpoint::write(&path, backbone, &recipe, 1, (&theta1, &theta0), Widths::default()).unwrap();
    Line::open(backbone, &path).unwrap()
}
