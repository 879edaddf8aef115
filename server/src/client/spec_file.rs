//! A spec file is a spec in TOML. With a `[submit]` table it describes several runs: every variant, merged over the
//! rest of the file, with every seed.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::{fs, path::Path};

/// Reads a file, applies `key.path=value` settings, and expands it into specs.
///
/// # Errors
/// If the file cannot be read, is no TOML, or its `[submit]` table is not understood.
pub fn expand(path: &Path, settings: &[String]) -> Result<Vec<Value>> {
    specs(read(path, settings)?).with_context(|| format!("in {}", path.display()))
}

/// Reads a file and applies `key.path=value` settings.
///
/// # Errors
/// If the file cannot be read or is no TOML.
pub fn read(path: &Path, settings: &[String]) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut document: Value = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    for setting in settings {
        set(&mut document, setting)?;
    }
    Ok(document)
}

fn specs(mut document: Value) -> Result<Vec<Value>> {
    let fields = document.as_object_mut().context("a spec file must be a table")?;
    let Some(submit) = fields.remove("submit") else { return Ok(vec![document]) };
    let mut submit = match submit {
        Value::Object(fields) => fields,
        _ => bail!("`submit` must be a table"),
    };
    let seeds = list(&mut submit, "seeds")?;
    let variants = list(&mut submit, "variants")?;
    if let Some(unknown) = submit.keys().next() {
        bail!("`submit.{unknown}` is not known; `seeds` and `variants` are");
    }
    let mut specs = Vec::new();
    for seed in seeds.unwrap_or_else(|| vec![Value::Null]) {
        for variant in variants.as_deref().unwrap_or(&[Value::Null]) {
            let mut spec = document.clone();
            merge(&mut spec, variant.clone());
            if !seed.is_null() {
                merge(&mut spec, Value::Object(Map::from_iter([("seed".to_owned(), seed.clone())])));
            }
            specs.push(spec);
        }
    }
    Ok(specs)
}

fn list(fields: &mut Map<String, Value>, name: &str) -> Result<Option<Vec<Value>>> {
    match fields.remove(name) {
        None => Ok(None),
        Some(Value::Array(list)) if !list.is_empty() => Ok(Some(list)),
        Some(_) => bail!("`submit.{name}` must be a list with something in it"),
    }
}

/// Tables are merged, everything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over,
    }
}

/// `training.steps=50`: the value is read as TOML, or as text if it is none.
pub(super) fn set(document: &mut Value, setting: &str) -> Result<()> {
    let (path, text) = setting.split_once('=').with_context(|| format!("`{setting}` is not KEY=VALUE"))?;
    let value = toml::from_str::<Value>(&format!("v = {text}"))
        .ok()
        .and_then(|mut table| table.as_object_mut()?.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut place = document;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        let fields = place.as_object_mut().context("a table")?;
        place = fields.entry(name).or_insert(Value::Null);
        // A weights source is one of asset, blob, file: naming another one replaces it.
        if names.peek().is_some_and(|next| matches!(*next, "asset" | "blob" | "file" | "run"))
            && name.starts_with("theta")
        {
            *place = Value::Object(Map::new());
        }
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_variant_meets_every_seed() {
        let document: Value = toml::from_str(
            "experiment = 'e'\n[training]\nsteps = 5\n[submit]\nseeds = [0, 1]\n[[submit.variants]]\nmethod.kind = 'film'\n\
             [[submit.variants]]\nmethod.kind = 'full'\ntraining.learning_rate = 1e-5\n",
        )
        .unwrap();
        let specs = specs(document).unwrap();
        let named: Vec<String> =
            specs.iter().map(|s| format!("{}{}", s["method"]["kind"], s["seed"])).collect();
        assert_eq!(named, ["\"film\"0", "\"full\"0", "\"film\"1", "\"full\"1"]);
        assert_eq!(specs[1]["training"], json!({"steps": 5, "learning_rate": 1e-5}));
        assert!(specs[1].get("submit").is_none());
    }

    #[test]
    fn settings_reach_into_tables_and_replace_sources() {
        let mut document = json!({"weights": {"theta1": {"file": "a"}}});
        set(&mut document, "training.steps=50").unwrap();
        set(&mut document, "weights.theta1.blob=abc").unwrap();
        assert_eq!(document, json!({"weights": {"theta1": {"blob": "abc"}}, "training": {"steps": 50}}));
        assert!(set(&mut document, "steps").is_err());
    }

    #[test]
    fn an_unknown_submit_key_is_named() {
        let error = specs(json!({"submit": {"sedes": [1]}})).unwrap_err();
        assert!(error.to_string().contains("submit.sedes"), "{error}");
    }
}
