//! `causeway serve`: opens the state folder, starts Postgres if none is given, brings up the pool, the scheduler and
//! the listener, and takes it all down in order.

use crate::{
    App, Hosts,
    auth::{self, TokenKind},
    blobs::{self, Blobs},
    database, launch,
    postgres::Embedded,
    router, scheduler, search,
    tls::{Certificate, TlsListener},
    wake::Wake,
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tokio_util::sync::CancellationToken;

/// How long open requests may take to finish at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Ports tried after the one asked for.
const PORTS_TRIED: u16 = 20;

/// Options of `causeway serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Folder for everything the server keeps: the database (unless --database-url), blobs, tokens
    #[arg(long, env = "CAUSEWAY_STATE", default_value = ".state")]
    pub state: PathBuf,
    /// Address to listen on; if its port is taken, the next free one is used and printed. Port 0 takes any
    #[arg(long, env = "CAUSEWAY_LISTEN", default_value = "127.0.0.1:7411")]
    pub listen: SocketAddr,
    /// A Postgres (14 or newer) to use instead of the server's own
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Folder with initdb and postgres (major version 18), for the server's own
    #[arg(long, env = "CAUSEWAY_POSTGRES_BIN", default_value = ".deps/postgres/bin")]
    pub postgres_bin: PathBuf,
    /// A host name, besides the loopback ones, that requests may name; may be repeated
    #[arg(long = "host", env = "CAUSEWAY_HOSTS", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// File of the server's certificate and those that vouch for it (PEM): the server then speaks TLS. A renewed one is
    /// taken up without a restart
    #[arg(long, env = "CAUSEWAY_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File of the certificate's key (PEM)
    #[arg(long, env = "CAUSEWAY_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Listen for other machines without TLS: behind a proxy that has it, or on a network that is trusted
    #[arg(long, env = "CAUSEWAY_INSECURE_HTTP")]
    pub insecure_http: bool,
    /// Folder of blobs, in the state folder if not given; servers that share a Postgres need one that they all reach
    #[arg(long, env = "CAUSEWAY_BLOBS", value_name = "DIR")]
    pub blobs: Option<PathBuf>,
    /// Seconds after which a silent worker's lease is taken back
    #[arg(long, env = "CAUSEWAY_LEASE_SECONDS", default_value_t = scheduler::LEASE_SECONDS)]
    pub lease_seconds: f64,
    /// Start workers as batch jobs: the words of `causeway launch`, such as 'slurm --work-dir DIR --data DIR'; may be
    /// repeated, with a --name for each
    #[arg(long = "launch", env = "CAUSEWAY_LAUNCH", value_name = "WORDS", value_delimiter = '\n')]
    pub launchers: Vec<String>,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// If the state folder, Postgres or the listener cannot be had.
pub async fn serve(args: ServeArgs) -> Result<()> {
    let launchers =
        args.launchers.iter().map(|line| launch::Beside::parse(line)).collect::<Result<Vec<_>>>()?;
    let certificate = certificate(&args)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.state)
        .with_context(|| format!("making the state folder {}", args.state.display()))?;
    let _lock = lock(&args.state)?;
    let stop = CancellationToken::new();
    // Postgres outlives the server's own tasks, so that what they still have to write can be written.
    let stop_postgres = CancellationToken::new();
    let (url, postgres) = match &args.database_url {
        Some(url) => (url.clone(), None),
        None => {
            let embedded = Embedded::prepare(&args.state, &args.postgres_bin).await?;
            (embedded.url(), Some(embedded.supervise(stop_postgres.clone()).await?))
        }
    };
    let served = serve_with(&args, &url, certificate, launchers, &stop).await;
    stop.cancel();
    stop_postgres.cancel();
    if let Some(postgres) = postgres {
        postgres.await?;
    }
    served
}

/// What the server shows for itself. Other machines are not to send their tokens to one that shows nothing.
fn certificate(args: &ServeArgs) -> Result<Option<Certificate>> {
    if let (Some(chain), Some(key)) = (&args.tls_cert, &args.tls_key) {
        return Certificate::read(chain, key).map(Some);
    }
    ensure!(
        args.listen.ip().is_loopback() || args.insecure_http,
        "--listen {}: other machines would send their tokens in the clear. Give --tls-cert and --tls-key; or, behind a \
         proxy that speaks TLS or on a network that you trust, --insecure-http",
        args.listen
    );
    Ok(None)
}

async fn serve_with(
    args: &ServeArgs,
    url: &str,
    certificate: Option<Certificate>,
    launchers: Vec<launch::Beside>,
    stop: &CancellationToken,
) -> Result<()> {
    let pool = database::connect(url).await?;
    let blobs = args.blobs.clone().unwrap_or_else(|| args.state.join("blobs"));
    let app = App {
        pool: pool.clone(),
        blobs: Blobs::open(&blobs)?,
        wake: Wake::default(),
        reasons: Default::default(),
        hosts: Hosts::new(args.hosts.iter().cloned()),
        tls: certificate.is_some(),
        lease_seconds: args.lease_seconds,
        stop: stop.clone(),
    };
    let user = auth::ensure_token_file(&pool, &args.state.join("user.token"), TokenKind::User).await?;
    auth::ensure_token_file(&pool, &args.state.join("worker.token"), TokenKind::Worker).await?;
    let mut tasks = vec![
        tokio::spawn(scheduler::run(app.clone(), stop.clone())),
        tokio::spawn(search::run(app.clone(), stop.clone())),
        tokio::spawn(blobs::sweep(app.clone(), stop.clone())),
    ];
    let listener = listen(args.listen).await?;
    let address = listener.local_addr()?;
    let url = match &certificate {
        // By a name that is in the certificate, most likely.
        Some(_) => match args.hosts.first() {
            Some(host) => format!("https://{host}:{}", address.port()),
            None => format!("https://{address}"),
        },
        None => own_url(address),
    };
    announce(&args.state, &url, &user)?;
    println!("listening on {url}");
    tracing::info!(%address, "serving");
    for launcher in launchers {
        let (url, state, stop) = (url.clone(), args.state.clone(), stop.clone());
        tasks.push(tokio::spawn(async move { launcher.run(url, &state, stop).await }));
    }
    let signalled = stop.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        signalled.cancel();
    });
    match certificate {
        Some(certificate) => answer(TlsListener::new(listener, certificate)?, app, stop).await?,
        None => answer(tcp_nodelay(listener), app, stop).await?,
    }
    for task in tasks {
        let _ = task.await;
    }
    pool.close().await;
    let _ = fs::remove_file(args.state.join("server.json"));
    Ok(())
}

/// Answers requests until told to stop.
async fn answer(
    listener: impl axum::serve::Listener<Addr = SocketAddr>,
    app: App,
    stop: &CancellationToken,
) -> Result<()> {
    let draining = stop.clone();
    let server = axum::serve(listener, router(app).into_make_service())
        .with_graceful_shutdown(async move { draining.cancelled().await });
    tokio::select! {
        served = server => Ok(served?),
        // A client that holds a connection open must not hold up the end.
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

/// Where this process reaches its own server: a listener on every address is on the loopback one too.
fn own_url(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    }
}

/// Small answers leave at once: without it, headers and body in two segments cost 40 ms each.
fn tcp_nodelay(listener: TcpListener) -> impl axum::serve::Listener<Addr = SocketAddr> {
    use axum::serve::ListenerExt;
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
    })
}

/// One server a state folder.
fn lock(state: &Path) -> Result<fs::File> {
    let path = state.join("server.lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another server is using the state folder {}", state.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let mut last = None;
    for step in 0..=PORTS_TRIED {
        let port = if address.port() == 0 { 0 } else { address.port().saturating_add(step) };
        match TcpListener::bind(SocketAddr::new(address.ip(), port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error).with_context(|| format!("listening on {address}")),
        }
    }
    let error = last.context("no port tried")?;
    Err(error).with_context(|| format!("{address} and the {PORTS_TRIED} ports after it are taken"))
}

/// Tells where the server is, to `make demo` and to the command line on this machine.
fn announce(state: &Path, url: &str, user_token: &str) -> Result<()> {
    let text = serde_json::json!({
        "url": url,
        "sign_in_url": format!("{url}/sign-in?token={user_token}"),
        "pid": std::process::id(),
    });
    auth::write_private(&state.join("server.json"), &text.to_string())
}

/// Waits for SIGINT or SIGTERM.
pub async fn wait_for_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        tokio::signal::unix::signal(SignalKind::interrupt()),
        tokio::signal::unix::signal(SignalKind::terminate()),
    ) else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
