//! The client's commands as a person types them.

use anyhow::Result;
use causeway_tests::{Server, binary, spec};
use std::fs;
use std::process::{Command, Output, Stdio};

/// Runs a command against the server.
fn run(server: &Server, arguments: &[&str]) -> Result<Output> {
    let (url, token) = (server.url(), server.state().join("user.token"));
    let mut command = Command::new(binary("causeway"));
    command.args(arguments).args(["--server", &url, "--token-file"]).arg(token);
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn runs_are_submitted_listed_chosen_cancelled_and_exported() -> Result<()> {
    let server = Server::start().await?;
    let file = server.folder().join("spec.toml");
    fs::write(&file, toml::to_string(&spec())?)?;
    let file = file.to_string_lossy().into_owned();

    let dry = run(&server, &["submit", "--dry-run", &file])?;
    assert!(dry.status.success() && said(&dry).contains("\"text_encoder\": \"minilm\""), "{}", said(&dry));
    assert!(said(&run(&server, &["runs"])?).contains("no runs yet"));
    let submitted = run(&server, &["submit", &file])?;
    assert!(submitted.status.success(), "{}", said(&submitted));
    let id = said(&submitted).split_whitespace().next().unwrap_or_default().to_owned();

    for arguments in
        [vec!["runs"], vec!["runs", "--state", "queued"], vec!["runs", "--experiment", "an experiment"]]
    {
        let listed = run(&server, &arguments)?;
        assert!(listed.status.success() && said(&listed).contains(&id), "{arguments:?}: {}", said(&listed));
    }
    assert!(!said(&run(&server, &["runs", "--state", "failed"])?).contains(&id));
    let cancelled = run(&server, &["cancel", &id])?;
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    assert!(said(&run(&server, &["runs", "--state", "cancelled"])?).contains(&id));
    let watched = run(&server, &["watch", &id])?;
    assert!(said(&watched).contains("cancel"), "{}", said(&watched));
    let exported = run(&server, &["export", "an experiment"])?;
    assert!(exported.status.success() && said(&exported).contains("alpha"), "{}", said(&exported));
    Ok(())
}

#[tokio::test]
async fn a_search_is_submitted_shown_and_steered() -> Result<()> {
    let server = Server::start().await?;
    let file = server.folder().join("search.toml");
    let mut base = spec();
    base.as_object_mut().unwrap().remove("experiment");
    let search = serde_json::json!({
        "name": "ranks", "experiment": "an experiment", "spec": base, "parallel": 2,
        "space": {"method.rank": {"integer": [2, 40]}}, "strategy": {"kind": "random", "trials": 3},
        "objective": {"kind": "area"}
    });
    fs::write(&file, toml::to_string(&search)?)?;
    let file = file.to_string_lossy().into_owned();
    let dry = said(&run(&server, &["search", "submit", "--dry-run", "--set", "seeds=[0, 1]", &file])?);
    assert!(dry.contains("trial 3    method.rank "), "{dry}");
    assert!(dry.contains("3 trials × 2 seeds, judged by OOD area over the backbone, points·α"), "{dry}");
    let refused = said(&run(&server, &["search", "submit", "--set", "strategy.trials=0", &file])?);
    assert!(refused.contains("strategy.trials: must be 1 to 1000, is 0"), "{refused}");
    assert!(said(&run(&server, &["search", "list"])?).contains("no searches yet"));
    let submitted = run(&server, &["search", "submit", &file, "--key", "k"])?;
    assert!(submitted.status.success(), "{}", said(&submitted));
    let id = said(&submitted).split_whitespace().next().unwrap_or_default().to_owned();
    assert!(said(&run(&server, &["search", "submit", &file, "--key", "k"])?).contains("submitted before"));
    for (command, words) in [
        (vec!["list"], "0 of 3 trials"),
        (vec!["list", "--experiment", "an experiment", "--state", "running"], "ranks"),
        (vec!["show", &id], "judged by OOD area over the backbone"),
        (vec!["pause", &id], "paused"),
        (vec!["resume", &id], "running"),
        (vec!["extend", &id, "--trials", "5"], "of 5 trials"),
        (vec!["cancel", &id], "cancelled"),
        (vec!["pause", &id], "a cancelled search cannot be paused"),
    ] {
        let arguments: Vec<&str> = std::iter::once("search").chain(command.iter().copied()).collect();
        let told = said(&run(&server, &arguments)?);
        assert!(told.contains(words), "{command:?}: {told}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_a_command_quietly() -> Result<()> {
    let server = Server::start().await?;
    let mut command = Command::new(binary("causeway"));
    command.args(["runs", "--server", &server.url(), "--token-file"]).arg(server.state().join("user.token"));
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = command.stdout(writer).stderr(Stdio::piped()).output()?;
    assert_eq!(said(&output), "", "no panic, no trace");
    Ok(())
}
