//! The REST API as its clients meet it.

use anyhow::Result;
use causeway_tests::{Server, repository, spec};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest;
use std::{
    fs,
    io::{Read, Write},
};

#[test]
fn the_openapi_document_is_the_committed_one() {
    let path = repository().join("tests/openapi.json");
    let now = serde_json::to_string_pretty(&causeway_server::openapi()).unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "the API has changed: run UPDATE_OPENAPI=1 cargo test -p causeway-tests openapi, read the diff, commit it"
    );
}

#[tokio::test]
async fn a_posted_spec_comes_back_with_every_default_and_an_estimate() -> Result<()> {
    let server = Server::start().await?;
    let response = server.user(Method::POST, "/runs")?.json(&spec()).send().await?;
    assert_eq!(response.status(), StatusCode::CREATED);
    let run: Value = response.json().await?;
    assert_eq!(run["state"], "queued");
    assert_eq!(run["spec"]["training"]["betas"], json!([0.9, 0.98]));
    assert_eq!(
        run["spec"]["method"],
        json!({
            "kind": "adapter", "form": "adapter_plus", "rank": 8, "init": "zero", "learned_scale": true, "scale": 1.0,
            "blocks": null
        })
    );
    assert_eq!(run["estimate"]["steps"], 10);
    assert_eq!(run["waiting"], "no worker is ready: start one with `causeway-trainer work`");
    let again = server.get(&format!("/runs/{}", run["id"].as_str().unwrap())).await?;
    assert_eq!(again["spec"], run["spec"]);
    Ok(())
}

#[tokio::test]
async fn one_key_makes_one_run() -> Result<()> {
    let server = Server::start().await?;
    let server = &server;
    let post = |spec: Value| async move {
        let request = server.user(Method::POST, "/runs")?.header("Idempotency-Key", "k1").json(&spec);
        let response = request.send().await?;
        anyhow::Ok((response.status(), response.json::<Value>().await?))
    };
    // Both at once: neither may slip past the other.
    let (first, second) = tokio::join!(post(spec()), post(spec()));
    let (first, second) = (first?, second?);
    assert_eq!(first.1["id"], second.1["id"]);
    let mut statuses = [first.0.as_u16(), second.0.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201]);
    let mut other = spec();
    other["seed"] = json!(7);
    assert_eq!(post(other).await?.0, StatusCode::CONFLICT);
    assert_eq!(server.get("/runs").await?["items"].as_array().unwrap().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_refused_spec_names_fields_and_rules() -> Result<()> {
    let server = Server::start().await?;
    let mut bad = spec();
    bad["training"]["learning_rate"] = json!(-1);
    bad["evaluation"]["alphas"] = json!([0.5, 0.25]);
    let response = server.user(Method::POST, "/runs")?.json(&bad).send().await?;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await?;
    let fields: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["training.learning_rate", "evaluation.alphas"]);
    let response =
        server.user(Method::POST, "/runs")?.json(&json!({"kind": "finetune", "sede": 1})).send().await?;
    let problem: Value = response.json().await?;
    assert!(problem["detail"].as_str().unwrap().contains("sede"), "{problem}");
    let text = server.user(Method::POST, "/runs")?.body("{").header("content-type", "application/json");
    assert_eq!(text.send().await?.status(), StatusCode::UNPROCESSABLE_ENTITY);
    Ok(())
}

#[tokio::test]
async fn runs_are_paged_without_gaps_or_repeats() -> Result<()> {
    let server = Server::start().await?;
    let mut made = Vec::new();
    for seed in 0..5 {
        let mut spec = spec();
        spec["seed"] = json!(seed);
        made.push(server.submit(&spec).await?);
    }
    made.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/runs?limit=2{cursor}")).await?;
        seen.extend(
            page["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
    let refused = server.user(Method::GET, "/runs?limit=0")?.send().await?;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    Ok(())
}

#[tokio::test]
async fn a_blob_is_kept_only_under_its_own_digest() -> Result<()> {
    let server = Server::start().await?;
    let body = vec![7u8; 3 << 20];
    let sha256: String = sha2::Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let wrong = "0".repeat(64);
    let put = |name: String| {
        let body = body.clone();
        let server = &server;
        async move {
            anyhow::Ok(server.user(Method::PUT, &format!("/blobs/{name}"))?.body(body).send().await?.status())
        }
    };
    assert_eq!(put(wrong.clone()).await?, StatusCode::BAD_REQUEST);
    assert_eq!(
        server.user(Method::GET, &format!("/blobs/{wrong}"))?.send().await?.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(put(sha256.clone()).await?, StatusCode::CREATED);
    assert_eq!(put(sha256.clone()).await?, StatusCode::OK);
    assert_eq!(server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.bytes().await?, body);
    let left = fs::read_dir(server.state().join("blobs/incoming"))?.count();
    assert_eq!(left, 0, "nothing half-received stays");
    let mut missing = spec();
    missing["weights"]["theta0"] = json!({"blob": wrong});
    let response = server.user(Method::POST, "/runs")?.json(&missing).send().await?;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    Ok(())
}

#[tokio::test]
async fn notes_and_tags_change_and_the_rest_does_not() -> Result<()> {
    let server = Server::start().await?;
    let id = server.submit(&spec()).await?;
    let path = format!("/runs/{id}");
    let patched: Value = server
        .user(Method::PATCH, &path)?
        .json(&json!({"note": "the good one", "tags": ["paper"]}))
        .send()
        .await?
        .json()
        .await?;
    assert_eq!((patched["note"].as_str(), &patched["tags"]), (Some("the good one"), &json!(["paper"])));
    assert_eq!(server.get("/runs?tag=paper").await?["items"].as_array().unwrap().len(), 1);
    let refused = server.user(Method::PATCH, &path)?.json(&json!({"state": "succeeded"})).send().await?;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    Ok(())
}

#[tokio::test]
async fn a_request_that_broke_off_may_be_sent_again() -> Result<()> {
    let server = Server::start().await?;
    let (host, token) = (server.url().replace("http://", ""), server.token("user")?);
    let sha256 = causeway_protocol::sha256_hex(b"whole");
    for (request, kind) in [
        ("POST /api/v1/runs".to_owned(), "application/json"),
        (format!("PUT /api/v1/blobs/{sha256}"), "application/octet-stream"),
    ] {
        let mut stream = std::net::TcpStream::connect(&host)?;
        // Half of a body, and then the end of what the client says.
        write!(
            stream,
            "{request} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\ncontent-type: {kind}\r\n\
             content-length: 100\r\n\r\n{{\"experiment\":"
        )?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // No word at all is as good; a refusal would be for good.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{request}: {answer}");
    }
    Ok(())
}
