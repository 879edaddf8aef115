//! The harness: real servers and trainers as processes, each with a state folder and a Postgres of its own, so that
//! tests run side by side and a kill is a kill.

mod authority;
pub mod chaos;
mod line;
mod process;
mod server;
mod trainer;
mod worker;

pub use authority::Authority;
pub use line::BadLine;
pub use process::{Process, attempts, binary, repository, wait_for};
pub use server::Server;
pub use trainer::{Trainer, demo_data, small_finetune};
pub use worker::{FakeWorker, Held};

use causeway_connect::Trust;
use serde_json::{Value, json};

/// An HTTP client for whatever a test asks of a server on this machine.
///
/// # Panics
/// If TLS cannot be set up.
pub fn http() -> reqwest::ClientBuilder {
    Trust::default().client("http://localhost").expect("TLS needs nothing from this machine")
}

/// A spec that passes validation; what it names need not exist until a worker looks.
pub fn spec() -> Value {
    json!({
        "experiment": "an experiment",
        "kind": "finetune",
        "weights": {"theta0": {"asset": "vit"}},
        "method": {"kind": "adapter"},
        "captions": {"asset": "pairs", "text_encoder": "minilm"},
        "objective": {"contrastive": {}},
        "training": {"steps": 10, "learning_rate": 1e-3},
        "evaluation": {"datasets": [{"asset": "shapes", "role": "ood"}], "alphas": [0, 0.5, 1], "k": [1]}
    })
}

/// The assets that `spec` names.
pub const ASSETS: [&str; 4] = ["vit", "pairs", "minilm", "shapes"];
