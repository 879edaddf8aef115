//! The rules of the readouts beside k-NN.

use super::Problems;
use crate::Spec;

/// Most C of one linear probe.
const C_MAX: usize = 16;
/// Most templates of one zero-shot classifier.
const TEMPLATES_MAX: usize = 256;
/// What stands for a class's name in a template.
const NAME: &str = "{}";

impl Spec {
    /// What is wrong with the linear probe and with zero-shot.
    pub(super) fn readout_problems(&self, list: &mut Problems) {
        if let Some(probe) = &self.evaluation.linear_probe {
            list.within("evaluation.linear_probe.c", probe.c.len() as f64, 1.0, C_MAX as f64);
            for (at, c) in probe.c.iter().enumerate() {
                list.within(&format!("evaluation.linear_probe.c[{at}]"), *c, 1e-6, 1e6);
            }
            let ascending = probe.c.windows(2).all(|pair| pair[0] < pair[1]);
            list.when(!ascending, "evaluation.linear_probe.c", "must ascend without repeats".into());
        }
        if let Some(zero_shot) = &self.evaluation.zero_shot {
            list.text("evaluation.zero_shot.text_encoder", &zero_shot.text_encoder, 1);
            let digest = &zero_shot.digest;
            let hex = digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            list.when(
                !hex,
                "evaluation.zero_shot.digest",
                "must be the sha256 of the text encoder's model.safetensors, 64 lower-case hex digits: points rest on it"
                    .into(),
            );
            let templates = &zero_shot.templates;
            list.within("evaluation.zero_shot.templates", templates.len() as f64, 1.0, TEMPLATES_MAX as f64);
            for (at, template) in templates.iter().enumerate() {
                let field = format!("evaluation.zero_shot.templates[{at}]");
                list.text(&field, template, NAME.len());
                list.when(
                    template.matches(NAME).count() != 1,
                    &field,
                    "must have `{}` in the place of the class's name, once".into(),
                );
                list.when(templates[..at].contains(template), &field, "is there twice".into());
            }
        }
    }
}
