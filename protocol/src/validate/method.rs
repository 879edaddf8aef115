//! The rules of what is made trainable and of what holds it back.

use super::Problems;
use crate::{
    Adapter, BlockExpansion, Buffer, CrossModal, Film, Fusion, FusionAttention, Ladder, Lora, Method,
    NullText, Program, Reading, Reprogram, Selective, Soup, Spec, TokenReplay,
};

/// Widest bottleneck.
const RANK_MAX: f64 = 4096.0;
/// Why a spec is refused that trains nothing which an evaluation would see.
const NOTHING_TRAINED: &str = "leaves nothing trained on the path that is evaluated";

impl Spec {
    pub(super) fn method_problems(&self, list: &mut Problems) {
        let Some(method) = &self.method else { return };
        match method {
            Method::Full {} => {}
            Method::Selective(Selective { k, batches, chosen, .. }) => {
                list.when(*k == 0, "method.k", format!("of 0 {NOTHING_TRAINED}"));
                list.within("method.batches", f64::from(*batches), 1.0, 10_000.0);
                list.when(
                    chosen.is_some(),
                    "method.chosen",
                    "is what the trainer finds; choose by `rule` and `k`".into(),
                );
            }
            Method::BlockExpansion(BlockExpansion { copies }) => {
                list.when(*copies == 0, "method.copies", format!("of 0 {NOTHING_TRAINED}"));
            }
            Method::Adapter(Adapter { rank, scale, blocks, .. }) => {
                list.rank(*rank);
                if let Some(scale) = scale {
                    list.positive("method.scale", *scale);
                }
                list.blocks(blocks.as_deref());
            }
            Method::Lora(Lora { rank, alpha, targets, blocks }) => {
                list.rank(*rank);
                if let Some(alpha) = alpha {
                    list.positive("method.alpha", *alpha);
                }
                list.when(targets.is_empty(), "method.targets", format!("of none {NOTHING_TRAINED}"));
                let again = (1..targets.len()).any(|at| targets[..at].contains(&targets[at]));
                list.when(again, "method.targets", "must not name a layer twice".into());
                list.blocks(blocks.as_deref());
            }
            Method::Film(Film { generator, blocks }) => {
                if let Some(generator) = generator {
                    list.within("method.generator.hidden", f64::from(generator.hidden), 1.0, 65_536.0);
                    let drop = generator.null_text == NullText::Drop;
                    list.when(
                        drop,
                        "method.generator.null_text",
                        format!("= \"drop\" {NOTHING_TRAINED}: without a caption FiLM does nothing"),
                    );
                }
                list.blocks(blocks.as_deref());
            }
            Method::Fusion(Fusion { attention, rank, null_text, blocks, .. }) => {
                list.rank(*rank);
                let alone = matches!(attention, FusionAttention::CoAttention | FusionAttention::Asymmetric);
                list.when(
                    alone && *null_text == NullText::Drop,
                    "method.null_text",
                    format!("= \"drop\" {NOTHING_TRAINED}: the image would attend to nothing"),
                );
                list.blocks(blocks.as_deref());
            }
            Method::TokenReplay(TokenReplay { reading, rank, memory, buffer, blocks, .. }) => {
                list.rank(*rank);
                list.within("method.memory", f64::from(*memory), 1.0, 4096.0);
                let replays = *reading == Reading::C;
                list.when(
                    replays != buffer.is_some(),
                    "method.buffer",
                    "must be given for reading c, and only for it".into(),
                );
                if let Some(buffer) = buffer {
                    list.buffer("method.buffer", buffer);
                }
                list.blocks(blocks.as_deref());
            }
            Method::Ladder(Ladder { reduction }) => {
                list.within("method.reduction", f64::from(*reduction), 1.0, 256.0);
            }
            Method::Reprogram(Reprogram { program, inner }) => {
                let sizes = self.training.as_ref().map(|training| training.image_size);
                list.when(
                    sizes.is_some_and(|size| size != self.evaluation.image_size),
                    "evaluation.image_size",
                    "must be training.image_size: a program is made for one size".into(),
                );
                list.when(
                    *program == Program::Additive && inner.is_some(),
                    "method.inner",
                    "is for program = \"border\"; leave it out".into(),
                );
                if let (Some(inner), Some(size)) = (inner, sizes) {
                    let broken = *inner == 0 || *inner >= size;
                    list.when(
                        broken,
                        "method.inner",
                        format!("must be less than the {size} px of the input"),
                    );
                    list.when(
                        !broken && (size - inner) % 2 == 1,
                        "method.inner",
                        format!("must leave an even number of the {size} px: the image stands in the middle"),
                    );
                }
            }
            Method::CrossModal(CrossModal {
                language_model,
                words,
                sparsity,
                temperature,
                rank,
                alone_steps,
            }) => {
                list.text("method.language_model", language_model, 1);
                list.rank(*rank);
                list.within("method.words", f64::from(*words), 2.0, 1e6);
                list.within("method.sparsity", f64::from(*sparsity), 1.0, f64::from(*words));
                list.positive("method.temperature", *temperature);
                let steps = self.training.as_ref().map_or(u64::MAX, |training| training.steps);
                list.when(
                    *alone_steps >= steps,
                    "method.alone_steps",
                    "must be less than training.steps, or the adapters are never trained".into(),
                );
            }
        }
        self.caption_reading_problems(method, list);
    }

    /// The rules of a method that is shown captions.
    fn caption_reading_problems(&self, method: &Method, list: &mut Problems) {
        let Some(reads) = method.reads() else { return };
        list.within("method.caption_dropout", reads.caption_dropout, 0.0, 1.0);
        let text_encoder = self.captions.as_ref().map(|captions| captions.text_encoder.is_some());
        list.when(
            text_encoder == Some(false),
            "captions.text_encoder",
            format!("must be given: {} reads captions through it", method.as_str()),
        );
        let trained = self.captions.as_ref().is_some_and(|captions| captions.train_text_encoder);
        list.when(
            trained,
            "captions.train_text_encoder",
            format!("cannot go with {}, which reads each caption as it was before training", method.as_str()),
        );
        let compared = self.objective.as_ref();
        let compared = compared.is_some_and(|terms| terms.contrastive.is_some() || terms.caption.is_some());
        list.when(
            reads.leak && !compared,
            "method.leak",
            "permits what no term of this objective does; leave it out".into(),
        );
    }

    pub(super) fn retention_problems(&self, list: &mut Problems) {
        let Some(retention) = &self.retention else { return };
        let given = [
            retention.l2_sp.as_ref().map(|term| ("l2_sp", term.weight)),
            retention.feature_distillation.as_ref().map(|term| ("feature_distillation", term.weight)),
            retention.ewc.as_ref().map(|term| ("ewc", term.weight)),
            retention.lwf.as_ref().map(|term| ("lwf", term.weight)),
            retention.rehearsal.as_ref().map(|term| ("rehearsal", term.weight)),
        ];
        list.when(
            given.iter().all(Option::is_none),
            "retention",
            "must have a term: l2_sp, feature_distillation, ewc, lwf or rehearsal".into(),
        );
        for (name, weight) in given.into_iter().flatten() {
            list.positive(&format!("retention.{name}.weight"), weight);
        }
        if let Some(ewc) = &retention.ewc {
            list.within("retention.ewc.images", f64::from(ewc.images), 1.0, 1e6);
            list.within("retention.ewc.prototypes", f64::from(ewc.prototypes), 2.0, 65_536.0);
        }
        if let Some(lwf) = &retention.lwf {
            list.positive("retention.lwf.temperature", lwf.temperature);
            list.within("retention.lwf.prototypes", f64::from(lwf.prototypes), 2.0, 65_536.0);
        }
        if let Some(buffer) = &retention.rehearsal {
            list.buffer("retention.rehearsal", buffer);
            let reconstructs = self.objective.as_ref().is_some_and(|terms| terms.reconstruction.is_some());
            list.when(
                !reconstructs,
                "retention.rehearsal",
                "needs objective.reconstruction, whose decoder it shares".into(),
            );
        }
    }
}

impl Spec {
    /// What chose the soup cannot judge it.
    pub(super) fn greedy_problems(&self, soup: &Soup, list: &mut Problems) {
        let datasets = &self.evaluation.datasets;
        let judged = datasets.iter().any(|dataset| Some(&dataset.asset) == soup.greedy_on.as_ref());
        list.when(
            judged,
            "weights.theta1.soup.greedy_on",
            "must not be among evaluation.datasets: the soup is chosen by its labels; take it out of one of them".into(),
        );
    }
}

impl Problems {
    pub(super) fn soup(&mut self, field: &str, soup: &Soup, allowed: bool) {
        self.when(!allowed, field, "is for weights.theta1 of kind = \"evaluate\"".into());
        self.within(&format!("{field}.checkpoints"), soup.checkpoints.len() as f64, 2.0, 256.0);
        for (at, sha256) in soup.checkpoints.iter().enumerate() {
            let field = format!("{field}.checkpoints[{at}]");
            self.digest(&field, sha256);
            self.when(soup.checkpoints[..at].contains(sha256), &field, "is named twice".into());
        }
        if let Some(dataset) = &soup.greedy_on {
            self.text(&format!("{field}.greedy_on"), dataset, 1);
        }
    }

    fn rank(&mut self, rank: u32) {
        self.within("method.rank", f64::from(rank), 1.0, RANK_MAX);
    }

    fn blocks(&mut self, blocks: Option<&[u32]>) {
        let Some(blocks) = blocks else { return };
        self.when(blocks.is_empty(), "method.blocks", format!("of none {NOTHING_TRAINED}"));
        let ascending = blocks.windows(2).all(|pair| pair[0] < pair[1]);
        self.when(!ascending, "method.blocks", "must ascend without repeats".into());
    }

    fn buffer(&mut self, field: &str, buffer: &Buffer) {
        self.text(&format!("{field}.dataset"), &buffer.dataset, 1);
        self.within(&format!("{field}.images"), f64::from(buffer.images), 2.0, 1e6);
        let images = f64::from(buffer.images);
        self.within(&format!("{field}.batch_size"), f64::from(buffer.batch_size), 2.0, images.max(2.0));
        self.positive(&format!("{field}.weight"), buffer.weight);
    }
}
