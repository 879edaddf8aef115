//! Rules of what is trained, on what, and by which loss.

use super::Problems;
use crate::{Decoder, Kind, Spec, View, WeightSource};

/// What is wrong with a visible view where nothing is hidden.
const VISIBLE_ALONE: &str =
    "can be `visible` only beside objective.reconstruction, which decides what is visible";

impl Spec {
    pub(super) fn training_problems(&self, list: &mut Problems) {
        let kind = self.kind.as_str();
        let must = format!("must be given for kind = \"{kind}\"");
        list.when(
            self.weights.theta1.is_some(),
            "weights.theta1",
            format!("is what a {kind} run makes; leave it out"),
        );
        let pretrain = self.kind == Kind::Pretrain;
        let fresh = matches!(self.weights.theta0, WeightSource::Fresh(_));
        list.when(
            pretrain && !fresh,
            "weights.theta0",
            "must be `fresh` for kind = \"pretrain\": it starts from random values".into(),
        );
        list.when(
            pretrain && self.method.is_some(),
            "method",
            "has no meaning for kind = \"pretrain\", which trains everything; leave it out".into(),
        );
        list.when(!pretrain && self.method.is_none(), "method", must.clone());
        list.when(self.captions.is_none(), "captions", must.clone());
        list.when(self.objective.is_none(), "objective", must.clone());
        list.when(self.training.is_none(), "training", must);
        list.when(
            pretrain && self.retention.is_some(),
            "retention",
            "has no meaning for kind = \"pretrain\": there is nothing to retain; leave it out".into(),
        );
        self.method_problems(list);
        self.retention_problems(list);
        if let Some(captions) = &self.captions {
            list.text("captions.asset", &captions.asset, 1);
            if let Some(text_encoder) = &captions.text_encoder {
                list.text("captions.text_encoder", text_encoder, 1);
            }
            if let Some(limit) = captions.limit {
                list.within("captions.limit", limit as f64, 2.0, 1e12);
            }
        }
        self.objective_problems(list);
        if let Some(training) = &self.training {
            list.within("training.steps", training.steps as f64, 1.0, 1e9);
            list.within("training.batch_size", f64::from(training.batch_size), 2.0, 65_536.0);
            list.within("training.accumulate", f64::from(training.accumulate), 1.0, 65_536.0);
            list.within("training.layer_decay", training.layer_decay, 0.01, 1.0);
            if let Some((least, most)) = training.crop_scale {
                list.when(
                    !(least > 0.0 && least <= most && most <= 1.0),
                    "training.crop_scale",
                    format!("must be two shares of the area, 0 < least <= most <= 1, is [{least}, {most}]"),
                );
            }
            if let Some(decay) = training.ema {
                list.within("training.ema", decay, 0.0, 0.999_999);
            }
            if let Some(steps) = training.encoder_frozen_steps {
                list.when(
                    steps >= training.steps,
                    "training.encoder_frozen_steps",
                    "must be less than training.steps, or the encoder is never trained".into(),
                );
            }
            if let Some(spike) = training.divergence.spike {
                list.within("training.divergence.spike", spike, 1.000_001, 1e9);
            }
            if let Some(norm) = training.divergence.gradient_norm {
                list.positive("training.divergence.gradient_norm", norm);
            }
            list.within("training.divergence.rollbacks", f64::from(training.divergence.rollbacks), 0.0, 20.0);
            list.within("training.divergence.lower", training.divergence.lower, 0.001, 1.0);
            list.positive("training.learning_rate", training.learning_rate);
            list.positive("training.head_learning_rate", training.head_learning_rate);
            list.within("training.weight_decay", training.weight_decay, 0.0, 1e3);
            list.within("training.betas[0]", training.betas.0, 0.0, 0.999_999);
            list.within("training.betas[1]", training.betas.1, 0.0, 0.999_999);
            list.positive("training.clip_norm", training.clip_norm);
            list.within("training.image_size", f64::from(training.image_size), 8.0, 2048.0);
            list.within("training.resume_every", training.resume_every as f64, 1.0, 1e9);
            list.when(
                training.warmup_steps > training.steps,
                "training.warmup_steps",
                "must be at most training.steps".into(),
            );
        }
    }

    fn objective_problems(&self, list: &mut Problems) {
        let Some(objective) = &self.objective else { return };
        let (contrastive, caption) = (&objective.contrastive, &objective.caption);
        let visible_alone = |view: View| view == View::Visible && objective.reconstruction.is_none();
        let nothing = contrastive.is_none() && caption.is_none() && objective.reconstruction.is_none();
        list.when(nothing, "objective", "must have a term: contrastive, reconstruction or caption".into());
        if self.kind == Kind::Pretrain {
            let alone = "is for finetune runs; a pretraining has the reconstruction alone";
            list.when(contrastive.is_some(), "objective.contrastive", alone.into());
            list.when(caption.is_some(), "objective.caption", alone.into());
        }
        if let Some(loss) = contrastive {
            list.positive("objective.contrastive.weight", loss.weight);
            list.within(
                "objective.contrastive.projection_dim",
                f64::from(loss.projection_dim),
                1.0,
                65_536.0,
            );
            list.within("objective.contrastive.temperature", loss.temperature, 0.01, 10.0);
            list.when(visible_alone(loss.view), "objective.contrastive.view", VISIBLE_ALONE.into());
        }
        if let Some(loss) = &objective.reconstruction {
            list.positive("objective.reconstruction.weight", loss.weight);
            list.within("objective.reconstruction.mask_ratio", loss.mask_ratio, 0.01, 0.99);
            let Decoder { dim, depth, heads } = loss.decoder;
            list.shape("objective.reconstruction.decoder", dim, depth, heads);
            list.when(dim % 4 != 0, "objective.reconstruction.decoder.dim", "must be a multiple of 4".into());
        }
        if let Some(loss) = caption {
            list.positive("objective.caption.weight", loss.weight);
            list.text("objective.caption.language_model", &loss.language_model, 1);
            list.when(visible_alone(loss.view), "objective.caption.view", VISIBLE_ALONE.into());
            list.within("objective.caption.dropout", loss.dropout, 0.0, 0.9);
        }
        let text_encoder = self.captions.as_ref().map(|captions| captions.text_encoder.is_some());
        list.when(
            contrastive.is_some() && text_encoder == Some(false),
            "captions.text_encoder",
            "must be given: the contrastive loss compares images with its embeddings".into(),
        );
        let reads = self.method.as_ref().is_some_and(|method| method.reads().is_some());
        list.when(
            contrastive.is_none() && !reads && text_encoder == Some(true),
            "captions.text_encoder",
            "is read by the contrastive loss and by methods that read captions; leave it out".into(),
        );
        let trained = self.captions.as_ref().is_some_and(|captions| captions.train_text_encoder);
        list.when(
            trained && contrastive.is_none(),
            "captions.train_text_encoder",
            "needs objective.contrastive, the loss that trains it".into(),
        );
    }
}
