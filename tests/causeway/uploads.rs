//! A blob crosses a bad line: what has arrived stays, whatever dies, and only the right bytes get the name.

use anyhow::{Context, Result};
use causeway_tests::{BadLine, FakeWorker, Held, Server, Trainer, binary, spec, wait_for};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Command};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Bytes that no piece of is like another.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

async fn patch(
    server: &Server,
    sha256: &str,
    offset: usize,
    length: usize,
    body: Vec<u8>,
) -> Result<Response> {
    let request = server.user(Method::PATCH, &format!("/blobs/{sha256}"))?.body(body);
    Ok(request.header("Upload-Offset", offset).header("Upload-Length", length).send().await?)
}

/// How much has arrived; none if the blob is whole.
async fn arrived(server: &Server, sha256: &str) -> Result<Option<usize>> {
    let head = server.user(Method::HEAD, &format!("/blobs/{sha256}"))?.send().await?;
    match head.status() {
        StatusCode::NOT_FOUND => Ok(Some(offset(&head)?)),
        status => {
            assert_eq!(status, StatusCode::OK);
            Ok(None)
        }
    }
}

fn offset(answer: &Response) -> Result<usize> {
    Ok(answer.headers().get("upload-offset").context("no offset is told")?.to_str()?.parse()?)
}

fn half_files(server: &Server) -> Result<usize> {
    Ok(fs::read_dir(server.state().join("blobs/incoming"))?.count())
}

/// Begins a PATCH by hand, sends some of the body and hangs up.
async fn cut_short(server: &Server, sha256: &str, length: usize, sent: &[u8]) -> Result<()> {
    let url = server.url();
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await?;
    let token = server.token("user")?;
    let head = format!(
        "PATCH /api/v1/blobs/{sha256} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nUpload-Offset: 0\r\n\
         Upload-Length: {length}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(sent).await?;
    stream.flush().await?;
    Ok(())
}

#[tokio::test]
async fn an_upload_goes_on_after_a_cut_and_a_dead_server() -> Result<()> {
    let mut server = Server::start().await?;
    let body = bytes(1, 5 << 20);
    let sha256 = causeway_protocol::sha256_hex(&body);
    assert_eq!(arrived(&server, &sha256).await?, Some(0));

    cut_short(&server, &sha256, body.len(), &body[..3_000_000]).await?;
    wait_for("what was sent before the cut", 10, || async {
        Ok((arrived(&server, &sha256).await? == Some(3_000_000)).then_some(()))
    })
    .await?;

    // A server that is killed while a piece comes in keeps what it has written of it.
    let (host, token) = (server.url().trim_start_matches("http://").to_owned(), server.token("user")?);
    let mut stream = TcpStream::connect(&host).await?;
    let head = format!(
        "PATCH /api/v1/blobs/{sha256} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Upload-Offset: 3000000\r\nUpload-Length: {0}\r\nContent-Length: 2242880\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body[3_000_000..4_500_000]).await?;
    let before = wait_for("some of the second piece", 10, || async {
        Ok(arrived(&server, &sha256).await?.filter(|bytes| *bytes > 3_000_000))
    })
    .await?;
    server.kill()?;
    server.restart().await?;
    let here = arrived(&server, &sha256).await?.context("not whole")?;
    assert!(here >= before, "{here} of {before} bytes outlived the server");

    let wrong = patch(&server, &sha256, 17, body.len(), body[17..].to_vec()).await?;
    assert_eq!((wrong.status(), offset(&wrong)?), (StatusCode::CONFLICT, here));
    let problem: Value = wrong.json().await?;
    assert_eq!(problem["type"], "/problems/mismatching-upload-offset");
    let some = patch(&server, &sha256, here, body.len(), body[here..here + 1000].to_vec()).await?;
    assert_eq!((some.status(), offset(&some)?), (StatusCode::NO_CONTENT, here + 1000));
    let rest = patch(&server, &sha256, here + 1000, body.len(), body[here + 1000..].to_vec()).await?;
    assert_eq!(rest.status(), StatusCode::CREATED);
    assert_eq!(arrived(&server, &sha256).await?, None);
    let kept = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.bytes().await?;
    assert_eq!(kept, body);
    assert_eq!(half_files(&server)?, 0);
    let again = patch(&server, &sha256, 0, body.len(), body).await?;
    assert_eq!(again.status(), StatusCode::OK, "it was here already");
    Ok(())
}

#[tokio::test]
async fn wrong_bytes_and_wrong_numbers_are_refused() -> Result<()> {
    let server = Server::start().await?;
    let body = bytes(2, 2000);
    let sha256 = causeway_protocol::sha256_hex(&body);
    let damaged = patch(&server, &sha256, 0, 2000, vec![7; 2000]).await?;
    assert_eq!(damaged.status(), StatusCode::BAD_REQUEST);
    assert_eq!(damaged.json::<Value>().await?["type"], "/problems/digest-mismatch");
    assert_eq!(
        (arrived(&server, &sha256).await?, half_files(&server)?),
        (Some(0), 0),
        "nothing of it is kept"
    );

    let bare = server.user(Method::PATCH, &format!("/blobs/{sha256}"))?.body(body.clone()).send().await?;
    assert_eq!(bare.status(), StatusCode::BAD_REQUEST);
    for (offset, length, status) in [
        (2001, 2000, StatusCode::BAD_REQUEST),
        (0, (32 << 30) + 1, StatusCode::PAYLOAD_TOO_LARGE),
        (0, 1999, StatusCode::PAYLOAD_TOO_LARGE),
        (1, 2000, StatusCode::CONFLICT),
    ] {
        let refused = patch(&server, &sha256, offset, length, body.clone()).await?;
        assert_eq!(refused.status(), status, "{offset} of {length}");
    }
    let not_a_name = patch(&server, "nonsense", 0, 2000, body.clone()).await?;
    assert_eq!(not_a_name.status(), StatusCode::BAD_REQUEST);
    assert_eq!(patch(&server, &sha256, 0, 2000, body).await?.status(), StatusCode::CREATED);
    let empty = causeway_protocol::sha256_hex(b"");
    assert_eq!(patch(&server, &empty, 0, 0, Vec::new()).await?.status(), StatusCode::CREATED);
    Ok(())
}

/// Sends all of a blob in small pieces, wherever the other sender has got to.
async fn send(server: &Server, sha256: &str, body: &[u8], piece: usize) -> Result<usize> {
    let mut conflicts = 0;
    while let Some(at) = arrived(server, sha256).await? {
        let end = body.len().min(at + piece);
        let answer = patch(server, sha256, at, body.len(), body[at..end].to_vec()).await?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::CREATED | StatusCode::OK => {}
            StatusCode::CONFLICT => conflicts += 1,
            status => anyhow::bail!("{status}: {}", answer.text().await?),
        }
    }
    Ok(conflicts)
}

#[tokio::test]
async fn two_that_send_the_same_blob_make_one() -> Result<()> {
    let server = Server::start().await?;
    let body = bytes(3, 3 << 20);
    let sha256 = causeway_protocol::sha256_hex(&body);
    let (one, two) =
        tokio::join!(send(&server, &sha256, &body, 100_000), send(&server, &sha256, &body, 70_000));
    eprintln!("two senders met {} times", one? + two?);
    let kept = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.bytes().await?;
    assert_eq!(kept, body);
    let (one, two) = (bytes(4, 2 << 20), bytes(4, 2 << 20));
    let sha256 = causeway_protocol::sha256_hex(&one);
    let put = |body: Vec<u8>| {
        let request = server.user(Method::PUT, &format!("/blobs/{sha256}"));
        async move { anyhow::Ok(request?.body(body).send().await?.status()) }
    };
    let (one, two) = tokio::join!(put(one), put(two));
    assert!(one?.is_success() && two?.is_success(), "whole uploads do not meet at all");
    assert!(half_files(&server)? <= 1, "at most what the later of two has begun again");
    Ok(())
}

async fn patch_lease(
    worker: &Server,
    held: &Held,
    sha256: &str,
    epoch: i64,
    body: Vec<u8>,
) -> Result<StatusCode> {
    let id = held.grant["id"].as_str().context("id")?;
    let request = worker.worker(Method::PATCH, &format!("/leases/{id}/blobs/{sha256}?epoch={epoch}"))?;
    let request = request.header("Upload-Offset", 0).header("Upload-Length", body.len()).body(body);
    Ok(request.send().await?.status())
}

#[tokio::test]
async fn a_stale_worker_uploads_nothing() -> Result<()> {
    let server = Server::start().await?;
    let worker = FakeWorker::register(&server, "w").await?;
    server.submit(&spec()).await?;
    let held = worker.lease(5000).await?.context("no lease")?;
    let body = bytes(5, 1000);
    let sha256 = causeway_protocol::sha256_hex(&body);
    assert_eq!(patch_lease(&server, &held, &sha256, 9, body.clone()).await?, StatusCode::CONFLICT);
    assert_eq!(half_files(&server)?, 0, "refused before the bytes");
    assert_eq!(patch_lease(&server, &held, &sha256, 1, body).await?, StatusCode::CREATED);
    Ok(())
}

/// A file of weights, and a spec that names it by its path.
fn weights(server: &Server, body: &[u8]) -> Result<(PathBuf, PathBuf)> {
    let file = server.folder().join("weights.safetensors");
    fs::write(&file, body)?;
    let mut document = spec();
    document["weights"]["theta0"] = json!({"file": file});
    let path = server.folder().join("spec.toml");
    fs::write(&path, toml::to_string(&document)?)?;
    Ok((file, path))
}

#[tokio::test]
async fn the_command_line_waits_a_bad_line_out() -> Result<()> {
    let server = Server::start().await?;
    let body = bytes(6, 8 << 20);
    let sha256 = causeway_protocol::sha256_hex(&body);
    let (_, file) = weights(&server, &body)?;
    let submit = async |url: &str| {
        let mut command = Command::new(binary("causeway"));
        command.arg("submit").arg(&file).args(["--server", url, "--token-file"]);
        command.arg(server.state().join("user.token"));
        tokio::task::spawn_blocking(move || command.output()).await?.map_err(anyhow::Error::from)
    };
    let line = BadLine::to(server.port(), 3 << 20).await?;
    let output = submit(&line.url()).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(line.cuts() >= 2, "{} cuts", line.cuts());
    assert!(line.carried() < 2 * body.len() as u64, "{} bytes for {}", line.carried(), body.len());
    let kept = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.bytes().await?;
    assert_eq!(kept, body);

    // A line on which nothing arrives: the command ends, and says what is there.
    let (_, file) = weights(&server, &bytes(7, 1 << 20))?;
    let dead = BadLine::to(server.port(), 100).await?;
    let mut command = Command::new(binary("causeway"));
    command.arg("submit").arg(file).args(["--server", &dead.url(), "--token-file"]);
    command.arg(server.state().join("user.token"));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("the same command goes on from there"), "{said}");
    Ok(())
}

/// Leaves a state of seven megabytes and waits; with the state back, leaves it as its checkpoint.
const STATEFUL: &str = r#"
import json, os, time
def report(**line):
    with open(os.environ["CAUSEWAY_JOURNAL"], "a") as journal:
        journal.write(json.dumps(line) + "\n")
resume = os.environ.get("CAUSEWAY_RESUME")
if resume:
    open("c.bin", "wb").write(open(resume, "rb").read())
    report(checkpoint={"path": "c.bin", "step": 2})
else:
    open("state.bin", "wb").write(bytes(i * i % 251 for i in range(7 << 20)))
    report(resume={"path": "state.bin", "step": 1})
    time.sleep(600)
"#;

#[tokio::test]
async fn an_agent_brings_a_state_there_and_back_over_a_bad_line() -> Result<()> {
    let server = Server::start().await?;
    let line = BadLine::to(server.port(), 2 << 20).await?;
    let _trainer = Trainer::with_commands_through(&server, &line.url())?;
    let command = json!({"argv": ["python3", "-c", STATEFUL]});
    let id = server.submit(&json!({"experiment": "e", "kind": "command", "command": command})).await?;
    let database = server.database().await?;
    wait_for("the state", 60, || async {
        let states: i64 =
            sqlx::query_scalar("select count(*) from resume_state").fetch_one(&database).await?;
        Ok((states > 0).then_some(()))
    })
    .await?;
    let there = line.cuts();
    assert!(there >= 3, "{there} cuts for seven megabytes in twos");
    assert!(line.carried() < 12 << 20, "{} bytes, so most went once", line.carried());
    server.user(Method::POST, &format!("/runs/{id}/pause"))?.send().await?.error_for_status()?;
    server.wait_for_run(&id, &["paused"], 30).await?;
    server.user(Method::POST, &format!("/runs/{id}/resume"))?.send().await?.error_for_status()?;
    let run = server.wait_for_run(&id, &["succeeded"], 90).await?;
    assert!(line.cuts() >= there + 3, "{} cuts on the way back", line.cuts() - there);
    let sha256 = run["checkpoint"].as_str().context("no checkpoint")?;
    let kept = server.user(Method::GET, &format!("/blobs/{sha256}"))?.send().await?.bytes().await?;
    assert_eq!((kept.len(), causeway_protocol::sha256_hex(&kept).as_str()), (7 << 20, sha256));
    let rest = server.user(Method::GET, &format!("/blobs/{sha256}"))?.header("range", "bytes=7000000-");
    let rest = rest.send().await?;
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(rest.headers()["content-range"], format!("bytes 7000000-{}/{}", (7 << 20) - 1, 7 << 20));
    assert_eq!(rest.bytes().await?, kept[7_000_000..]);
    Ok(())
}
