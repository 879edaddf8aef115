//! Finding the server and talking to it.

use anyhow::{Context, Result, anyhow, bail};
use causeway_connect::{Trust, explain};
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which server, and as whom. On the server's own machine the state folder tells both.
#[derive(Args, Debug, Clone)]
pub struct Connection {
    /// URL of the server; by default the one that runs on the state folder
    #[arg(long, env = "CAUSEWAY_SERVER")]
    server: Option<String>,
    /// File that holds a user token; by default the state folder's
    #[arg(long, env = "CAUSEWAY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// State folder of a server on this machine
    // Not `state`: `causeway runs --state` has that name, and clap tells options apart by the fields'.
    #[arg(long, env = "CAUSEWAY_STATE", default_value = ".state")]
    server_state: PathBuf,
    #[command(flatten)]
    trust: Trust,
}

/// A server that can be asked.
#[derive(Debug)]
pub struct Server {
    client: Client,
    /// Its URL, without a slash at the end.
    pub url: String,
    token: String,
}

impl Connection {
    /// The same, but to the server on this machine at `url`, with the user token in that file.
    pub fn to_own(&self, url: &str, token_file: &Path) -> Connection {
        let (server, token_file) = (Some(url.to_owned()), Some(token_file.to_owned()));
        Connection { server, token_file, trust: self.trust.on_this_machine(), ..self.clone() }
    }

    /// Reads URL and token.
    ///
    /// # Errors
    /// If neither the options nor the state folder tell them.
    pub fn open(&self) -> Result<Server> {
        let mut trust = self.trust.clone();
        let url = match &self.server {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let path = self.server_state.join("server.json");
                let text = fs::read_to_string(&path).with_context(|| {
                    format!(
                        "no server runs on {}: give --server URL, or start one",
                        self.server_state.display()
                    )
                })?;
                let known: Value =
                    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
                trust = trust.on_this_machine();
                known["url"].as_str().context("server.json names no url")?.to_owned()
            }
        };
        let path = self.token_file.clone().unwrap_or_else(|| self.server_state.join("user.token"));
        let token = fs::read_to_string(&path)
            .with_context(|| format!("reading the token in {}: give --token-file", path.display()))?;
        let client = trust.client(&url)?.build().context("making the HTTP client")?;
        Ok(Server { client, url, token: token.trim().to_owned() })
    }
}

impl Server {
    /// A request to `/api/v1{path}`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_as(&self.token, method, path)
    }

    /// The same with another token than our own.
    pub fn request_as(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/api/v1{path}", self.url)).bearer_auth(token)
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// If the server cannot be reached, or answers with a problem.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.send(self.request(Method::GET, path)).await?;
        response.json().await.context("reading the server's answer")
    }

    /// Sends a request and turns a problem into an error that names field and rule.
    ///
    /// # Errors
    /// If the server cannot be reached, or answers with a problem.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await;
        let response =
            response.map_err(|error| anyhow!("no answer from {}: {}", self.url, explain(error)))?;
        Server::check(response).await
    }

    /// Turns a problem into an error that names field and rule.
    ///
    /// # Errors
    /// If the answer is a problem.
    pub async fn check(response: Response) -> Result<Response> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem: Value = response.json().await.unwrap_or_default();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if errors.is_empty() {
            bail!("{}: {}", text(&problem["title"]), text(&problem["detail"]));
        }
        let lines: Vec<String> = errors
            .iter()
            .map(|error| format!("  {}: {}", text(&error["field"]), text(&error["rule"])))
            .collect();
        bail!("the server refused it ({status}):\n{}", lines.join("\n"));
    }

    /// Every row of a paged list.
    ///
    /// # Errors
    /// As `get`.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        loop {
            let mut page = self.get(&format!("{path}{joint}limit=500{cursor}")).await?;
            if let Some(items) = page["items"].as_array_mut() {
                rows.append(items);
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(rows),
            }
        }
    }

    /// The id of an experiment given by name or id.
    ///
    /// # Errors
    /// If there is none.
    pub async fn experiment_id(&self, given: &str) -> Result<String> {
        let rows = self.list("/experiments").await?;
        let found = rows.iter().find(|row| row["name"] == given || row["id"] == given);
        let found = found.with_context(|| format!("no experiment is called `{given}`"))?;
        Ok(found["id"].as_str().unwrap_or_default().to_owned())
    }
}
