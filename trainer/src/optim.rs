//! AdamW (arXiv 1711.05101, algorithm 2) as torch.optim.AdamW computes it. It is ours because a resumed run needs the
//! moments, and tch does not give its own optimiser's out.

use crate::weights::Tensors;
use anyhow::{Context, Result, ensure};
use causeway_protocol::{Schedule, Training};
use tch::Tensor;

/// Added to the denominator.
const EPSILON: f64 = 1e-8;

/// AdamW over named tensors.
#[derive(Debug)]
pub struct AdamW {
    betas: (f64, f64),
    steps: u64,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    value: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    /// Peak learning rate.
    rate: f64,
    /// Decoupled weight decay.
    decay: f64,
}

impl AdamW {
    /// An optimiser of nothing yet.
    pub fn new(betas: (f64, f64)) -> AdamW {
        AdamW { betas, steps: 0, parameters: Vec::new() }
    }

    /// Takes a copy of `start` as a trained tensor and returns it, to be used in the loss. `decay` applies to
    /// matrices; biases, norms, scales, gates and the two token tables are spared.
    pub fn train(&mut self, name: &str, start: &Tensor, rate: f64, decay: f64) -> Tensor {
        let value = start.detach().copy().set_requires_grad(true);
        let parameter = Parameter {
            name: name.to_owned(),
            first_moment: start.detach().zeros_like(),
            second_moment: start.detach().zeros_like(),
            rate,
            decay: if is_decayed(name, start) { decay } else { 0.0 },
            value: value.shallow_clone(),
        };
        self.parameters.push(parameter);
        value
    }

    /// Number of values that are trained.
    pub fn values(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.value.numel() as u64).sum()
    }

    /// ∂loss/∂θ for each trained tensor, in order.
    ///
    /// # Errors
    /// A trained tensor that the loss does not depend on.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let values: Vec<&Tensor> = self.parameters.iter().map(|parameter| &parameter.value).collect();
        let gradients = Tensor::f_run_backward(&[loss], &values, false, false)?;
        for (gradient, parameter) in gradients.iter().zip(&self.parameters) {
            ensure!(gradient.defined(), "the loss does not depend on {}", parameter.name);
        }
        Ok(gradients)
    }

    /// One step against the gradients, with every peak rate times `factor`.
    pub fn step(&mut self, gradients: &[Tensor], factor: f64) {
        self.steps += 1;
        let (beta1, beta2) = self.betas;
        let correction1 = 1.0 - beta1.powf(self.steps as f64);
        let correction2 = 1.0 - beta2.powf(self.steps as f64);
        tch::no_grad(|| {
            for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
                let rate = parameter.rate * factor;
                if parameter.decay > 0.0 {
                    let _ = parameter.value.g_mul_scalar_(1.0 - rate * parameter.decay);
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
        state
    }

    /// Goes back to a state taken after `steps` steps of the same tensors.
    ///
    /// # Errors
    /// A state of other tensors.
    pub fn restore(&mut self, state: &Tensors, steps: u64) -> Result<()> {
        ensure!(
            state.len() == 3 * self.parameters.len(),
            "the state holds {} tensors, three for each of {} are needed",
            state.len(),
            self.parameters.len()
        );
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
        self.steps = steps;
        Ok(())
    }
}

/// Matrices are decayed; vectors and scalars (biases, norms, scales, gates, the temperature) and the class token and
/// position table, which are vectors in all but shape, are not.
fn is_decayed(name: &str, tensor: &Tensor) -> bool {
    let leaf = name.rsplit('/').next().unwrap_or(name);
    tensor.dim() >= 2 && leaf != "cls_token" && leaf != "pos_embed"
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
/// cosine down to 0 or level.
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
                optimiser.step(&gradients, rate_factor(&training(), step as u64));
                norm
            })
            .collect()
    }

    fn reference_optimiser() -> (AdamW, Tensor, Tensor) {
        let mut optimiser = AdamW::new((0.9, 0.98));
        let matrix = Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0, -1.0, 0.0]).reshape([2, 3]);
        let matrix = optimiser.train("matrix", &matrix, 0.02, 0.1);
        let vector = optimiser.train("vector", &Tensor::from_slice(&[0.1f32, 0.2, -0.3]), 0.005, 0.1);
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
        second.restore(&first.state(), 4).unwrap();
        reference_steps(&mut second, 4..10);
        assert!(bitwise_equal(&resumed.detach(), &matrix.detach()));
        assert!(second.restore(&Tensors::new(), 4).is_err());
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
            ("heads/logit_scale", &[], false),
        ] {
            assert_eq!(is_decayed(name, &zeros(shape)), decayed, "{name}");
        }
    }

    #[test]
    fn the_rate_rises_over_the_warm_up_and_ends_at_zero() {
        let mut training = training();
        let factors: Vec<f64> = (0..10).map(|step| rate_factor(&training, step)).collect();
        assert_eq!(factors[..4], [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        assert!(factors[3..].windows(2).all(|pair| pair[1] < pair[0]), "{factors:?}");
        assert!(factors[9] < 0.06 && rate_factor(&training, 10).abs() < 1e-12);
        training.schedule = Schedule::Constant;
        assert_eq!(rate_factor(&training, 9), 1.0);
        training.warmup_steps = 0;
        assert_eq!(rate_factor(&training, 0), 1.0);
    }
}
