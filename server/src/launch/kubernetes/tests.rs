//! The Job against Kubernetes' own types (`types.json`, made by docker/kubernetes/describe_api.py from the official client).

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: KubernetesArgs,
}

fn args(more: &[&str]) -> KubernetesArgs {
    let words = [
        "kubernetes",
        "--print",
        "--pilot-server=https://causeway:7411",
        "--image=registry/causeway-trainer",
    ];
    Line::try_parse_from(words.iter().chain(more)).unwrap().args
}

/// What is wrong with a value as one of Kubernetes' types.
fn problems(kind: &str, value: &Value, place: &str, types: &Value) -> Vec<String> {
    let wrong = || vec![format!("{place} is no {kind}: {value}")];
    let inner = |kind: &str, open: char, close: char| {
        kind.strip_prefix(open).and_then(|kind| kind.strip_suffix(close)).map(str::to_owned)
    };
    let scalar = match kind {
        "string" => Some(value.is_string()),
        "integer" => Some(value.is_i64()),
        "boolean" => Some(value.is_boolean()),
        _ => None,
    };
    if let Some(good) = scalar {
        return if good { Vec::new() } else { wrong() };
    }
    if let Some(kind) = inner(kind, '[', ']') {
        let Some(list) = value.as_array() else { return wrong() };
        let each = list.iter().enumerate();
        return each
            .flat_map(|(at, value)| problems(&kind, value, &format!("{place}[{at}]"), types))
            .collect();
    }
    let Some(object) = value.as_object() else { return wrong() };
    if let Some(kind) = inner(kind, '{', '}') {
        let each = object.iter();
        return each
            .flat_map(|(name, value)| problems(&kind, value, &format!("{place}.{name}"), types))
            .collect();
    }
    let described = &types[kind];
    let required = described["required"].as_array().unwrap_or_else(|| panic!("{kind} is not in types.json"));
    let missing = required.iter().filter_map(Value::as_str).filter(|name| !object.contains_key(*name));
    let mut found: Vec<String> = missing.map(|name| format!("{place}.{name} is missing")).collect();
    for (name, value) in object {
        match described["fields"][name].as_str() {
            Some(kind) => found.extend(problems(kind, value, &format!("{place}.{name}"), types)),
            None => found.push(format!("{kind} has no field {name}, at {place}")),
        }
    }
    found
}

fn checked(job: &Value) -> Vec<String> {
    let types: Value = serde_json::from_str(include_str!("types.json")).unwrap();
    problems("V1Job", job, "job", &types)
}

#[test]
fn the_job_is_one_by_kubernetes_own_types() {
    for more in [&["--gpus=2", "--namespace=lab", "--pilots=4"][..], &[]] {
        assert_eq!(checked(&args(more).job().unwrap()), [""; 0]);
    }
}

#[test]
fn the_check_finds_a_field_that_is_misspelt_misplaced_missing_or_of_another_type() {
    let good = args(&[]).job().unwrap();
    let container = "/spec/template/spec/containers/0";
    let mut bad = good.clone();
    bad["spec"]["restartPolicy"] = json!("Never");
    bad["spec"]["parallelism"] = json!("4");
    bad.pointer_mut(container).unwrap()["volumeMount"] = json!([]);
    bad.pointer_mut(container).unwrap().as_object_mut().unwrap().remove("name");
    let mut found = checked(&bad);
    found.sort();
    assert_eq!(
        found,
        [
            "V1Container has no field volumeMount, at job.spec.template.spec.containers[0]",
            "V1JobSpec has no field restartPolicy, at job.spec",
            "job.spec.parallelism is no integer: \"4\"",
            "job.spec.template.spec.containers[0].name is missing",
        ]
    );
}

#[test]
fn a_pod_has_as_many_devices_as_it_asks_gpus_for_and_no_token_in_its_text() {
    let job = args(&["--gpus=2"]).job().unwrap();
    let container = job.pointer("/spec/template/spec/containers/0").unwrap();
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "2");
    let devices = json!({"name": "CAUSEWAY_DEVICES", "value": "cuda:0,cuda:1"});
    assert!(container["env"].as_array().unwrap().contains(&devices));
    let token = json!({"name": "CAUSEWAY_TOKEN_FILE", "value": "/run/secrets/causeway/worker.token"});
    assert!(container["env"].as_array().unwrap().contains(&token));
}

#[test]
fn the_example_is_what_the_command_prints() {
    let text = args(&["--pilots=4", "--gpus=1", "--data-claim=causeway-data"]).text().unwrap();
    assert_eq!(include_str!("../../../../docker/kubernetes/pilots.json"), text);
}

#[test]
fn names_that_kubernetes_refuses_are_refused_here() {
    for (option, what) in [
        ("--name=Pilots", "--name \"Pilots\""),
        ("--secret=-x", "--secret \"-x\""),
        ("--namespace=a.b", "--namespace \"a.b\""),
    ] {
        let error = args(&[option]).text().unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
    let no_url = KubernetesArgs { pilot_server: "causeway:7411".into(), ..args(&[]) };
    assert!(no_url.text().unwrap_err().to_string().starts_with("--pilot-server"));
}
