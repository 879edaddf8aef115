//! Methods and retention terms in words, for pages: a title, a sentence and an equation each. docs/methods.md says the
//! rest.

use crate::{
    AdapterForm, Film, FusionAttention, LoraTarget, Method, NullText, Program, Reading, Retention, Selection,
};

/// What a page says of a method or of a retention term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// A few words.
    pub title: String,
    /// One sentence: what it does, with the numbers of this spec.
    pub sentence: String,
    /// The equation, in Unicode.
    pub equation: String,
}

impl Description {
    fn new(
        title: impl Into<String>,
        sentence: impl Into<String>,
        equation: impl Into<String>,
    ) -> Description {
        Description { title: title.into(), sentence: sentence.into(), equation: equation.into() }
    }
}

impl Method {
    /// The method in words.
    pub fn description(&self) -> Description {
        match self {
            Method::Full {} => Description::new(
                "Full fine-tuning",
                "Every tensor of the encoder is trained; nothing is added.",
                "θ ← θ − η ∇L(θ)",
            ),
            Method::Selective(own) => {
                let rule = match own.rule {
                    Selection::Last => "nearest the output",
                    Selection::First => "nearest the input",
                    Selection::RelativeGradient => "with the largest relative gradient",
                };
                let chosen = own.chosen.as_ref().map(|chosen| format!(" (here {})", numbers(chosen)));
                let which = format!("{} {rule}{}", blocks(own.k), chosen.unwrap_or_default());
                Description::new(
                    format!("Selective k, k = {}", own.k),
                    format!("The {which} are trained as they are; the rest stands still."),
                    match own.rule {
                        Selection::RelativeGradient => "k largest ‖∇L(θ_b)‖ / ‖θ_b‖ over blocks b",
                        Selection::Last | Selection::First => "θ_b ← θ_b − η ∇L(θ_b) for k blocks b",
                    },
                )
            }
            Method::BlockExpansion(own) => Description::new(
                "Block expansion",
                format!(
                    "{} of blocks, each behind its original, start as the identity and are all that is trained.",
                    counted(own.copies, "copy", "copies")
                ),
                "x ← Block_b(x);  x ← Copy_b(x),  W_proj = W_fc2 = 0 at the start",
            ),
            Method::Adapter(own) => {
                let scale = own.fixed_scale();
                let scale = if scale == 1.0 { String::new() } else { format!("{scale} · ") };
                let channels = if own.has_learned_scale() { "s ⊙ " } else { "" };
                let act = if own.form == AdapterForm::Parallel { "ReLU" } else { "GELU" };
                let a = format!("A(x) = {scale}{channels}Up({act}(Down x))");
                let (title, place, equation) = adapter_form(own.form);
                Description::new(
                    title,
                    format!("A bottleneck of width {} {place} is trained; the encoder is frozen.", own.rank),
                    format!("{equation},  {a}"),
                )
            }
            Method::Lora(own) => {
                let targets: Vec<&str> = own.targets.iter().map(|target| lora_target(*target)).collect();
                Description::new(
                    "LoRA",
                    format!(
                        "Updates of rank {} to {} are trained; the encoder is frozen.",
                        own.rank,
                        targets.join(", ")
                    ),
                    format!("W x + ({} / {}) B A x,  B = 0 at the start", own.numerator(), own.rank),
                )
            }
            Method::Film(Film { generator: None, .. }) => Description::new(
                "Static FiLM",
                "A scale and a shift after both LayerNorms of a block are trained; no caption is read.",
                "(1 + Δγ) ⊙ LN(x) + β,  Δγ = β = 0 at the start",
            ),
            Method::Film(Film { generator: Some(own), .. }) => Description::new(
                "FiLM from the caption",
                format!(
                    "A network {} wide makes scales and shifts after the LayerNorms from the caption's embedding; {}.",
                    own.hidden,
                    null_text(own.null_text)
                ),
                "(1 + Δγ(c)) ⊙ LN(x) + β(c),  (Δγ, β) = V GELU(U c + u) + v,  V = v = 0 at the start",
            ),
            Method::Fusion(own) => {
                let (title, who, equation) = fusion_attention(own.attention);
                Description::new(
                    title,
                    format!(
                        "{who} in a bottleneck of width {} after a block; {}.",
                        own.rank,
                        null_text(own.null_text)
                    ),
                    format!("{equation},  g = 0 at the start"),
                )
            }
            Method::TokenReplay(own) => token_replay(own.reading, own.rank, own.memory),
            Method::Ladder(own) => Description::new(
                "Ladder side-tuning",
                format!(
                    "A network {} times narrower reads the frozen encoder's states; no gradient goes through the encoder.",
                    own.reduction
                ),
                "s ← Block_i(μ_i s + (1 − μ_i) Down_i h_i),  f = LN(h) + γ Up(LN s),  γ = 0 at the start",
            ),
            Method::Reprogram(own) => match own.program {
                Program::Additive => Description::new(
                    "Reprogramming, additive",
                    "One image-sized program, the same for every image, is added to the input and is all that is trained.",
                    "f(x + tanh W),  W = 0 at the start",
                ),
                Program::Border => Description::new(
                    "Reprogramming, border",
                    "The image is shrunk into the middle of a trained frame; α = 0 is the shrunk image in an empty frame, \
                     not the encoder's view of the whole image.",
                    "f(pad(shrink x) + tanh(W ⊙ M)),  W = 0 at the start",
                ),
            },
            Method::CrossModal(own) => Description::new(
                "Cross-modal reprogramming",
                format!(
                    "Each visual token is given a mixture of at most {} of {} words of {}; adapters of width {} follow.",
                    own.sparsity, own.words, own.language_model, own.rank
                ),
                "x + O z,  z = Σ_w p_w E_w,  p = softmax over the largest (Q x)ᵀ(K E_w) / (√r τ),  O = 0 at the start",
            ),
        }
    }
}

impl Retention {
    /// The terms that are given, each in words.
    pub fn descriptions(&self) -> Vec<Description> {
        let l2_sp = self.l2_sp.as_ref().map(|own| {
            Description::new(
                "L²-SP",
                "The squared distance of what is trained to θ0, a sum over all values.",
                format!("{} · Σ (θ − θ0)²", own.weight),
            )
        });
        let distillation = self.feature_distillation.as_ref().map(|own| {
            let what = if own.tokens { "every token" } else { "the feature" };
            Description::new(
                "Feature distillation",
                format!("The squared distance of {what} to θ0's on the same images."),
                format!("{} · mean ‖f_θ(x) − f_θ0(x)‖²", own.weight),
            )
        });
        let ewc = self.ewc.as_ref().map(|own| {
            Description::new(
                "EWC",
                format!(
                    "The squared distance to θ0, each value by its Fisher information over {} images and {} prototypes.",
                    own.images, own.prototypes
                ),
                format!("{} / 2 · Σ Fᵢ (θᵢ − θ0ᵢ)²", own.weight),
            )
        });
        let lwf = self.lwf.as_ref().map(|own| {
            Description::new(
                "Learning without forgetting",
                format!("The soft assignment of images to {} prototypes is held to θ0's.", own.prototypes),
                format!("{} · T² · KL(p_θ0 ‖ p_θ),  T = {}", own.weight, own.temperature),
            )
        });
        let rehearsal = self.rehearsal.as_ref().map(|own| {
            Description::new(
                "Rehearsal",
                format!(
                    "{} of {} kept images of {} are reconstructed at each step beside the captioned ones.",
                    own.batch_size, own.images, own.dataset
                ),
                format!("{} · L_MAE(kept images)", own.weight),
            )
        });
        [l2_sp, distillation, ewc, lwf, rehearsal].into_iter().flatten().collect()
    }
}

fn adapter_form(form: AdapterForm) -> (&'static str, &'static str, &'static str) {
    match form {
        AdapterForm::AdapterPlus => ("Adapter+", "after each block", "x ← x + A(x)"),
        AdapterForm::Pre => ("Adapter, pre", "between attention and MLP", "x̂ ← x̂ + A(x̂)"),
        AdapterForm::Intermediate => {
            ("Adapter, intermediate", "on the MLP's output", "y ← y + A(y),  y = MLP(LN x̂)")
        }
        AdapterForm::Houlsby => (
            "Houlsby adapters",
            "on the output of attention and of the MLP",
            "y ← y + A(y) for both branches",
        ),
        AdapterForm::Pfeiffer => {
            ("Pfeiffer adapters", "after each block, with a LayerNorm of its own,", "x ← x + A(LN x)")
        }
        AdapterForm::Parallel => ("AdaptFormer", "beside the MLP", "x ← x̂ + MLP(LN x̂) + A(x̂)"),
    }
}

fn lora_target(target: LoraTarget) -> &'static str {
    match target {
        LoraTarget::Query => "queries",
        LoraTarget::Key => "keys",
        LoraTarget::Value => "values",
        LoraTarget::Proj => "the attention's output",
        LoraTarget::Fc1 => "the MLP's first layer",
        LoraTarget::Fc2 => "the MLP's second layer",
    }
}

fn fusion_attention(attention: FusionAttention) -> (&'static str, &'static str, &'static str) {
    match attention {
        FusionAttention::Merged => (
            "Merged fusion",
            "Image and caption tokens attend to both, under one softmax,",
            "X = [V; T],  X ← X + tanh(g) Attn(X, X, X)",
        ),
        FusionAttention::CoAttention => (
            "Co-attention fusion",
            "Image tokens attend to the caption's and the caption's to the image's,",
            "V ← V + tanh(g) Attn(V, T, T),  T ← T + tanh(g′) Attn(T, V, V)",
        ),
        FusionAttention::Asymmetric => (
            "Asymmetric fusion",
            "Image tokens attend to the caption's, which stay as they are,",
            "V ← V + tanh(g) Attn(V, T, T)",
        ),
        FusionAttention::Joint => (
            "Joint adapter",
            "Image and caption tokens share one bottleneck and attend to both inside it,",
            "X = [V; T],  H = GELU(Down LN X),  X ← X + tanh(g) Up Attn(H, H, H)",
        ),
    }
}

fn token_replay(reading: Reading, rank: u32, memory: u32) -> Description {
    match reading {
        Reading::A => Description::new(
            "Token replay, reading A",
            format!(
                "The caption's tokens, computed once, are attended to after every block in a bottleneck of width {rank}; \
                 where there is no caption, {memory} tokens of a memory are."
            ),
            "x ← x + tanh(g_l) Attn(x, T, T),  T the same for all l,  g = 0 at the start",
        ),
        Reading::B => Description::new(
            "Token replay, reading B",
            format!(
                "The image's tokens as they entered the first block are fed in again after every block through a \
                 bottleneck of width {rank}."
            ),
            "x ← x + Up_l GELU(Down_l [x; x₀]),  Up = 0 at the start",
        ),
        Reading::C => Description::new(
            "Token replay, reading C",
            format!(
                "Adapter+ of width {rank} is trained to leave θ0's tokens of a few kept images as they were."
            ),
            "x ← x + A_l(x),  L + w · mean ‖tokens_θ(b) − tokens_θ0(b)‖² over kept images b",
        ),
    }
}

fn null_text(null_text: NullText) -> &'static str {
    match null_text {
        NullText::Learned => "a learned vector stands in for a missing caption",
        NullText::Drop => "without a caption the image is alone",
    }
}

fn counted(number: u32, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn blocks(k: u32) -> String {
    counted(k, "block", "blocks")
}

fn numbers(list: &[u32]) -> String {
    list.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
