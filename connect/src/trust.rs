//! Whom a client believes. A token is as good as a password, so it goes over TLS, or stays on this machine.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use reqwest::{ClientBuilder, Url};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Options of everything that asks a server.
#[derive(Args, Clone, Debug, Default)]
pub struct Trust {
    /// File with the certificates (PEM) of the authority that signed the server's, instead of the public ones
    #[arg(long, env = "CAUSEWAY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Ask a server on another machine over plain http too: whoever listens on the way can read the token
    #[arg(long, env = "CAUSEWAY_INSECURE_HTTP")]
    pub insecure_http: bool,
}

impl Trust {
    /// The same for a server on this machine, whatever its address: nobody listens on the way there.
    pub fn on_this_machine(&self) -> Trust {
        Trust { insecure_http: true, ..self.clone() }
    }

    /// A client for the server at `url`.
    ///
    /// # Errors
    /// If the address would send the token in the clear, or the authority's file cannot be used.
    pub fn client(&self, url: &str) -> Result<ClientBuilder> {
        let url = self.check(url)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("setting TLS up")?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A redirect out of TLS would take the token with it.
        Ok(reqwest::Client::builder().tls_backend_preconfigured(config).https_only(url.scheme() == "https"))
    }

    /// Refuses an address that is none, or that is not safe to send a token to.
    ///
    /// # Errors
    /// Says what to give instead.
    pub fn check(&self, url: &str) -> Result<Url> {
        let url = Url::parse(url)
            .with_context(|| format!("the server's address {url:?} is no URL: give https://HOST:PORT"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.insecure_http || is_loopback(&url) => Ok(url),
            "http" => bail!(
                "{url} is plain http to another machine: the token could be read on the way. Give an https:// address \
                 (causeway serve --tls-cert, or a proxy before the server), or an SSH tunnel's end on 127.0.0.1; on a \
                 network that you trust, --insecure-http"
            ),
            other => bail!("the server's address {url} begins with {other}: give https://HOST:PORT"),
        }
    }

    fn roots(&self) -> Result<RootCertStore> {
        let Some(file) = &self.ca else {
            return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
        };
        read_roots(file).with_context(|| format!("--ca {}", file.display()))
    }
}

fn read_roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).context("reading certificates")? {
        roots
            .add(certificate.context("reading a certificate")?)
            .context("a certificate is no authority's")?;
    }
    ensure!(!roots.is_empty(), "the file holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
    Ok(roots)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leaves_this_machine_over_tls_or_by_express_wish() {
        let (careful, careless) = (Trust::default(), Trust { insecure_http: true, ..Trust::default() });
        for url in [
            "https://lab:7411",
            "http://127.0.0.1:7411",
            "http://localhost:1",
            "http://[::1]:7411/",
            "http://127.8.0.1",
        ] {
            careful.check(url).unwrap();
        }
        for url in
            ["http://lab:7411", "http://192.168.1.5", "http://127.0.0.1.example.org", "http://0.0.0.0:7411"]
        {
            let error = careful.check(url).unwrap_err().to_string();
            assert!(error.contains("--insecure-http") && error.contains("https://"), "{error}");
            careless.check(url).unwrap();
        }
        for url in ["lab:7411", "ftp://lab", "lab", ""] {
            assert!(careless.check(url).unwrap_err().to_string().contains("https://HOST:PORT"), "{url}");
        }
    }

    #[test]
    fn a_file_without_an_authority_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        for text in [
            None,
            Some("no certificate"),
            Some("-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"),
        ] {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let trust = Trust { ca: Some(file.clone()), insecure_http: false };
            let error = format!("{:#}", trust.client("https://lab").unwrap_err());
            assert!(error.contains("--ca") && error.contains("ca.pem"), "{error}");
        }
    }
}
