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
