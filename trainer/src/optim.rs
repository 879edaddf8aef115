//! AdamW (arXiv 1711.05101, algorithm 2) as torch.optim.AdamW computes it. It is ours because a resumed run needs the
//! moments, and tch does not give its own optimiser's out.

use crate::weights::Tensors;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Schedule, Training};
use tch::Tensor;

/// Added to the denominator.
const EPSILON: f64 = 1e-8;
/// Name of the numbers of steps taken in a state.
const STEPS: &str = "steps";

/// AdamW over named tensors.
#[derive(Debug)]
pub struct AdamW {
    betas: (f64, f64),
    parameters: Vec<Parameter>,
    /// Steps taken, encoder and heads apart: the encoder may stand still at the beginning.
    steps: [u64; 2],
}

/// Whose tensor it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The encoder's, the method's modules included: part of the checkpoint.
    Encoder,
    /// What reads the encoder in training: projections, temperature, decoder, linear map.
    Head,
}

/// What is special about a trained tensor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Group {
    /// Whose it is.
    pub part: Part,
    /// Peak learning rate.
    pub rate: f64,
    /// Decoupled weight decay; biases, norms, scales, gates and the two token tables are spared.
    pub decay: f64,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    value: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    group: Group,
    /// Steps of its part in which it stands still, at the beginning.
    still: u64,
}

impl AdamW {
    /// An optimiser of nothing yet.
    pub fn new(betas: (f64, f64)) -> AdamW {
        AdamW { betas, parameters: Vec::new(), steps: [0; 2] }
    }

    /// Takes a copy of `start` as a trained tensor and returns it, to be used in the loss.
    pub fn train(&mut self, name: &str, start: &Tensor, group: Group) -> Tensor {
        let value = start.detach().copy().set_requires_grad(true);
        let decay = if is_decayed(name, start) { group.decay } else { 0.0 };
        let parameter = Parameter {
            name: name.to_owned(),
            first_moment: start.detach().zeros_like(),
            second_moment: start.detach().zeros_like(),
            group: Group { decay, ..group },
            still: 0,
            value: value.shallow_clone(),
        };
        self.parameters.push(parameter);
        value
    }

    /// Names and values of all trained tensors, in the order of the gradients.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|parameter| (parameter.name.as_str(), &parameter.value))
    }

    /// Lets a trained tensor stand still in the first steps of its part. Its own first step comes after them.
    pub fn hold(&mut self, name: &str, steps: u64) {
        let named = self.parameters.iter_mut().filter(|parameter| parameter.name == name);
        named.for_each(|parameter| parameter.still = steps);
    }

    /// Number of values that are trained.
    pub fn values(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.value.numel() as u64).sum()
    }

    /// ∂loss/∂θ for each trained tensor of these parts that moves in the next step, in order.
    ///
    /// # Errors
    /// A trained tensor that the loss does not depend on.
    pub fn gradients(&self, loss: &Tensor, parts: &[Part]) -> Result<Vec<Tensor>> {
        let asked = || self.parameters.iter().filter(|parameter| parameter.moves(parts, self.steps));
        let values: Vec<&Tensor> = asked().map(|parameter| &parameter.value).collect();
        let gradients = Tensor::f_run_backward(&[loss], &values, false, false)?;
        for (gradient, parameter) in gradients.iter().zip(asked()) {
            ensure!(gradient.defined(), "the loss does not depend on {}", parameter.name);
        }
        Ok(gradients)
    }

    /// One step of these parts against their gradients, with every peak rate times `factor`.
    pub fn step(&mut self, gradients: &[Tensor], parts: &[Part], factor: f64) {
        let before = self.steps;
        parts.iter().for_each(|part| self.steps[*part as usize] += 1);
        let (beta1, beta2) = self.betas;
        let steps = self.steps;
        let asked = self.parameters.iter_mut().filter(|parameter| parameter.moves(parts, before));
        tch::no_grad(|| {
            for (parameter, gradient) in asked.zip(gradients) {
                let own = (steps[parameter.group.part as usize] - parameter.still) as f64;
                let (correction1, correction2) = (1.0 - beta1.powf(own), 1.0 - beta2.powf(own));
                let rate = parameter.group.rate * factor;
                if parameter.group.decay > 0.0 {
                    let _ = parameter.value.g_mul_scalar_(1.0 - rate * parameter.group.decay);
                }
                let _ = parameter.first_moment.lerp_(gradient, 1.0 - beta1);
                let _ = parameter.second_moment.g_mul_scalar_(beta2);
                let _ = parameter.second_moment.addcmul_(&(gradient * (1.0 - beta2)), gradient);
                let denominator = parameter.second_moment.sqrt() / correction2.sqrt() + EPSILON;
                let _ = parameter
                    .value
                    .addcdiv_(&(&parameter.first_moment * (-rate / correction1)), &denominator);
            }
        });
    }

    /// Values and moments of all trained tensors: what a resumed run needs.
    pub fn state(&self) -> Tensors {
        let mut state = Tensors::new();
        for parameter in &self.parameters {
            let name = &parameter.name;
            state.insert(format!("value/{name}"), parameter.value.detach());
            state.insert(format!("first_moment/{name}"), parameter.first_moment.shallow_clone());
            state.insert(format!("second_moment/{name}"), parameter.second_moment.shallow_clone());
        }
        state.insert(STEPS, Tensor::from_slice(&self.steps.map(u64::cast_signed)));
        state
    }

    /// Goes back to a state of the same tensors; whatever else is in it is left alone.
    ///
    /// # Errors
    /// A state of other tensors.
    pub fn restore(&mut self, state: &Tensors) -> Result<()> {
        let kept = state.names().filter(|name| name.starts_with("value/")).count();
        ensure!(
            kept == self.parameters.len(),
            "the state holds {kept} trained tensors, {} are trained here",
            self.parameters.len()
        );
        let steps = state.get(STEPS).with_context(|| format!("no {STEPS}"))?;
        self.steps = [0, 1].map(|part| steps.int64_value(&[part]).cast_unsigned());
        for parameter in &mut self.parameters {
            let name = &parameter.name;
            let of = |what: &str| {
                state.get(&format!("{what}/{name}")).with_context(|| format!("no {what}/{name}"))
            };
            let (value, first, second) = (of("value")?, of("first_moment")?, of("second_moment")?);
            tch::no_grad(|| -> Result<()> {
                parameter.value.f_copy_(value)?;
                parameter.first_moment.f_copy_(first)?;
                parameter.second_moment.f_copy_(second)?;
                Ok(())
            })
            .with_context(|| format!("restoring {name}"))?;
        }
        Ok(())
    }
}

impl Parameter {
    /// Whether it moves in a step of these parts, of which so many were taken before.
    fn moves(&self, parts: &[Part], steps: [u64; 2]) -> bool {
        parts.contains(&self.group.part) && steps[self.group.part as usize] >= self.still
    }
}

/// What a layer's rate is multiplied by (arXiv 2106.08254, as MAE fine-tunes): 1 for what follows the blocks and
/// `decay` for each layer further down; the embeddings are the layer below the first block.
pub fn layer_factor(name: &str, depth: i64, decay: f64) -> f64 {
    let block = || name.strip_prefix("blocks.")?.split('.').next()?.parse::<i64>().ok();
    let layer = match name {
        "cls_token" | "pos_embed" => 0,
        _ if name.starts_with("patch_embed.") || name.starts_with("norm_pre.") => 0,
        _ => block().map_or(depth + 1, |block| block + 1),
    };
    decay.powi((depth + 1 - layer) as i32)
}

/// Matrices are decayed; vectors and scalars (biases, norms, scales, gates, the temperature) and the class token, the
/// position table and null texts, which are vectors in all but shape, are not.
fn is_decayed(name: &str, tensor: &Tensor) -> bool {
    let leaf = name.rsplit('/').next().unwrap_or(name);
    tensor.dim() >= 2 && leaf != "cls_token" && leaf != "pos_embed" && !leaf.ends_with(".null")
}

/// Scales the gradients down to a global norm of at most `max_norm`, as torch.nn.utils.clip_grad_norm_ does. Returns
/// the norm they had; they are left alone where it is not finite.
pub fn clip(gradients: &mut [Tensor], max_norm: f64) -> f64 {
    let norms: Vec<Tensor> = gradients.iter().map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
    if norm.is_finite() && norm + 1e-6 > max_norm {
        for gradient in gradients {
            let _ = gradient.g_mul_scalar_(max_norm / (norm + 1e-6));
        }
    }
    norm
}

/// What the peak rates are multiplied by in the step after `step` steps: up a line over the warm-up, then half a
/// cosine or a straight line down to 0, or level.
pub fn rate_factor(training: &Training, step: u64) -> f64 {
    let (warmup, steps) = (training.warmup_steps, training.steps);
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    match training.schedule {
        Schedule::Constant => 1.0,
        Schedule::Cosine => {
            let done = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
            0.5 * (1.0 + (std::f64::consts::PI * done).cos())
        }
        Schedule::Linear => 1.0 - (step - warmup) as f64 / (steps - warmup).max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{assert_near, numbers};
    use crate::weights::bitwise_equal;

    fn training() -> Training {
        serde_json::from_value(serde_json::json!({"steps": 10, "learning_rate": 1.0, "warmup_steps": 3}))
            .unwrap()
    }

    /// The steps of `goldens/reference.py`.
    fn reference_steps(optimiser: &mut AdamW, steps: std::ops::Range<i64>) -> Vec<f64> {
        let gradient = |count: i64, by: i64, shift: i64, modulus: i64| -> Vec<f32> {
            (0..count).map(|i| ((i * by + shift) % modulus - modulus / 2) as f32 / 10.0).collect()
        };
        steps
            .map(|step| {
                let matrix = Tensor::from_slice(&gradient(6, 7, step * 5, 11)).reshape([2, 3]);
                let mut gradients = [matrix, Tensor::from_slice(&gradient(3, 3, step * 4, 7))];
                let norm = clip(&mut gradients, 0.75);
                optimiser.step(&gradients, &[Part::Encoder], rate_factor(&training(), step as u64));
                norm
            })
            .collect()
    }

    fn reference_optimiser() -> (AdamW, Tensor, Tensor) {
        let mut optimiser = AdamW::new((0.9, 0.98));
        let matrix = Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0, -1.0, 0.0]).reshape([2, 3]);
        let group = |rate| Group { part: Part::Encoder, rate, decay: 0.1 };
        let matrix = optimiser.train("matrix", &matrix, group(0.02));
        let vector = optimiser.train("vector", &Tensor::from_slice(&[0.1f32, 0.2, -0.3]), group(0.005));
        (optimiser, matrix, vector)
    }

    #[test]
    fn ten_steps_are_torch_s() {
        let (mut optimiser, matrix, vector) = reference_optimiser();
        let norms = reference_steps(&mut optimiser, 0..10);
        // The same formula, a product rounded once more: an ulp or two of values near 1.
        assert_near(&Tensor::from_slice(&norms), &numbers("adamw.norms"), 1e-6);
        assert_near(&matrix, &numbers("adamw.matrix"), 1e-6);
        assert_near(&vector, &numbers("adamw.vector"), 1e-6);
        assert_eq!(optimiser.values(), 9);
    }

    #[test]
    fn restored_state_goes_on_bit_for_bit() {
        let (mut undisturbed, matrix, _) = reference_optimiser();
        reference_steps(&mut undisturbed, 0..10);
        let (mut first, _, _) = reference_optimiser();
        reference_steps(&mut first, 0..4);
        let (mut second, resumed, _) = reference_optimiser();
        second.restore(&first.state()).unwrap();
        reference_steps(&mut second, 4..10);
        assert!(bitwise_equal(&resumed.detach(), &matrix.detach()));
        assert!(second.restore(&Tensors::new()).is_err());
    }

    #[test]
    fn decay_spares_vectors_and_token_tables() {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (tch::Kind::Float, tch::Device::Cpu));
        for (name, shape, decayed) in [
            ("encoder/blocks.0.attn.qkv.weight", [6, 2].as_slice(), true),
            ("encoder/patch_embed.proj.weight", &[4, 3, 2, 2], true),
            ("heads/image", &[4, 2], true),
            ("encoder/blocks.0.attn.qkv.bias", &[6], false),
            ("encoder/blocks.0.ls1.gamma", &[4], false),
            ("encoder/blocks.0.adapter.scale", &[4], false),
            ("encoder/cls_token", &[1, 1, 4], false),
            ("encoder/pos_embed", &[1, 5, 4], false),
            ("encoder/fusion.null", &[1, 4], false),
            ("heads/logit_scale", &[], false),
        ] {
            assert_eq!(is_decayed(name, &zeros(shape)), decayed, "{name}");
        }
    }

    #[test]
    fn an_encoder_that_stood_still_takes_its_first_step_as_the_first() {
        let start = Tensor::from_slice(&[1f32]);
        let group = |part| Group { part, rate: 0.1, decay: 0.0 };
        let mut optimiser = AdamW::new((0.9, 0.98));
        let encoder = optimiser.train("encoder", &start, group(Part::Encoder));
        let head = optimiser.train("head", &start, group(Part::Head));
        let gradient = || Tensor::from_slice(&[0.5f32]);
        for _ in 0..3 {
            optimiser.step(&[gradient()], &[Part::Head], 1.0);
        }
        assert_eq!(encoder.double_value(&[0]), 1.0);
        optimiser.step(&[gradient(), gradient()], &[Part::Encoder, Part::Head], 1.0);
        // With its bias corrected, AdamW's first step has the length of the rate; so has each against one gradient.
        assert!((encoder.double_value(&[0]) - 0.9).abs() < 1e-6);
        assert!((head.double_value(&[0]) - 0.6).abs() < 1e-6);
    }

    #[test]
    fn a_tensor_that_is_held_takes_its_first_step_as_the_first_and_the_others_do_not_notice() {
        let start = Tensor::from_slice(&[1f32]);
        let group = Group { part: Part::Encoder, rate: 0.1, decay: 0.0 };
        let run = |stop: Option<u64>| {
            let mut optimiser = AdamW::new((0.9, 0.98));
            let [held, free] = ["held", "free"].map(|name| optimiser.train(name, &start, group));
            optimiser.hold("held", 3);
            let mut values = Vec::new();
            for step in 0..6 {
                if stop == Some(step) {
                    let state = optimiser.state();
                    optimiser.restore(&state).unwrap();
                }
                let loss = (&held + &free).sum(tch::Kind::Float) * 0.5;
                let gradients = optimiser.gradients(&loss, &[Part::Encoder]).unwrap();
                assert_eq!(gradients.len(), if step < 3 { 1 } else { 2 });
                optimiser.step(&gradients, &[Part::Encoder], 1.0);
                values.push((held.double_value(&[0]), free.double_value(&[0])));
            }
            values
        };
        let values = run(None);
        for (step, (held, free)) in values.iter().enumerate() {
            // Against one gradient each of AdamW's steps has the length of the rate.
            let own = (step as f64 - 2.0).max(0.0);
            assert!((held - (1.0 - 0.1 * own)).abs() < 1e-6 && (own > 0.0 || *held == 1.0), "{step}: {held}");
            assert!((free - (0.9 - 0.1 * step as f64)).abs() < 1e-6, "{step}: {free}");
        }
        for stop in [2, 4] {
            assert_eq!(run(Some(stop)), values, "a restored state knows how long");
        }
    }

    #[test]
    fn rates_decay_from_the_last_layer_to_the_embeddings() {
        let factor = |name: &str| layer_factor(name, 12, 0.5);
        assert_eq!(factor("norm.weight"), 1.0);
        assert_eq!(factor("blocks.11.mlp.fc1.weight"), 0.5);
        assert_eq!(factor("blocks.0.adapter.up.weight"), 0.5f64.powi(12));
        assert_eq!(factor("pos_embed"), 0.5f64.powi(13));
        assert_eq!(factor("patch_embed.proj.bias"), 0.5f64.powi(13));
        assert_eq!(layer_factor("pos_embed", 12, 1.0), 1.0);
    }

    #[test]
    fn the_rate_rises_over_the_warm_up_and_ends_at_zero() {
        let mut training = training();
        let factors: Vec<f64> = (0..10).map(|step| rate_factor(&training, step)).collect();
        assert_eq!(factors[..4], [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        assert!(factors[3..].windows(2).all(|pair| pair[1] < pair[0]), "{factors:?}");
        assert!(factors[9] < 0.06 && rate_factor(&training, 10).abs() < 1e-12);
        training.schedule = Schedule::Linear;
        // Seven steps from 1 down to 0.
        assert!((rate_factor(&training, 4) - 6.0 / 7.0).abs() < 1e-12);
        assert!(rate_factor(&training, 10).abs() < 1e-12);
        training.schedule = Schedule::Constant;
        assert_eq!(rate_factor(&training, 9), 1.0);
        training.warmup_steps = 0;
        assert_eq!(rate_factor(&training, 0), 1.0);
    }
}
