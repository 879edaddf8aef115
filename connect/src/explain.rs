//! Why a server could not be reached, in words that say what to do. What certificates are refused for lies deep below the
//! HTTP client's own error.

use rustls::CertificateError;
use std::{error::Error, io};

/// The error with everything below it, and advice where there is some.
pub fn explain(error: reqwest::Error) -> String {
    let advice = tls(&error).and_then(advice);
    let text = format!("{:#}", anyhow::Error::new(error));
    match advice {
        Some(advice) => format!("{text}: {advice}"),
        None => text,
    }
}

fn advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => Some(
            "nobody who is trusted here has signed its certificate; name the authority that has, with --ca FILE",
        ),
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("its certificate has expired; renew it on the server, or set this machine's clock")
        }
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            Some("its certificate is not valid yet; set this machine's clock")
        }
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("its certificate is for another name; ask the server by the name in it"),
        InvalidMessage(_) => Some("what listens there does not speak TLS"),
        _ => None,
    }
}

/// The TLS library's own error, if there is one.
fn tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error leaves out what it wraps when it is asked for its source.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
