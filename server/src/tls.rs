//! TLS by the server itself. A certificate that has been renewed is taken up without a restart: the files are looked at with
//! each connection.

use anyhow::{Context, Result};
use axum::serve::Listener;
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that have shaken hands and wait to be served.
const WAITING_MAX: usize = 64;

/// A certificate and its key, as files.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

/// What was read last, and when it was written.
#[derive(Debug)]
struct Current {
    written: SystemTime,
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// If they cannot be read or do not belong together.
    pub fn read(chain: &Path, key: &Path) -> Result<Certificate> {
        let current =
            Mutex::new(Current { written: written(chain, key)?, config: Arc::new(config(chain, key)?) });
        Ok(Certificate { chain: chain.to_owned(), key: key.to_owned(), current })
    }

    /// What a new connection is served with.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(written) = written(&self.chain, &self.key)
            && written != current.written
        {
            current.written = written;
            match config(&self.chain, &self.key) {
                Ok(config) => {
                    tracing::info!(file = %self.chain.display(), "a new certificate");
                    current.config = Arc::new(config);
                }
                // Perhaps only one of the two files is new yet.
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "going on with the old certificate")
                }
            }
        }
        current.config.clone()
    }
}

fn written(chain: &Path, key: &Path) -> Result<SystemTime> {
    let of = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    Ok(of(chain)
        .with_context(|| format!("--tls-cert {}", chain.display()))?
        .max(of(key).with_context(|| format!("--tls-key {}", key.display()))?))
}

fn config(chain: &Path, key: &Path) -> Result<ServerConfig> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect);
    let certificates =
        certificates.with_context(|| format!("--tls-cert {}: it must be PEM", chain.display()))?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("--tls-key {}: it must be PEM, without a password", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("setting TLS up")?
        .with_no_client_auth()
        .with_single_cert(certificates, secret)
        .with_context(|| format!("--tls-cert {} and --tls-key {}", chain.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A listener whose connections have shaken hands. Each does so in a task of its own, so that a slow one holds up nobody.
#[derive(Debug)]
pub struct TlsListener {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Begins to accept. Needs a runtime.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(listener: TcpListener, certificate: Certificate) -> Result<TlsListener> {
        let address = listener.local_addr()?;
        let (sender, connections) = mpsc::channel(WAITING_MAX);
        tokio::spawn(accept(listener, certificate, sender));
        Ok(TlsListener { connections, address })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await, // the runtime is ending
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(
    mut listener: TcpListener,
    certificate: Certificate,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let (stream, peer) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = sender.closed() => return,
        };
        let (acceptor, sender) = (TlsAcceptor::from(certificate.config()), sender.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                // A client's mistake, which it is told by the protocol.
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "a handshake took too long"),
            }
        });
    }
}
