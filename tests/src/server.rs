//! A real `causeway serve` with its own embedded Postgres.

use crate::authority::Authority;
use crate::process::{Process, binary, repository, wait_for};
use anyhow::{Context, Result, bail};
use causeway_connect::Trust;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A running server and its state folder, both gone with the test.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    folder: TempDir,
    lease_seconds: f64,
    environment: Vec<(String, String)>,
    authority: Option<Authority>,
    port: u16,
    /// HTTP client.
    pub client: Client,
}

impl Server {
    /// Starts a server on a fresh state folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start() -> Result<Server> {
        Server::with_lease(30.0).await
    }

    /// Starts a server whose leases last so long.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn with_lease(lease_seconds: f64) -> Result<Server> {
        Server::with(lease_seconds, &[]).await
    }

    /// The same, with more variables in its environment.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn with(lease_seconds: f64, environment: &[(&str, &str)]) -> Result<Server> {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Server::on(tempfile::Builder::new().prefix("cw").tempdir()?, lease_seconds, environment, None).await
    }

    /// Starts a server that speaks TLS as `localhost`, with a certificate that ends in so many days.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn over_tls(days: i64) -> Result<Server> {
        let folder = tempfile::Builder::new().prefix("cw").tempdir()?;
        let authority = Authority::make(folder.path())?;
        authority.certify("localhost", days)?;
        Server::on(folder, 30.0, authority.server_environment(), Some(authority)).await
    }

    async fn on(
        folder: TempDir,
        lease_seconds: f64,
        environment: Vec<(String, String)>,
        authority: Option<Authority>,
    ) -> Result<Server> {
        let trust = Trust { ca: authority.as_ref().map(Authority::file), insecure_http: false };
        let client = trust.client("http://localhost")?.pool_max_idle_per_host(0).build()?;
        let mut server =
            Server { process: None, folder, lease_seconds, environment, authority, port: 0, client };
        server.restart().await?;
        Ok(server)
    }

    /// Starts the server again on the same state folder and port, after `kill` or `stop`.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        let state = self.state();
        let mut command = Command::new(binary("causeway"));
        command
            .args(["serve", "--state"])
            .arg(&state)
            .args(["--listen", &format!("127.0.0.1:{}", self.port), "--postgres-bin"])
            .arg(repository().join(".deps/postgres/bin"))
            .args(["--lease-seconds", &self.lease_seconds.to_string()])
            .env_remove("DATABASE_URL")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let _ = fs::remove_file(state.join("server.json"));
        self.process = Some(Process::start(&mut command, &self.log())?);
        let announced = wait_for("the server to announce itself", 60, || async {
            Ok(fs::read_to_string(state.join("server.json")).ok())
        })
        .await
        .with_context(|| fs::read_to_string(self.log()).unwrap_or_default())?;
        let url: Value = serde_json::from_str(&announced)?;
        let port = url["url"].as_str().and_then(|url| url.rsplit(':').next()).context("port")?;
        self.port = port.parse()?;
        Ok(())
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// A folder beside the state folder, for whatever a test needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server printed.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// `kill -9` of the server; Postgres stays.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("not running")?.kill()
    }

    /// SIGTERM and wait.
    ///
    /// # Errors
    /// If it does not end in time or not with success.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.take().context("not running")?.terminate()?;
        if status.success() { Ok(()) } else { bail!("the server ended with {status}") }
    }

    /// Process id of the server.
    ///
    /// # Errors
    /// If it is not running.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.process.as_ref().context("not running")?.pid())
    }

    /// Process id of the Postgres that the server runs.
    ///
    /// # Errors
    /// If there is none.
    pub fn postgres_pid(&self) -> Result<i32> {
        let text = fs::read_to_string(self.state().join("postgres/postmaster.pid"))?;
        Ok(text.lines().next().context("pid")?.parse()?)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL.
    pub fn url(&self) -> String {
        match self.authority {
            Some(_) => format!("https://localhost:{}", self.port),
            None => format!("http://127.0.0.1:{}", self.port),
        }
    }

    /// Who has signed its certificate, if it has one.
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// A token of that kind: `user` or `worker`.
    ///
    /// # Errors
    /// If the file is not there.
    pub fn token(&self, kind: &str) -> Result<String> {
        Ok(fs::read_to_string(self.state().join(format!("{kind}.token")))?.trim().to_owned())
    }

    /// A request as the user.
    ///
    /// # Errors
    /// If there is no token.
    pub fn user(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let request = self.client.request(method, format!("{}/api/v1{path}", self.url()));
        Ok(request.bearer_auth(self.token("user")?))
    }

    /// A request as a worker.
    ///
    /// # Errors
    /// If there is no token.
    pub fn worker(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let request = self.client.request(method, format!("{}/api/v1{path}", self.url()));
        Ok(request.bearer_auth(self.token("worker")?))
    }

    /// GETs JSON as the user.
    ///
    /// # Errors
    /// If the answer is no success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.user(Method::GET, path)?.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("GET {path}: {status} {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Submits a run and gives its id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn submit(&self, spec: &Value) -> Result<String> {
        let response = self.user(Method::POST, "/runs")?.json(spec).send().await?;
        let status = response.status();
        let run: Value = response.json().await?;
        if status != StatusCode::CREATED {
            bail!("{status}: {run}");
        }
        Ok(run["id"].as_str().context("id")?.to_owned())
    }

    /// Waits until a run is in one of these states, and gives it.
    ///
    /// # Errors
    /// If it ends otherwise, or takes too long.
    pub async fn wait_for_run(&self, id: &str, states: &[&str], seconds: u64) -> Result<Value> {
        wait_for(&format!("run {id} to be {states:?}"), seconds, || async {
            // A server or database that is being killed and restarted does not answer for a while.
            let Ok(run) = self.get(&format!("/runs/{id}")).await else { return Ok(None) };
            let state = run["state"].as_str().unwrap_or_default();
            if states.contains(&state) {
                return Ok(Some(run));
            }
            if ["succeeded", "failed", "cancelled", "lost"].contains(&state) {
                bail!("the run is {state}: {}", run["reason"]);
            }
            Ok(None)
        })
        .await
    }

    /// The database behind the server.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn database(&self) -> Result<sqlx::PgPool> {
        let socket = self.state().canonicalize()?.join("socket").to_string_lossy().replace('/', "%2F");
        Ok(sqlx::PgPool::connect(&format!("postgres://causeway@{socket}/postgres")).await?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server takes its Postgres down; if it was killed, that is left to us.
        let stopped = self.process.as_mut().is_some_and(|process| process.terminate().is_ok());
        if let (false, Ok(pid)) = (stopped, self.postgres_pid()) {
            // SAFETY: the postmaster of this test's own state folder.
            unsafe { libc::kill(pid, libc::SIGQUIT) };
        }
        // Shown by the test runner if the test failed.
        eprintln!("--- the server's log\n{}", fs::read_to_string(self.log()).unwrap_or_default());
    }
}
