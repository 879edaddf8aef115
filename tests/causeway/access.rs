//! Who may do what.

use anyhow::Result;
use causeway_tests::{FakeWorker, Server, spec};
use reqwest::{Method, StatusCode, redirect};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::MetadataExt};
use uuid::Uuid;

#[tokio::test]
async fn tokens_are_private_files_and_stored_hashed() -> Result<()> {
    let server = Server::start().await?;
    for name in ["user.token", "worker.token", "server.json"] {
        assert_eq!(fs::metadata(server.state().join(name))?.mode() & 0o777, 0o600, "{name}");
    }
    let secret = server.token("user")?;
    let stored: Vec<Vec<u8>> =
        sqlx::query_scalar("select sha256 from token").fetch_all(&server.database().await?).await?;
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|hash| hash.len() == 32 && hash.as_slice() != secret.as_bytes()));
    Ok(())
}

#[tokio::test]
async fn each_token_opens_its_own_doors_only() -> Result<()> {
    let server = Server::start().await?;
    let bare = server.client.get(format!("{}/api/v1/runs", server.url())).send().await?;
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
    let wrong =
        server.client.get(format!("{}/api/v1/runs", server.url())).bearer_auth("cwu_00").send().await?;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(server.worker(Method::GET, "/runs")?.send().await?.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        server.worker(Method::POST, "/runs")?.json(&spec()).send().await?.status(),
        StatusCode::FORBIDDEN
    );
    let body = json!({"worker_id": Uuid::now_v7(), "held": [], "wait_ms": 0});
    assert_eq!(
        server.user(Method::POST, "/leases")?.json(&body).send().await?.status(),
        StatusCode::FORBIDDEN
    );
    Ok(())
}

#[tokio::test]
async fn foreign_hosts_origins_and_content_types_are_refused() -> Result<()> {
    let server = Server::start().await?;
    let url = format!("{}/api/v1/health", server.url());
    let status = |request: reqwest::RequestBuilder| async { anyhow::Ok(request.send().await?.status()) };
    assert_eq!(status(server.client.get(&url)).await?, StatusCode::OK);
    assert_eq!(status(server.client.get(&url).header("host", "evil.example")).await?, StatusCode::FORBIDDEN);
    assert_eq!(
        status(server.client.get(&url).header("origin", "http://evil.example")).await?,
        StatusCode::FORBIDDEN
    );
    let other_port = server.user(Method::POST, "/runs")?.header("origin", "http://127.0.0.1:1").json(&spec());
    assert_eq!(status(other_port).await?, StatusCode::FORBIDDEN);
    let form =
        server.user(Method::POST, "/runs")?.header("content-type", "text/plain").body(spec().to_string());
    assert_eq!(status(form).await?, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    Ok(())
}

#[tokio::test]
async fn the_printed_url_signs_a_browser_in() -> Result<()> {
    let server = Server::start().await?;
    let announced: Value = serde_json::from_str(&fs::read_to_string(server.state().join("server.json"))?)?;
    let browser = causeway_tests::http().redirect(redirect::Policy::none()).build()?;
    let answer = browser.get(announced["sign_in_url"].as_str().unwrap()).send().await?;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let cookie = answer.headers()["set-cookie"].to_str()?.to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let runs = format!("{}/api/v1/runs", server.url());
    let read = browser.get(&runs).header("cookie", &cookie).send().await?;
    assert_eq!(read.status(), StatusCode::OK);
    // A form on another page would bring the cookie too, but not this page's Origin.
    let write = browser.post(&runs).header("cookie", &cookie).json(&spec()).send().await?;
    assert_eq!(write.status(), StatusCode::FORBIDDEN);
    let own = browser
        .post(&runs)
        .header("cookie", &cookie)
        .header("origin", server.url())
        .json(&spec())
        .send()
        .await?;
    assert_eq!(own.status(), StatusCode::CREATED);
    let forged = browser.get(format!("{}/sign-in?token=cwu_1", server.url())).send().await?;
    assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_lease_reads_only_the_blobs_of_its_run() -> Result<()> {
    let server = Server::start().await?;
    let body = b"somebody else's weights".to_vec();
    let sha256: String =
        <sha2::Sha256 as sha2::Digest>::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    server.user(Method::PUT, &format!("/blobs/{sha256}"))?.body(body).send().await?.error_for_status()?;
    let worker = FakeWorker::register(&server, "w").await?;
    server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.unwrap();
    let path = format!("/leases/{}/blobs/{sha256}?epoch=1", held.grant["id"].as_str().unwrap());
    assert_eq!(server.worker(Method::GET, &path)?.send().await?.status(), StatusCode::FORBIDDEN);
    let stale = path.replace("epoch=1", "epoch=9");
    assert_eq!(server.worker(Method::GET, &stale)?.send().await?.status(), StatusCode::CONFLICT);
    Ok(())
}
