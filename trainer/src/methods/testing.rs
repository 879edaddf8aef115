//! What the tests of all methods begin with.

use super::{Added, Site, Text, Widths, added, selective, tuner};
use crate::models::vit::{Vit, VitConfig};
use crate::weights::checkpoint::Recipe;
use crate::weights::{Backbone, Tensors, initial};
use causeway_protocol::{CaptionForm, Method};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Widths of captions and words in these tests.
pub const WIDTHS: Widths = Widths { text: 32, word: 24 };

/// A method as a spec writes it.
pub fn method(document: Value) -> Method {
    serde_json::from_value(document).unwrap()
}

/// A recipe with that method, on images of 28 px under seed 7.
pub fn recipe(document: Value) -> Recipe {
    serde_json::from_value(json!({
        "seed": 7, "method": document, "captions": {"asset": "a"}, "objective": {},
        "training": {"steps": 1, "learning_rate": 1.0, "image_size": 28}
    }))
    .unwrap()
}

/// Where a method is added in these tests.
pub fn site<'a>(config: &'a VitConfig, tensors: &'a Tensors) -> Site<'a> {
    Site { config, tensors, image_size: 28, widths: WIDTHS }
}

/// An encoder with a method in it.
pub struct Fixture {
    /// The encoder.
    pub vit: Vit,
    /// What the method adds.
    pub added: Added,
    /// The backbone's tensors and the added ones as training starts from them.
    pub tensors: Tensors,
}

/// The encoder of a backbone with that method in it.
pub fn fixture(backbone: &Backbone, document: Value) -> Fixture {
    let mut recipe = recipe(document);
    recipe.method = selective::chosen_by_depth(&recipe.method, backbone.config.depth).unwrap();
    let mut added = added(&recipe, backbone, WIDTHS).unwrap();
    let given = added.awaited.iter().map(|name| {
        let shape = added.start[name].size();
        (name.clone(), initial::normal(13, name, &shape, 1.0))
    });
    added.take(&given.collect()).unwrap();
    let mut tensors = backbone.tensors.share();
    tensors.extend(added.start.share());
    Fixture { vit: Vit::new(&backbone.config, &recipe.method), added, tensors }
}

impl Fixture {
    /// The same with every trained tensor moved by noise, so that what the method adds does something.
    pub fn moved(mut self, by: f64) -> Fixture {
        let tuner = tuner(&self.vit.method);
        let names: Vec<String> =
            self.tensors.names().filter(|name| tuner.trains(name)).map(str::to_owned).collect();
        for name in names {
            let noise = initial::normal(11, &name, &self.tensors[&name].size(), by);
            let moved = &self.tensors[&name] + noise;
            self.tensors.insert(name, moved);
        }
        self
    }

    /// The gradient of the sum of squared features by every trained tensor, by name; where captions are read, and of
    /// all tokens as they are with captions, of which every second is missing. A tensor that none of it rests on has none.
    pub fn gradients(&self, pixels: &Tensor) -> Vec<(String, Option<Tensor>)> {
        let loss = |tensors: &Tensors| {
            let loss = self.vit.features(tensors, pixels).square().sum(Kind::Float);
            let Some(reads) = self.vit.method.reads() else { return loss };
            let shown = if reads.form == CaptionForm::Embedding { 1 } else { 4 };
            let lengths: Vec<i64> =
                (0..pixels.size()[0]).map(|at| if at % 2 == 0 { shown } else { 0 }).collect();
            let tokens = self.vit.tokens(tensors, pixels, None, Some(&text(&lengths)));
            loss + tokens.square().sum(Kind::Float)
        };
        self.gradients_of(loss).1
    }

    /// A loss, and its gradient by every trained tensor.
    pub fn gradients_of(&self, loss: impl Fn(&Tensors) -> Tensor) -> (Tensor, Vec<(String, Option<Tensor>)>) {
        let tuner = tuner(&self.vit.method);
        let mut tensors = self.tensors.share();
        let mut trained = Vec::new();
        for (name, tensor) in self.tensors.iter().filter(|(name, _)| tuner.trains(name)) {
            let leaf = tensor.copy().set_requires_grad(true);
            tensors.insert(name, leaf.shallow_clone());
            trained.push((name.to_owned(), leaf));
        }
        let loss = loss(&tensors);
        loss.backward();
        let gradient = |(name, leaf): (String, Tensor)| {
            let gradient = leaf.grad();
            (name, gradient.defined().then_some(gradient))
        };
        (loss, trained.into_iter().map(gradient).collect())
    }
}

/// Images as an encoder is given them.
///
/// # Shapes
/// [batch, 3, 28, 28]
pub fn pixels(batch: i64) -> Tensor {
    initial::normal(1, "pixels", &[batch, 3, 28, 28], 1.0)
}

/// Captions of so many tokens.
pub fn text(lengths: &[i64]) -> Text {
    let (batch, longest) = (lengths.len() as i64, lengths.iter().copied().max().unwrap_or(1));
    let places = Tensor::arange(longest, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    Text {
        tokens: initial::normal(1, "text", &[batch, longest, WIDTHS.text], 1.0),
        real: places.less_tensor(&Tensor::from_slice(lengths).unsqueeze(1)),
    }
}
