//! Each form against its paper's formula (methods.md §2.2), written out in matrices.

use super::*;
use crate::weights::Backbone;

/// A block of a backbone with moved adapters in it.
struct Block {
    backbone: Backbone,
    form: &'static str,
    tensors: Tensors,
}

/// What a bare block makes of its input.
#[derive(Default)]
struct Seen {
    attended: Option<Tensor>,
    between: Option<Tensor>,
    mlp: Option<Tensor>,
}

impl Pass for Seen {
    fn attended(&mut self, _block: i64, y: Tensor) -> Tensor {
        self.attended = Some(y.shallow_clone());
        y
    }

    fn between(&mut self, _block: i64, x: Tensor) -> Tensor {
        self.between = Some(x.shallow_clone());
        x
    }

    fn mlp(&mut self, _block: i64, y: Tensor) -> Tensor {
        self.mlp = Some(y.shallow_clone());
        y
    }
}

/// [batch, tokens, dim] = [2, 5, 64]
fn x() -> Tensor {
    initial::normal(1, "x", &[2, 5, 64], 1.0)
}

impl Block {
    fn new(form: &'static str) -> Block {
        let backbone = tiny(true);
        let tensors = fixture(&backbone, json!({"kind": "adapter", "form": form})).moved(0.2).tensors;
        Block { backbone, form, tensors }
    }

    fn at(&self, leaf: &str) -> &Tensor {
        &self.tensors[&format!("blocks.0.{leaf}")]
    }

    fn through(&self, pass: &mut dyn Pass) -> Tensor {
        self.backbone.config.block(&self.tensors, "blocks.0", (0, pass), &x(), 5)
    }

    /// With the adapters in it.
    fn adapted(&self) -> Tensor {
        let own = adapters(json!({"form": self.form}));
        let start = Start { config: &self.backbone.config, tensors: &self.tensors, text: None };
        self.through(&mut *own.begin(start))
    }

    /// Without: attn(LN1 x), the state in the middle, MLP(LN2 of it), and what comes out.
    fn bare(&self) -> [Tensor; 4] {
        let mut seen = Seen::default();
        let out = self.through(&mut seen);
        [seen.attended.unwrap(), seen.between.unwrap(), seen.mlp.unwrap(), out]
    }

    /// Up(act(Down x)).
    fn bottleneck(&self, module: &str, x: &Tensor, act: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let at = |leaf: &str| self.at(&format!("{module}.{leaf}"));
        let hidden = act(&(x.matmul(&at("down.weight").tr()) + at("down.bias")));
        hidden.matmul(&at("up.weight").tr()) + at("up.bias")
    }

    /// MLP(LN2 x).
    fn mlp(&self, x: &Tensor) -> Tensor {
        let at = |leaf: &str| self.at(leaf);
        let centred = x - x.mean_dim(-1, true, Kind::Float);
        let variance = centred.square().mean_dim(-1, true, Kind::Float);
        let normed =
            centred / (variance + self.backbone.config.eps).sqrt() * at("norm2.weight") + at("norm2.bias");
        let hidden = gelu(&(normed.matmul(&at("mlp.fc1.weight").tr()) + at("mlp.fc1.bias")));
        hidden.matmul(&at("mlp.fc2.weight").tr()) + at("mlp.fc2.bias")
    }

    /// The formula's result and the block's are one, and the adapters do something.
    fn is(&self, expected: &Tensor) {
        let adapted = self.adapted();
        // Two f32 computations of numbers of order 10.
        assert!(adapted.allclose(expected, 1e-4, 1e-4, false), "{}", self.form);
        let [.., bare] = self.bare();
        assert!(!adapted.allclose(&bare, 1e-2, 1e-2, false), "{}", self.form);
    }
}

fn gelu(x: &Tensor) -> Tensor {
    x * ((x / 2f64.sqrt()).erf() + 1.0) * 0.5
}

#[test]
fn adapter_plus_follows_the_block_with_a_scale_for_each_channel() {
    let block = Block::new("adapter_plus");
    let [.., out] = block.bare();
    block.is(&(&out + block.at("adapter.scale") * block.bottleneck("adapter", &out, gelu)));
}

#[test]
fn pre_sits_between_attention_and_mlp() {
    let block = Block::new("pre");
    let [_, middle, ..] = block.bare();
    let middle = &middle + block.bottleneck("adapter", &middle, gelu);
    block.is(&(&middle + block.at("ls2.gamma") * block.mlp(&middle)));
}

#[test]
fn intermediate_sits_on_the_mlp_before_it_is_added() {
    let block = Block::new("intermediate");
    let [_, middle, y, _] = block.bare();
    block.is(&(middle + block.at("ls2.gamma") * (&y + block.bottleneck("adapter", &y, gelu))));
}

#[test]
fn houlsby_sits_before_the_residual_of_both_branches() {
    let block = Block::new("houlsby");
    let [y, ..] = block.bare();
    let middle = x() + block.at("ls1.gamma") * (&y + block.bottleneck("adapter_attn", &y, gelu));
    let y = block.mlp(&middle);
    block.is(&(middle + block.at("ls2.gamma") * (&y + block.bottleneck("adapter_mlp", &y, gelu))));
}

#[test]
fn pfeiffer_reads_the_whole_block_through_a_norm_of_its_own() {
    let block = Block::new("pfeiffer");
    let [.., out] = block.bare();
    let centred = &out - out.mean_dim(-1, true, Kind::Float);
    let variance = centred.square().mean_dim(-1, true, Kind::Float);
    let normed =
        centred / (variance + 1e-6).sqrt() * block.at("adapter.norm.weight") + block.at("adapter.norm.bias");
    block.is(&(&out + block.bottleneck("adapter", &normed, gelu)));
}

#[test]
fn parallel_is_adaptformer_s_sum_of_mlp_and_a_tenth_of_the_adapter() {
    // x̂ = x + attn(LN1 x); out = x̂ + MLP(LN2 x̂) + 0.1 · Up(ReLU(Down x̂)), x̂ not normalised (arXiv 2205.13535, §3.2).
    let block = Block::new("parallel");
    let [_, middle, ..] = block.bare();
    let beside = block.bottleneck("adapter", &middle, Tensor::relu);
    block.is(&(&middle + block.at("ls2.gamma") * block.mlp(&middle) + beside * 0.1));
}
