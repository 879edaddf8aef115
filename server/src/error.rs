//! Errors as clients see them: RFC 9457 problem+json with a stable `type`, naming field and rule where there is one.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use causeway_protocol::{Problem, UPLOAD_OFFSET};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// 422: understood, but these fields break these rules.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Problem>),
    /// 401: no token, or one the server does not know.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 403: a token that may not do this, or a foreign Host or Origin.
    #[error("{0}")]
    Forbidden(String),
    /// 404: nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// 400: the bytes of a blob are not what its name says.
    #[error("{0}")]
    DigestMismatch(String),
    /// 409: an upload goes on somewhere else.
    #[error("{here} bytes of this blob are here, so the next piece begins there and not at {given}")]
    UploadOffset {
        /// Bytes that are here.
        here: u64,
        /// Where the piece begins.
        given: u64,
    },
    /// 409: the state of things does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// 409: another attempt holds the run now. The worker must stop.
    #[error("the lease is gone: its epoch is stale, and nothing was changed")]
    StaleLease,
    /// 408: the request broke off before its body was here. What was cut off may be sent again.
    #[error("the request broke off: {0}; send it again")]
    BrokenOff(String),
    /// 413: larger than a named limit.
    #[error("{0}")]
    TooLarge(String),
    /// 415: a POST without `application/json`.
    #[error("send the body as application/json")]
    UnsupportedMediaType,
    /// 507: the disk is full.
    #[error("{0}")]
    StorageFull(String),
    /// 503: Postgres did not answer.
    #[error("the database does not answer; training is not affected, retry")]
    Database(#[source] sqlx::Error),
    /// 500: a bug or a broken disk.
    #[error("something went wrong inside the server; its log has the details")]
    Internal(#[source] anyhow::Error),
}

/// What handlers return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The body of every error answer.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// A stable name of the kind of error, relative to the API.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of error in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// The fields that break rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Problem>,
}

impl Error {
    /// Status, stable name and title.
    pub fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Error::BadRequest(_) => {
                (StatusCode::BAD_REQUEST, "bad-request", "The request cannot be understood")
            }
            Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A field breaks a rule"),
            Error::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized", "Not signed in"),
            Error::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            Error::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Error::DigestMismatch(_) => (StatusCode::BAD_REQUEST, "digest-mismatch", "Wrong bytes"),
            Error::UploadOffset { .. } => {
                (StatusCode::CONFLICT, "mismatching-upload-offset", "The upload goes on somewhere else")
            }
            Error::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Not possible in this state"),
            Error::StaleLease => (StatusCode::CONFLICT, "stale-lease", "The lease is gone"),
            Error::BrokenOff(_) => (StatusCode::REQUEST_TIMEOUT, "broken-off", "The request broke off"),
            Error::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large"),
            Error::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Wrong content type")
            }
            Error::StorageFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "storage-full", "The disk is full"),
            Error::Database(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The database does not answer")
            }
            Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }

    fn log(&self) {
        match self {
            Error::Database(source) => tracing::warn!(error = %source, "database error"),
            Error::Internal(source) => tracing::error!(error = format!("{source:#}"), "internal error"),
            _ => {}
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log();
        let (status, kind, title) = self.kind();
        let detail = self.to_string();
        let here = if let Error::UploadOffset { here, .. } = self { Some(here) } else { None };
        let errors = if let Error::Invalid(problems) = self { problems } else { Vec::new() };
        let body = ProblemDetails {
            kind: format!("/problems/{kind}"),
            title: title.into(),
            status: status.as_u16(),
            detail,
            errors,
        };
        let mut response = (status, Json(body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(here) = here {
            response.headers_mut().insert(UPLOAD_OFFSET, here.into());
        }
        response
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_) => Error::Database(error),
            // 57P0x: the server is shutting down, starting, or ended this backend; 40xxx: retry the transaction;
            // 53xxx: out of connections or disk; 25P03: the transaction was left alone for too long.
            sqlx::Error::Database(inner)
                if inner
                    .code()
                    .is_some_and(|code| ["57P", "40", "53", "25P03"].iter().any(|c| code.starts_with(c))) =>
            {
                Error::Database(error)
            }
            _ => Error::Internal(error.into()),
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Error::Internal(error)
    }
}

/// Turns a violated named constraint into a client error; validating by insert leaves no race.
pub trait OnConstraint<T> {
    /// Maps a violation of `constraint` to the error `to` makes; other errors as usual.
    fn on_constraint(self, constraint: &str, to: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> OnConstraint<T> for std::result::Result<T, sqlx::Error> {
    fn on_constraint(self, constraint: &str, to: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| match &error {
            sqlx::Error::Database(inner) if inner.constraint() == Some(constraint) => to(),
            _ => error.into(),
        })
    }
}

/// 404 for an optional row.
pub fn found<T>(row: Option<T>, what: impl FnOnce() -> String) -> Result<T> {
    row.ok_or_else(|| Error::NotFound(what()))
}
