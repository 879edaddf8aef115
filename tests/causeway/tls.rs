//! Workers and people over TLS alone: a run from its submission to its checkpoint, and everything that is not to be trusted.

use anyhow::{Context, Result};
use causeway_tests::{Server, Trainer, binary, wait_for};
use serde_json::{Value, json};
use std::{
    fs,
    process::{Command, Output},
};

/// Runs a client's command, with what its environment says of trust.
fn client(server: &Server, url: &str, arguments: &[&str], trust: &[(&str, &str)]) -> Result<Output> {
    let mut command = Command::new(binary("causeway"));
    command.args(arguments).args(["--server", url, "--token-file"]).arg(server.state().join("user.token"));
    Ok(command.env_remove("CAUSEWAY_CA").envs(trust.iter().copied()).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn command() -> Value {
    let program = "import os,json; open('c.bin','w').write('made'); \
                   open(os.environ['CAUSEWAY_JOURNAL'],'a').write(json.dumps({'checkpoint':{'path':'c.bin','step':1}})+'\\n')";
    json!({"experiment": "afar", "kind": "command", "command": {"argv": ["python3", "-c", program]}})
}

#[tokio::test]
async fn a_run_needs_nothing_but_https() -> Result<()> {
    let server = Server::over_tls(90).await?;
    let ca = server.authority().context("an authority")?.file();
    let trust = [("CAUSEWAY_CA", ca.to_str().context("a path")?)];
    let file = server.folder().join("spec.toml");
    fs::write(&file, toml::to_string(&command())?)?;
    let submitted = client(&server, &server.url(), &["submit", file.to_str().context("a path")?], &trust)?;
    assert!(submitted.status.success(), "{}", said(&submitted));
    let id = said(&submitted).split_whitespace().next().unwrap_or_default().to_owned();
    let _trainer = Trainer::with_commands(&server)?;
    let run = server.wait_for_run(&id, &["succeeded"], 60).await?;
    assert_eq!(run["checkpoint"].as_str(), Some(causeway_protocol::sha256_hex(b"made").as_str()));
    let announced: Value = serde_json::from_str(&fs::read_to_string(server.state().join("server.json"))?)?;
    assert!(announced["url"].as_str().unwrap().starts_with("https://"), "{announced}");
    let sign_in = announced["sign_in_url"].as_str().unwrap().replace("127.0.0.1", "localhost");
    let browser = causeway_connect::Trust { ca: Some(ca), insecure_http: false };
    let browser = browser.client(&sign_in)?.redirect(reqwest::redirect::Policy::none()).build()?;
    let cookie = browser.get(sign_in).send().await?.headers()["set-cookie"].to_str()?.to_owned();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_refused_and_says_why() -> Result<()> {
    let server = Server::over_tls(90).await?;
    let ca = server.authority().context("an authority")?.file();
    let trust = [("CAUSEWAY_CA", ca.to_str().context("a path")?)];
    let refused = |url: &str, trust: &[(&str, &str)], what: &str| -> Result<()> {
        let output = client(&server, url, &["runs"], trust)?;
        assert!(!output.status.success() && said(&output).contains(what), "{url}: {}", said(&output));
        Ok(())
    };
    assert!(client(&server, &server.url(), &["runs"], &trust)?.status.success());
    refused(&server.url(), &[], "name the authority that has, with --ca FILE")?;
    refused(&server.url().replace("localhost", "127.0.0.1"), &trust, "its certificate is for another name")?;
    let plain = Server::start().await?;
    refused(&plain.url().replace("http:", "https:"), &trust, "does not speak TLS")?;

    let log = server.folder().join("stranger.log");
    let mut stranger = Command::new(binary("causeway-trainer"));
    stranger.env_remove("CAUSEWAY_CA").args(["work", "--server", &server.url(), "--token-file"]);
    stranger.arg(server.state().join("worker.token"));
    stranger.arg("--state").arg(server.folder().join("stranger")).arg("--data").arg(server.folder());
    let _stranger = causeway_tests::Process::start(&mut stranger, &log)?;
    wait_for("the agent's complaint", 20, || async {
        let text = fs::read_to_string(&log).unwrap_or_default();
        Ok(text.contains("name the authority that has, with --ca FILE").then_some(()))
    })
    .await?;
    assert_eq!(server.get("/workers").await?, json!([]), "it has told nobody its token");
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_while_the_server_runs() -> Result<()> {
    let server = Server::over_tls(-1).await?;
    let authority = server.authority().context("an authority")?;
    let ca = authority.file();
    let trust = [("CAUSEWAY_CA", ca.to_str().context("a path")?)];
    let output = client(&server, &server.url(), &["runs"], &trust)?;
    assert!(said(&output).contains("its certificate has expired; renew it"), "{}", said(&output));
    // Nonsense first: the server goes on with what it has.
    fs::write(server.folder().join("cert.pem"), "not a certificate")?;
    let output = client(&server, &server.url(), &["runs"], &trust)?;
    assert!(said(&output).contains("its certificate has expired"), "{}", said(&output));
    authority.certify("localhost", 90)?;
    let output = client(&server, &server.url(), &["runs"], &trust)?;
    assert!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[tokio::test]
async fn nothing_sends_or_takes_tokens_in_the_clear_unless_told_to() -> Result<()> {
    let server = Server::start().await?;
    // An address of this machine's that is not loopback would need a network; the refusal comes before any request.
    let output = client(&server, "http://lab.example:7411", &["runs"], &[])?;
    assert!(!output.status.success() && said(&output).contains("--insecure-http"), "{}", said(&output));
    let mut agent = Command::new(binary("causeway-trainer"));
    agent.args(["work", "--server", "http://lab.example:7411", "--data", "/nowhere", "--token-file"]);
    agent.arg(server.state().join("worker.token")).arg("--state").arg(server.folder().join("agent"));
    let output = agent.output()?;
    assert!(!output.status.success() && said(&output).contains("--insecure-http"), "{}", said(&output));

    let serve = |more: &[&str]| -> Result<Output> {
        let mut command = Command::new(binary("causeway"));
        command
            .args(["serve", "--listen", "0.0.0.0:0", "--state"])
            .arg(server.folder().join("other"))
            .args(more);
        Ok(command.env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none").output()?)
    };
    let refused = serve(&[])?;
    assert!(!refused.status.success() && said(&refused).contains("--tls-cert"), "{}", said(&refused));
    let half = serve(&["--tls-cert", "cert.pem"])?;
    assert!(!half.status.success() && said(&half).contains("--tls-key"), "{}", said(&half));
    let absent = serve(&["--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"])?;
    assert!(said(&absent).contains("--tls-cert /no/cert.pem"), "{}", said(&absent));
    Ok(())
}
