//! Who may do what. A user token reads and submits; a worker token does a worker's work under leases it knows; a
//! browser session comes from opening the printed URL. Tokens are stored hashed. Requests with a foreign Host or
//! Origin are refused before anything else, so that no page elsewhere can drive a server on this machine.

use crate::{App, Error, Result};
use anyhow::Context;
use axum::{
    Json,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// Name of the session cookie.
const COOKIE: &str = "causeway_session";
/// How long a browser stays signed in, days.
const SESSION_DAYS: i32 = 30;

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// A person or a script: reads everything, submits, cancels.
    User,
    /// A trainer's agent.
    Worker,
    /// A signed-in browser.
    Session,
}

impl TokenKind {
    fn as_str(self) -> &'static str {
        match self {
            TokenKind::User => "user",
            TokenKind::Worker => "worker",
            TokenKind::Session => "session",
        }
    }
}

/// Who sent a request; handlers get it as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The token's row.
    pub token_id: Uuid,
    /// What the token is for.
    pub kind: TokenKind,
}

/// Makes a token and returns its secret, which is not kept anywhere.
///
/// # Errors
/// If the database does not take it, or the system gives no random bytes.
pub async fn create_token(pool: &PgPool, kind: TokenKind, name: &str) -> Result<(Uuid, String)> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    let prefix = match kind {
        TokenKind::User => "cwu_",
        TokenKind::Worker => "cww_",
        TokenKind::Session => "cws_",
    };
    let secret = format!("{prefix}{}", causeway_protocol::hex(&bytes));
    let id = Uuid::now_v7();
    let days = matches!(kind, TokenKind::Session).then_some(SESSION_DAYS);
    let sha256 = Sha256::digest(&secret);
    sqlx::query!(
        "insert into token (id, kind, name, sha256, expires_at)
         values ($1, $2, $3, $4, now() + make_interval(days => $5))",
        id,
        kind.as_str(),
        name,
        sha256.as_slice(),
        days,
    )
    .execute(pool)
    .await?;
    Ok((id, secret))
}

async fn identify(pool: &PgPool, secret: &str) -> Result<Option<Identity>> {
    let sha256 = Sha256::digest(secret);
    let row = sqlx::query!(
        "select id, kind from token where sha256 = $1 and (expires_at is null or expires_at > now())",
        sha256.as_slice(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Identity {
        token_id: row.id,
        kind: match row.kind.as_str() {
            "user" => TokenKind::User,
            "worker" => TokenKind::Worker,
            _ => TokenKind::Session,
        },
    }))
}

/// The token that `path` holds, made and written there (mode 0600) when the file is missing or unknown to this
/// database.
///
/// # Errors
/// If the file cannot be read or written, or the database does not answer.
pub async fn ensure_token_file(pool: &PgPool, path: &Path, kind: TokenKind) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if identify(pool, text.trim()).await?.is_some_and(|found| found.kind == kind) => {
            return Ok(text.trim().to_owned());
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("reading {}", path.display()));
        }
        _ => {}
    }
    let (_, secret) = create_token(pool, kind, "made at first start").await?;
    write_private(path, &secret)?;
    Ok(secret)
}

/// Writes a file that only its owner can read, all at once.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("writing {}", fresh.display()))?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
}

/// Refuses requests whose Host or Origin is not this server's: a page on another site, or a name that a DNS answer
/// has pointed at 127.0.0.1.
pub async fn same_origin(State(app): State<App>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host =
        request.uri().authority().map(ToString::to_string).or_else(|| header_text(headers, header::HOST));
    let Some(host) = host else {
        return Error::BadRequest("the request names no Host".into()).into_response();
    };
    if !app.hosts.allows(&host) {
        return Error::Forbidden(format!("this server does not answer to the host name {host}"))
            .into_response();
    }
    if let Some(origin) = header_text(headers, header::ORIGIN) {
        let own = origin.split_once("://").is_some_and(|(_, authority)| authority == host);
        if !own {
            return Error::Forbidden(format!("requests from pages of {origin} are refused")).into_response();
        }
    }
    next.run(request).await
}

/// Middleware of the routes for people, scripts and signed-in browsers.
pub async fn users_only(State(app): State<App>, request: Request, next: Next) -> Result<Response> {
    require(&[TokenKind::User, TokenKind::Session], &app, request, next).await
}

/// Middleware of the routes for workers.
pub async fn workers_only(State(app): State<App>, request: Request, next: Next) -> Result<Response> {
    require(&[TokenKind::Worker], &app, request, next).await
}

async fn require(kinds: &[TokenKind], app: &App, mut request: Request, next: Next) -> Result<Response> {
    let bearer = header_text(request.headers(), header::AUTHORIZATION)
        .and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let secret = match bearer {
        Some(secret) => secret,
        None => session_cookie(request.headers())
            .ok_or(Error::Unauthorized("send `Authorization: Bearer <token>`, or open the sign-in URL"))?,
    };
    let identity = identify(&app.pool, secret.trim()).await?.ok_or(Error::Unauthorized(
        "the server does not know this token; the state folder holds the current one",
    ))?;
    if !kinds.contains(&identity.kind) {
        let kind = identity.kind.as_str();
        return Err(Error::Forbidden(format!("a {kind} token may not do this")));
    }
    // A session rides on a cookie, which a browser sends by itself: changes need the page's own Origin as well.
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if identity.kind == TokenKind::Session && !safe && !request.headers().contains_key(header::ORIGIN) {
        return Err(Error::Forbidden("a change from a browser must carry its Origin".into()));
    }
    request.extensions_mut().insert(identity);
    Ok(next.run(request).await)
}

/// The token in the sign-in URL.
#[derive(Deserialize)]
pub struct SignIn {
    token: String,
}

/// `GET /sign-in?token=…`: the URL that `serve` prints. Trades the user token for a session cookie.
pub async fn sign_in(State(app): State<App>, Query(query): Query<SignIn>) -> Result<Response> {
    let identity = identify(&app.pool, &query.token).await?;
    if identity.is_none_or(|identity| identity.kind != TokenKind::User) {
        return Err(Error::Unauthorized(
            "this sign-in URL is not (or no longer) valid; open the one printed last",
        ));
    }
    let (_, secret) = create_token(&app.pool, TokenKind::Session, "browser").await?;
    let max_age = i64::from(SESSION_DAYS) * 86_400;
    let secure = if app.tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age}{secure}");
    let mut response = Redirect::to("/").into_response();
    let value = HeaderValue::from_str(&cookie).context("session cookie")?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(response)
}

fn session_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = header_text(headers, header::COOKIE)?;
    let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// A token without its secret.
#[derive(Serialize, ToSchema)]
pub struct Token {
    /// Id.
    pub id: Uuid,
    /// What it is for: `user`, `worker` or `session`.
    pub kind: String,
    /// What its maker called it.
    pub name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A new token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// `user` or `worker`.
    pub kind: TokenKind,
    /// What to call it.
    pub name: String,
}

/// A new token with its secret, shown once.
#[derive(Serialize, ToSchema)]
pub struct CreatedToken {
    /// Id.
    pub id: Uuid,
    /// The secret; the server keeps only its hash.
    pub secret: String,
}

/// List tokens.
#[utoipa::path(get, path = "/api/v1/tokens", operation_id = "list_tokens", tag = "tokens",
    responses((status = 200, body = Vec<Token>)))]
pub async fn list_tokens(State(app): State<App>) -> Result<Json<Vec<Token>>> {
    let tokens = sqlx::query_as!(Token, "select id, kind, name, created_at from token order by id")
        .fetch_all(&app.pool)
        .await?;
    Ok(Json(tokens))
}

/// Make a token. Its secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", operation_id = "create_token", tag = "tokens",
    request_body = NewToken, responses((status = 201, body = CreatedToken)))]
pub async fn post_token(
    State(app): State<App>,
    crate::ApiJson(new): crate::ApiJson<NewToken>,
) -> Result<impl IntoResponse> {
    if new.kind == TokenKind::Session {
        return Err(Error::BadRequest("sessions are made by signing in".into()));
    }
    let (id, secret) = create_token(&app.pool, new.kind, &new.name).await?;
    Ok((axum::http::StatusCode::CREATED, Json(CreatedToken { id, secret })))
}

/// Revoke a token.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", operation_id = "delete_token", tag = "tokens",
    params(("id" = Uuid, Path)), responses((status = 204), (status = 404)))]
pub async fn delete_token(
    State(app): State<App>,
    axum::extract::Path(id): axum::extract::Path<Uuid>,
) -> Result<axum::http::StatusCode> {
    let deleted = sqlx::query!("delete from token where id = $1", id).execute(&app.pool).await?;
    if deleted.rows_affected() == 0 {
        return Err(Error::NotFound(format!("no token {id}")));
    }
    Ok(axum::http::StatusCode::NO_CONTENT)
}
