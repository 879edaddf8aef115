//! A lab's own certificate authority, and the certificate of its server.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    fs,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};

/// An authority whose files lie in a folder of a test.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one, and writes its certificate there.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn make(folder: &Path) -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut about = CertificateParams::new(Vec::new())?;
        about.distinguished_name.push(DnType::CommonName, "a lab");
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.join("ca.pem"), about.self_signed(&key)?.pem())?;
        Ok(Authority { folder: folder.to_owned(), issuer: Issuer::new(about, key) })
    }

    /// Its certificate, as clients are given it.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Writes the server's certificate and key, for that name and so many days from now.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn certify(&self, name: &str, days: i64) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut about = CertificateParams::new(vec![name.to_owned()])?;
        about.not_before = OffsetDateTime::now_utc() - Duration::days(30);
        about.not_after = OffsetDateTime::now_utc() + Duration::days(days);
        fs::write(self.folder.join("key.pem"), key.serialize_pem())?;
        fs::write(self.folder.join("cert.pem"), about.signed_by(&key, &self.issuer)?.pem())?;
        Ok(())
    }

    /// What tells a server where its certificate is.
    pub fn server_environment(&self) -> Vec<(String, String)> {
        let file = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        vec![
            ("CAUSEWAY_TLS_CERT".to_owned(), file("cert.pem")),
            ("CAUSEWAY_TLS_KEY".to_owned(), file("key.pem")),
        ]
    }
}
