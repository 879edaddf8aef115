//! Spec files as a person writes them: TOML, one run or several. `[submit]` is what the server's client multiplies runs
//! by; here one of its variants is chosen.

use anyhow::{Context, Result, ensure};
use causeway_protocol::{Spec, parse_spec};
use serde_json::{Value, json};
use std::path::Path;

/// One run of the spec in a file: the variant (from 1) and the seed chosen, nothing checked yet.
///
/// # Errors
/// A file that cannot be read, or a variant that it does not have.
pub fn read(path: &Path, variant: usize, seed: Option<u64>) -> Result<Value> {
    let context = || format!("reading the spec {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    let mut document: Value = toml::from_str(&text).with_context(context)?;
    choose(&mut document, variant).with_context(context)?;
    if let Some(seed) = seed {
        document["seed"] = json!(seed);
    }
    Ok(document)
}

/// The document as a spec with every default.
///
/// # Errors
/// Every rule it breaks, one a line.
pub fn parse(path: &Path, document: Value) -> Result<Spec> {
    parse_spec(document).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}:\n  {}", path.display(), lines.join("\n  "))
    })
}

fn choose(document: &mut Value, variant: usize) -> Result<()> {
    let submit = document.as_object_mut().and_then(|fields| fields.remove("submit")).unwrap_or_default();
    let variants = submit["variants"].as_array().cloned().unwrap_or_default();
    match variants.get(variant.wrapping_sub(1)) {
        Some(variant) => merge(document, variant),
        None => ensure!(
            variant == 1 && variants.is_empty(),
            "there is no variant {variant}, the spec has {}",
            variants.len()
        ),
    }
    Ok(())
}

/// Puts the fields of one document over those of another, table by table. A method is replaced whole: the parameters
/// of one have no meaning for the next.
fn merge(document: &mut Value, over: &Value) {
    match (document, over) {
        (Value::Object(document), Value::Object(over)) => {
            for (field, value) in over {
                match document.get_mut(field) {
                    Some(old) if field != "method" => merge(old, value),
                    _ => drop(document.insert(field.clone(), value.clone())),
                }
            }
        }
        (document, over) => *document = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_changes_fields_and_replaces_the_method() {
        let mut document = json!({
            "method": {"kind": "adapter", "rank": 8},
            "training": {"steps": 10, "learning_rate": 1.0}
        });
        merge(
            &mut document,
            &json!({"method": {"kind": "film"}, "training": {"learning_rate": 2.0}, "seed": 3}),
        );
        let expected = json!({
            "method": {"kind": "film"},
            "training": {"steps": 10, "learning_rate": 2.0},
            "seed": 3
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn a_variant_that_is_not_there_is_an_error() {
        let mut document = json!({"submit": {"variants": [{"seed": 1}]}});
        let error = choose(&mut document.clone(), 2).unwrap_err().to_string();
        assert!(error.contains("no variant 2") && error.contains("has 1"), "{error}");
        choose(&mut document, 1).unwrap();
        assert_eq!(document, json!({"seed": 1}));
    }
}
