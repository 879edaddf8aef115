//! What the server knows of the work: which runs wait for a device and what they need, and which workers there are.

use super::decide::{Free, Need};
use crate::client::Server;
use anyhow::{Context, Result, bail, ensure};
use causeway_protocol::Spec;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use time::OffsetDateTime;

/// Most runs whose specs are read in one pass; the next pass reads on.
const READ_MAX: usize = 200;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A waiting run.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// What it needs.
    pub need: Need,
    /// Why it waits, in the server's words.
    pub why: String,
}

/// A worker.
#[derive(Clone, Debug, Deserialize)]
pub struct Worker {
    /// Name; a pilot's is its job's name and id.
    pub name: String,
    /// `ready`, `draining`, `suspect` or `lost`.
    pub state: String,
    devices: Vec<Device>,
    assets: Vec<Named>,
    /// When it was last heard of.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
}

#[derive(Clone, Debug, Deserialize)]
struct Device {
    /// The run that works on it.
    run_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    name: String,
}

impl Worker {
    /// What it holds.
    pub fn assets(&self) -> BTreeSet<String> {
        self.assets.iter().map(|asset| asset.name.clone()).collect()
    }

    /// What it has free; none if it takes no work.
    pub fn free(&self) -> Option<Free> {
        let devices = self.devices.iter().filter(|device| device.run_id.is_none()).count() as u32;
        (self.state == "ready" && devices > 0).then(|| Free { devices, assets: self.assets() })
    }
}

/// The server, asked again in each pass.
pub struct Reader {
    server: Server,
    /// What runs need. A spec never changes; `None` where a run has to be looked at each time.
    needs: BTreeMap<String, Option<Need>>,
}

#[derive(Deserialize)]
struct Entry {
    run_id: String,
    why: String,
}

impl Reader {
    /// Begins to ask.
    pub fn new(server: Server) -> Reader {
        Reader { server, needs: BTreeMap::new() }
    }

    /// The server's URL as it is reached from here.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// The runs that wait for nothing but a device, in the order of dispatch.
    pub async fn waiting(&mut self) -> Result<Vec<Waiting>> {
        let queue: Vec<Entry> = self.get("/queue").await?;
        let ids: BTreeSet<&str> = queue.iter().map(|entry| entry.run_id.as_str()).collect();
        self.needs.retain(|run, _| ids.contains(run.as_str()));
        let mut waiting = Vec::new();
        let mut read = 0;
        for Entry { run_id, why } in queue {
            let known = self.needs.get(&run_id).cloned().flatten();
            let need = match known {
                Some(need) => Some(need),
                None if read >= READ_MAX => None,
                None => {
                    read += 1;
                    let run: Value = self.get(&format!("/runs/{run_id}")).await?;
                    let need = need(&run).with_context(|| format!("the run {run_id}"))?;
                    let stays = run["spec"]["evaluation"]["parts"].as_u64().unwrap_or(1) <= 1;
                    self.needs.insert(run_id, need.clone().filter(|_| stays));
                    need
                }
            };
            waiting.extend(need.map(|need| Waiting { need, why }));
        }
        Ok(waiting)
    }

    /// The workers.
    pub async fn workers(&self) -> Result<Vec<Worker>> {
        self.get("/workers").await
    }

    /// Names the server: eight digits that no other server has, whatever its address is called. They are those of the
    /// first token of its database, which is made at its first start.
    pub async fn identity(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            id: String,
        }
        let tokens: Vec<Token> =
            self.get("/tokens").await.context("naming the server; --name names it too")?;
        let first = tokens.first().context("the server has no tokens: give --name")?;
        let digits: String = first.id.chars().filter(char::is_ascii_hexdigit).collect();
        digits.get(24..).map(str::to_owned).with_context(|| format!("the token id {:?} is no UUID", first.id))
    }

    /// Whether a worker of this server may come with that token.
    ///
    /// # Errors
    /// If it is a token for something else.
    pub async fn takes_worker(&self, secret: &str) -> Result<bool> {
        // An empty request for work: a server that knows the token goes on to say what is missing in it.
        let request = self.server.request_as(secret, Method::POST, "/leases").json(&json!({}));
        let answer = request.timeout(PATIENCE).send().await;
        let answer = answer.with_context(|| format!("no answer from {}", self.server.url))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => Ok(false),
            StatusCode::FORBIDDEN => bail!("that is not a worker token: make one with POST /api/v1/tokens"),
            status => {
                ensure!(!status.is_server_error(), "the server answered {status}");
                Ok(true)
            }
        }
    }

    /// Makes a worker token.
    pub async fn make_worker_token(&self, name: &str) -> Result<String> {
        let request = self.server.request(Method::POST, "/tokens");
        let request = request.json(&json!({"kind": "worker", "name": name})).timeout(PATIENCE);
        let made: Value = self.server.send(request).await?.json().await?;
        made["secret"].as_str().map(str::to_owned).context("the server's answer has no secret")
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.server.request(Method::GET, path).timeout(PATIENCE);
        let answer = self.server.send(request).await?;
        answer.json().await.with_context(|| format!("reading the server's answer to {path}"))
    }
}

/// What a queued run needs; none while it waits for its own parts.
fn need(run: &Value) -> Result<Option<Need>> {
    let parts = run["parts"].as_array().into_iter().flatten();
    if parts.into_iter().any(|part| ["queued", "running"].map(Value::from).contains(&part["state"])) {
        return Ok(None);
    }
    let asked = |what: &str| {
        let asked = run.pointer(&format!("/spec/resources/{what}")).and_then(Value::as_u64);
        asked.map_or(1, |asked| u32::try_from(asked).unwrap_or(u32::MAX).max(1))
    };
    let spec: Spec =
        serde_json::from_value(run["spec"].clone()).context("this launcher cannot read its spec")?;
    let mut assets: Vec<String> = spec.assets().into_iter().map(str::to_owned).collect();
    assets.sort();
    assets.dedup();
    let id = run["id"].as_str().context("it has no id")?.to_owned();
    Ok(Some(Need { run: id, devices: asked("gpus"), nodes: asked("nodes"), assets }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers;
    use uuid::Uuid;

    fn run() -> Value {
        let spec = json!({
            "experiment": "e", "kind": "evaluate",
            "weights": {"theta0": {"asset": "vit"}, "theta1": {"blob": "a".repeat(64)}},
            "evaluation": {"datasets": [{"asset": "shapes", "role": "ood"}, {"asset": "vit", "role": "ood"}], "parts": 2}
        });
        let spec = causeway_protocol::parse_spec(spec).unwrap();
        json!({"id": "r1", "spec": spec, "parts": []})
    }

    #[test]
    fn a_run_needs_its_assets_once_and_one_device_unless_it_says_otherwise() {
        let assets = vec!["shapes".to_owned(), "vit".to_owned()];
        let expected = Need { run: "r1".into(), devices: 1, nodes: 1, assets };
        assert_eq!(need(&run()).unwrap(), Some(expected));
    }

    #[test]
    fn a_run_whose_parts_are_at_work_needs_nothing_itself() {
        let mut spread = run();
        spread["parts"] = json!([{"state": "succeeded"}, {"state": "queued"}]);
        assert_eq!(need(&spread).unwrap(), None);
        spread["parts"] = json!([{"state": "succeeded"}, {"state": "succeeded"}]);
        assert!(need(&spread).unwrap().is_some());
    }

    #[test]
    fn only_a_ready_worker_has_devices_free() {
        // As the server itself tells it.
        let worker = |state: &str, busy: usize| -> Worker {
            let device = |at: usize| workers::Device {
                name: format!("cuda:{at}"),
                model: String::new(),
                memory: 0,
                free_memory: 0,
                capability: String::new(),
                run_id: (at < busy).then(Uuid::nil),
            };
            let told = workers::Worker {
                id: Uuid::nil(),
                name: "w".into(),
                host: "h".into(),
                version: "1".into(),
                state: state.into(),
                devices: (0..2).map(device).collect(),
                labels: Vec::new(),
                drained: false,
                assets: json!([{"name": "vit"}]),
                registered_at: OffsetDateTime::UNIX_EPOCH,
                seen_at: OffsetDateTime::UNIX_EPOCH,
                leases: Vec::new(),
            };
            serde_json::from_value(serde_json::to_value(told).unwrap()).unwrap()
        };
        assert_eq!(worker("ready", 1).free().map(|free| free.devices), Some(1));
        assert_eq!(worker("ready", 2).free(), None);
        assert_eq!(worker("draining", 0).free(), None);
        assert_eq!(worker("suspect", 0).free(), None);
    }
}
