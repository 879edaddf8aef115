//! A spec as people read it: its leaves by path, what was set apart from what was left at its default.

use crate::checkpoints::flatten;
use causeway_protocol::Spec;
use serde_json::Value;

/// One value of a spec.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Dotted path.
    pub path: String,
    /// The value in words.
    pub value: String,
    /// Whether it differs from what leaving it out would give.
    pub set: bool,
}

/// The leaves of a spec. A leaf is a default if the spec without it reads back as the same spec.
pub fn leaves(document: &Value) -> Vec<Leaf> {
    let whole = serde_json::from_value::<Spec>(document.clone()).ok();
    let mut leaves = Vec::new();
    flatten(document, String::new(), &mut |path, value| {
        let without = whole.as_ref().and_then(|_| {
            let mut rest = document.clone();
            remove(&mut rest, &path);
            serde_json::from_value::<Spec>(rest).ok()
        });
        let set = without.is_none() || without != whole;
        leaves.push(Leaf { value: words(value), set, path });
    });
    leaves
}

fn remove(document: &mut Value, path: &str) {
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = parents
        .split('.')
        .filter(|name| !name.is_empty())
        .try_fold(document, |value, name| value.get_mut(name));
    if let Some(Value::Object(fields)) = parent {
        fields.remove(last);
    }
}

/// A value in words: text without quotes, datasets by name and role.
pub fn words(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "(empty)".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => list.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => match (fields.get("asset"), fields.get("role")) {
            (Some(Value::String(asset)), Some(Value::String(role))) => format!("{asset} ({role})"),
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

/// Paths that say who and when rather than what; they never tell two lines apart.
const AROUND: [&str; 7] = ["experiment", "name", "note", "tags", "priority", "max_attempts", "seed"];

/// Whether a path says who and when rather than what.
pub fn is_around(path: &str) -> bool {
    AROUND.contains(&path)
}

/// Whether a value is left out of what a variant is (`runs::submit`): it makes no line of its own.
fn is_beside(path: &str) -> bool {
    path.starts_with("analysis.") || path == "evaluation.parts"
}

/// Most values in a label.
const LABEL_PARTS: usize = 3;

/// Labels for lines of one method: the method's word, and where there are several variants of it, the values in which
/// they differ. A part that only some of them have, such as a term of the loss, is named where it is there.
pub fn labels(specs: &[(&str, &Value)]) -> Vec<String> {
    let labels = specs.iter().map(|(method, spec)| {
        let peers: Vec<Value> =
            specs.iter().filter(|(m, _)| m == method).map(|(_, s)| (*s).clone()).collect();
        let mut parts = Vec::new();
        let differing = crate::checkpoints::differing(&peers);
        for path in differing.keys().filter(|path| !is_around(path) && !is_beside(path)) {
            let Some(value) = at(spec, path) else { continue };
            let (whole, leaf) = path.rsplit_once('.').unwrap_or(("", path));
            let others: Vec<&Value> = peers.iter().filter_map(|peer| at(peer, path)).collect();
            if others.len() < peers.len() {
                parts.push(whole.rsplit('.').next().unwrap_or(whole).replace('_', " "));
            }
            if others.iter().any(|other| *other != value) {
                let value = words(value);
                // Digests are told apart by their beginnings.
                let value = if value.len() == 64 { &value[..8] } else { &value };
                parts.push(format!("{} {value}", leaf.replace('_', " ")));
            }
        }
        parts.dedup();
        parts.truncate(LABEL_PARTS);
        parts.insert(0, method.replace('_', " "));
        parts.join(" · ")
    });
    labels.collect()
}

fn at<'a>(spec: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(spec, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> Value {
        let spec = json!({
            "experiment": "e", "kind": "evaluate", "name": "x",
            "weights": {"theta0": {"asset": "a"}, "theta1": {"asset": "b"}},
            "evaluation": {"datasets": [{"asset": "d", "role": "ood"}], "k": [10]}
        });
        let filled: Spec = serde_json::from_value(spec).unwrap();
        serde_json::to_value(filled).unwrap()
    }

    #[test]
    fn what_was_set_is_told_from_what_was_left() {
        let leaves = leaves(&spec());
        let set: Vec<&str> = leaves.iter().filter(|leaf| leaf.set).map(|leaf| leaf.path.as_str()).collect();
        assert_eq!(
            set,
            [
                "evaluation.datasets",
                "evaluation.k",
                "experiment",
                "kind",
                "name",
                "weights.theta0.asset",
                "weights.theta1.asset"
            ]
        );
        let datasets = leaves.iter().find(|leaf| leaf.path == "evaluation.datasets").unwrap();
        assert_eq!(datasets.value, "d (ood)");
    }

    #[test]
    fn variants_of_a_method_are_labelled_by_what_differs() {
        let (a, mut b) =
            (json!({"seed": 0, "method": {"rank": 8}}), json!({"seed": 1, "method": {"rank": 16}}));
        assert_eq!(labels(&[("adapter", &a), ("adapter", &b)]), ["adapter · rank 8", "adapter · rank 16"]);
        b = json!({"seed": 1, "method": {"rank": 8}});
        assert_eq!(labels(&[("adapter", &a), ("adapter", &b)]), ["adapter", "adapter"]);
        b = json!({"seed": 1, "method": {"rank": 8}, "evaluation": {"parts": 2}, "analysis": {"spectrum": {"qkv": "split"}}});
        assert_eq!(
            labels(&[("adapter", &a), ("adapter", &b)]),
            ["adapter", "adapter"],
            "no part of a variant"
        );
    }

    #[test]
    fn a_part_that_only_some_have_is_named_where_it_is() {
        let with = |weight: f64| json!({"retention": {"l2_sp": {"weight": weight}}});
        let (bare, light, heavy) = (json!({}), with(0.01), with(1.0));
        assert_eq!(labels(&[("full", &bare), ("full", &light)]), ["full", "full · l2 sp"]);
        assert_eq!(
            labels(&[("full", &bare), ("full", &light), ("full", &heavy)]),
            ["full", "full · l2 sp · weight 0.01", "full · l2 sp · weight 1.0"]
        );
    }
}
