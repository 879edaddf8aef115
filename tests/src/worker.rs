//! A worker that does nothing but speak the protocol, for tests of the queue.

use crate::{ASSETS, Server};
use anyhow::{Context, Result, bail};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

/// A registered worker.
#[derive(Debug)]
pub struct FakeWorker<'a> {
    server: &'a Server,
    /// Its id.
    pub id: Uuid,
}

/// A lease it was granted.
#[derive(Debug, Clone)]
pub struct Held {
    /// The grant.
    pub grant: Value,
}

impl<'a> FakeWorker<'a> {
    /// Registers a worker with one device that holds every asset of `spec`.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn register(server: &'a Server, name: &str) -> Result<FakeWorker<'a>> {
        Self::register_with(server, name, 1, 0, &[]).await
    }

    /// Registers a worker with so many devices of so much memory, bytes, and these labels.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn register_with(
        server: &'a Server,
        name: &str,
        devices: usize,
        memory: u64,
        labels: &[&str],
    ) -> Result<FakeWorker<'a>> {
        let id = Uuid::now_v7();
        let devices: Vec<Value> =
            (0..devices).map(|at| json!({"name": format!("cpu:{at}"), "memory": memory})).collect();
        Self::put(server, id, name, json!(devices), labels, false).await?;
        Ok(FakeWorker { server, id })
    }

    /// A worker that was registered before, after a restart of its server.
    pub fn again(server: &'a Server, id: Uuid) -> FakeWorker<'a> {
        FakeWorker { server, id }
    }

    async fn put(
        server: &Server,
        id: Uuid,
        name: &str,
        devices: Value,
        labels: &[&str],
        draining: bool,
    ) -> Result<()> {
        let assets: Vec<Value> = ASSETS
            .iter()
            .map(|name| {
                json!({"name": name, "kind": "dataset", "title": name, "licence": "CC0-1.0", "source": "a test",
                       "digest": "0", "images": 100})
            })
            .collect();
        let body = json!({"id": id, "name": name, "host": "here", "version": "0", "devices": devices, "assets": assets,
                          "labels": labels, "draining": draining});
        let response = server.worker(Method::PUT, &format!("/workers/{id}"))?.json(&body).send().await?;
        if !response.status().is_success() {
            bail!("{}", response.text().await?);
        }
        Ok(())
    }

    /// Says that this worker takes nothing more.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn drain(&self) -> Result<()> {
        Self::put(self.server, self.id, "leaving", json!([{"name": "cpu:0"}]), &[], true).await
    }

    /// Asks for work, and waits for it.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn lease(&self, wait_ms: u64) -> Result<Option<Held>> {
        self.lease_beside(&[], wait_ms).await
    }

    /// Asks for work while holding these leases.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn lease_beside(&self, held: &[&Held], wait_ms: u64) -> Result<Option<Held>> {
        let held: Vec<&Value> = held.iter().map(|held| &held.grant["id"]).collect();
        let body = json!({"worker_id": self.id, "held": held, "wait_ms": wait_ms});
        let response = self.server.worker(Method::POST, "/leases")?.json(&body).send().await?;
        match response.status() {
            StatusCode::OK => Ok(Some(Held { grant: response.json().await? })),
            StatusCode::NO_CONTENT => Ok(None),
            status => bail!("{status}: {}", response.text().await?),
        }
    }

    /// POSTs to a lease with its epoch in the body; gives status and answer.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn post(&self, held: &Held, action: &str, mut body: Value) -> Result<(StatusCode, Value)> {
        body["epoch"] = held.grant["epoch"].clone();
        let path = format!("/leases/{}/{action}", held.grant["id"].as_str().context("id")?);
        let response = self.server.worker(Method::POST, &path)?.json(&body).send().await?;
        let status = response.status();
        Ok((status, response.json().await.unwrap_or_default()))
    }

    /// Ships journal lines numbered from `first`.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn ship(&self, held: &Held, first: u64, events: &[Value]) -> Result<(StatusCode, Value)> {
        let lines: Vec<Value> = events
            .iter()
            .zip(first..)
            .map(|(event, seq)| {
                let mut line = event.clone();
                line["seq"] = json!(seq);
                line["at"] = json!("2026-01-01T00:00:00Z");
                line
            })
            .collect();
        self.post(held, "events", json!({ "lines": lines })).await
    }

    /// Uploads a blob under a lease; gives its sha256.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn upload(&self, held: &Held, bytes: &'static [u8]) -> Result<String> {
        let sha256 = causeway_protocol::sha256_hex(bytes);
        let (id, epoch) = (held.grant["id"].as_str().context("id")?, &held.grant["epoch"]);
        let path = format!("/leases/{id}/blobs/{sha256}?epoch={epoch}");
        self.server.worker(Method::PUT, &path)?.body(bytes).send().await?.error_for_status()?;
        Ok(sha256)
    }

    /// Ends an attempt.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn finish(&self, held: &Held, outcome: &str, reason: &str) -> Result<StatusCode> {
        Ok(self.post(held, "finish", json!({"outcome": outcome, "reason": reason})).await?.0)
    }
}
