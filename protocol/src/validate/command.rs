//! Rules of what a run asks of the cluster, and of a command.

use super::{Problems, TAGS_MAX};
use crate::{DEVICES_MAX, Kind, NODES_MAX, Resources, Spec};

/// Most arguments of a command, and most variables of its environment.
const ARGUMENTS_MAX: usize = 1000;
/// Longest command, bytes.
const COMMAND_BYTES_MAX: usize = 100_000;
/// Most runs that one waits for.
const AFTER_MAX: usize = 100;

impl Spec {
    pub(super) fn resources_problems(&self, list: &mut Problems) {
        let Resources { gpus, memory_gb, labels, nodes, minutes } = &self.resources;
        if self.kind == Kind::Command {
            list.within("resources.gpus", f64::from(*gpus), 1.0, f64::from(DEVICES_MAX));
            list.within("resources.nodes", f64::from(*nodes), 1.0, f64::from(NODES_MAX));
        } else {
            let kind = self.kind.as_str();
            list.when(
                *gpus != 1,
                "resources.gpus",
                format!("must be 1: a {kind} run computes on one device"),
            );
            list.when(
                *nodes != 1,
                "resources.nodes",
                format!("must be 1: a {kind} run computes on one worker"),
            );
        }
        if let Some(gb) = memory_gb {
            list.within("resources.memory_gb", *gb, 0.001, 1e6);
        }
        list.when(labels.len() > TAGS_MAX, "resources.labels", format!("must be at most {TAGS_MAX}"));
        for (at, label) in labels.iter().enumerate() {
            list.text(&format!("resources.labels[{at}]"), label, 1);
        }
        if let Some(minutes) = minutes {
            list.within("resources.minutes", f64::from(*minutes), 1.0, 525_600.0);
        }
        list.when(self.after.len() > AFTER_MAX, "after", format!("must be at most {AFTER_MAX}"));
    }

    pub(super) fn command_problems(&self, list: &mut Problems) {
        let given = [
            ("weights", !self.weights.is_none()),
            ("method", self.method.is_some()),
            ("captions", self.captions.is_some()),
            ("objective", self.objective.is_some()),
            ("retention", self.retention.is_some()),
            ("training", self.training.is_some()),
            ("evaluation", !self.evaluation.is_none()),
            ("analysis", self.analysis.is_some()),
        ];
        for (field, given) in given {
            list.when(given, field, "has no meaning for kind = \"command\"; leave it out".into());
        }
        let Some(command) = &self.command else {
            return list.when(true, "command", "must be given for kind = \"command\"".into());
        };
        list.within("command.argv", command.argv.len() as f64, 1.0, ARGUMENTS_MAX as f64);
        let program = command.argv.first().is_some_and(|program| !program.is_empty());
        list.when(!program, "command.argv[0]", "must name a program".into());
        let bytes: usize = command.argv.iter().map(String::len).sum();
        list.when(
            bytes > COMMAND_BYTES_MAX,
            "command.argv",
            format!("must have at most {COMMAND_BYTES_MAX} bytes in all"),
        );
        list.when(
            command.argv.iter().any(|argument| argument.contains('\0')),
            "command.argv",
            "must have no NUL characters".into(),
        );
        list.when(
            command.environment.len() > ARGUMENTS_MAX,
            "command.environment",
            format!("must be at most {ARGUMENTS_MAX} variables"),
        );
        for (name, value) in &command.environment {
            let field = format!("command.environment.{name}");
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            list.when(!named, &field, "must be named with letters, digits and _".into());
            list.when(name.starts_with("CAUSEWAY_"), &field, "is Causeway's own".into());
            list.when(value.contains('\0'), &field, "must have no NUL characters".into());
        }
        for (at, asset) in command.assets.iter().enumerate() {
            list.text(&format!("command.assets[{at}]"), asset, 1);
        }
    }
}
