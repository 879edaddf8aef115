//! The object store: bytes named by their sha256. A body is streamed to a temporary name, hashed on the way, made
//! durable and renamed, so that a name never stands for half a file, and memory does not grow with its size.

use crate::{App, Error, Result, error::found, leases};
use anyhow::Context;
use axum::{
    body::Body,
    extract::{Path as UrlPath, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use uuid::Uuid;

/// Largest blob, bytes: a ViT-g in f32 with its moments fits.
const BLOB_MAX: u64 = 32 << 30;
/// Write buffer, bytes.
const BUFFER: usize = 1 << 20;
/// An upload that nobody has written to for so long was interrupted.
const ABANDONED: Duration = Duration::from_secs(3600);
/// How often blobs that nothing refers to are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// An unreferenced blob younger than this may be about to be referred to, minutes.
const SWEEP_AGE_MINUTES: i32 = 60;

/// The folder that holds the blobs.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<PathBuf>);

impl Blobs {
    /// Opens the store, and clears what interrupted uploads left; another server may be receiving into the same folder.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Blobs> {
        let incoming = folder.join("incoming");
        std::fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
        for entry in std::fs::read_dir(&incoming)?.flatten() {
            let written = entry.metadata().and_then(|file| file.modified()).ok();
            if written.and_then(|at| at.elapsed().ok()).is_some_and(|idle| idle > ABANDONED) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Blobs(Arc::new(folder.to_owned())))
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.0.join(&sha256[..2]).join(sha256)
    }

    async fn receive(&self, sha256: &str, body: Body) -> Result<u64> {
        let fresh = self.0.join("incoming").join(Uuid::new_v4().to_string());
        let received = self.receive_to(&fresh, sha256, body).await;
        if received.is_err() {
            let _ = tokio::fs::remove_file(&fresh).await;
        }
        received
    }

    async fn receive_to(&self, fresh: &Path, sha256: &str, body: Body) -> Result<u64> {
        let file = tokio::fs::File::create_new(fresh).await.map_err(storage)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let (mut hash, mut bytes) = (Sha256::new(), 0u64);
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Error::BrokenOff(error.to_string()))?;
            bytes += chunk.len() as u64;
            if bytes > BLOB_MAX {
                return Err(Error::TooLarge(format!("a blob has at most {BLOB_MAX} bytes")));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(storage)?;
        }
        file.flush().await.map_err(storage)?;
        file.into_inner().sync_all().await.map_err(storage)?;
        let got = causeway_protocol::hex(&hash.finalize());
        if got != sha256 {
            return Err(Error::BadRequest(format!(
                "the body's sha256 is {got}, not {sha256}; nothing was kept"
            )));
        }
        let path = self.path(sha256);
        let folder = path.parent().context("blob path")?;
        tokio::fs::create_dir_all(folder).await.map_err(storage)?;
        tokio::fs::rename(fresh, &path).await.map_err(storage)?;
        // The rename is durable once the folder is.
        tokio::fs::File::open(folder).await.map_err(storage)?.sync_all().await.map_err(storage)?;
        Ok(bytes)
    }

    async fn send(&self, sha256: &str) -> Result<Response> {
        let file = match tokio::fs::File::open(self.path(sha256)).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("no blob {sha256}")));
            }
            Err(error) => return Err(Error::Internal(error.into())),
        };
        let length = file.metadata().await.map_err(|error| Error::Internal(error.into()))?.len();
        let headers = [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::ETAG, format!("\"{sha256}\"")),
        ];
        Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, BUFFER))).into_response())
    }
}

fn storage(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::StorageFull("the server's disk is full: free space in its state folder, then retry".into())
        }
        _ => Error::Internal(error.into()),
    }
}

fn check_name(sha256: &str) -> Result<()> {
    let hex = sha256.len() == 64 && sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if hex {
        Ok(())
    } else {
        Err(Error::BadRequest("a blob is named by its sha256: 64 lower-case hex digits".into()))
    }
}

async fn note(conn: &mut PgConnection, sha256: &str, bytes: u64) -> Result<()> {
    sqlx::query!(
        "insert into blob (sha256, bytes) values ($1, $2) on conflict (sha256) do update set created_at = now()",
        sha256,
        bytes.cast_signed()
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn known(pool: &PgPool, sha256: &str) -> Result<i64> {
    let bytes =
        sqlx::query_scalar!("select bytes from blob where sha256 = $1", sha256).fetch_optional(pool).await?;
    found(bytes, || format!("no blob {sha256}"))
}

/// Upload a file, for example weights to evaluate. The body's sha256 must be the name.
#[utoipa::path(put, path = "/api/v1/blobs/{sha256}", operation_id = "put_blob", tag = "blobs",
    params(("sha256" = String, Path)), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201), (status = 200, description = "Was here already"),
        (status = 400, body = crate::error::ProblemDetails)))]
pub async fn put_blob(
    State(app): State<App>,
    UrlPath(sha256): UrlPath<String>,
    body: Body,
) -> Result<StatusCode> {
    check_name(&sha256)?;
    if known(&app.pool, &sha256).await.is_ok() {
        // Keeps it from being swept before it is referred to.
        let mut conn = app.pool.acquire().await?;
        sqlx::query!("update blob set created_at = now() where sha256 = $1", sha256)
            .execute(&mut *conn)
            .await?;
        return Ok(StatusCode::OK);
    }
    let bytes = app.blobs.receive(&sha256, body).await?;
    let mut conn = app.pool.acquire().await?;
    note(&mut conn, &sha256, bytes).await?;
    Ok(StatusCode::CREATED)
}

/// Download a file.
#[utoipa::path(get, path = "/api/v1/blobs/{sha256}", operation_id = "get_blob", tag = "blobs",
    params(("sha256" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404)))]
pub async fn get_blob(State(app): State<App>, UrlPath(sha256): UrlPath<String>) -> Result<Response> {
    check_name(&sha256)?;
    known(&app.pool, &sha256).await?;
    app.blobs.send(&sha256).await
}

/// The file of a blob as an image of this kind, for pages. What is named by its contents never changes.
///
/// # Errors
/// 404 if there is none.
pub async fn image(app: &App, sha256: &str, kind: &'static str) -> Result<Response> {
    check_name(sha256)?;
    let mut response = app.blobs.send(sha256).await?;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("private, max-age=3600"));
    Ok(response)
}

/// The fence in the query string of a blob request.
#[derive(Debug, Deserialize)]
pub struct EpochQuery {
    epoch: i64,
}

/// Upload a file of an attempt.
#[utoipa::path(put, path = "/api/v1/leases/{id}/blobs/{sha256}", operation_id = "put_lease_blob",
    tag = "worker protocol",
    params(("id" = Uuid, Path), ("sha256" = String, Path), ("epoch" = i64, Query)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201), (status = 200), (status = 409, body = crate::error::ProblemDetails)))]
pub async fn put_lease_blob(
    State(app): State<App>,
    UrlPath((id, sha256)): UrlPath<(Uuid, String)>,
    Query(query): Query<EpochQuery>,
    body: Body,
) -> Result<StatusCode> {
    check_name(&sha256)?;
    // Before the bytes, so that a stale worker does not send them in vain; and again with the row that names them.
    let mut tx = app.pool.begin().await?;
    leases::fence(&mut tx, id, query.epoch).await?;
    tx.commit().await?;
    if known(&app.pool, &sha256).await.is_ok() {
        return Ok(StatusCode::OK);
    }
    let bytes = app.blobs.receive(&sha256, body).await?;
    let mut tx = app.pool.begin().await?;
    leases::fence(&mut tx, id, query.epoch).await?;
    note(&mut tx, &sha256, bytes).await?;
    tx.commit().await?;
    Ok(StatusCode::CREATED)
}

/// Download a file that an attempt needs: a resume state, a checkpoint, weights that were uploaded.
#[utoipa::path(get, path = "/api/v1/leases/{id}/blobs/{sha256}", operation_id = "get_lease_blob",
    tag = "worker protocol",
    params(("id" = Uuid, Path), ("sha256" = String, Path), ("epoch" = i64, Query)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404),
        (status = 409, body = crate::error::ProblemDetails)))]
pub async fn get_lease_blob(
    State(app): State<App>,
    UrlPath((id, sha256)): UrlPath<(Uuid, String)>,
    Query(query): Query<EpochQuery>,
) -> Result<Response> {
    check_name(&sha256)?;
    let mut tx = app.pool.begin().await?;
    let lease = leases::fence(&mut tx, id, query.epoch).await?;
    // A worker reads what its run names, and what the run's attempts have made; not any blob.
    let readable = sqlx::query_scalar!(
        r#"select exists (
             select from run r where r.id = $1
               and (r.checkpoint = $2 or $2 in (r.spec #>> '{weights,theta0,blob}', r.spec #>> '{weights,theta1,blob}')
                    or r.spec #> '{weights,theta1,soup,checkpoints}' ? $2)
           ) or exists (select from resume_state where run_id = $1 and blob = $2)
             or exists (select from feature_file f join run p on p.id = f.run_id
                        where p.part_of = $1 and f.blob = $2) as "readable!""#,
        lease.run_id,
        sha256
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    known(&app.pool, &sha256).await?;
    if !readable {
        return Err(Error::Forbidden("this lease's run does not name that blob".into()));
    }
    app.blobs.send(&sha256).await
}

/// Deletes blobs that nothing refers to, for example the resume states of runs that have ended, until told to stop.
pub async fn sweep(app: App, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = sweep_once(&app).await {
            tracing::warn!(%error, "sweeping blobs failed; the next round tries again");
        }
    }
}

async fn sweep_once(app: &App) -> Result<()> {
    // The row goes first: a file without a row is only waste, a row without its file would be a lie.
    let gone = sqlx::query_scalar!(
        "delete from blob b where b.sha256 in (
           select b.sha256 from blob b
           where b.created_at < now() - make_interval(mins => $1)
             and not exists (select from checkpoint c where c.digest = b.sha256)
             and not exists (select from resume_state s where s.blob = b.sha256)
             and not exists (select from feature_file f where f.blob = b.sha256)
             and not exists (select from analysis a where a.blob = b.sha256)
             and not exists (select from run r where b.sha256 in
                 (r.spec #>> '{weights,theta0,blob}', r.spec #>> '{weights,theta1,blob}')
                 or r.spec #> '{weights,theta1,soup,checkpoints}' ? b.sha256)
           limit 100)
         returning sha256",
        SWEEP_AGE_MINUTES
    )
    .fetch_all(&app.pool)
    .await?;
    for sha256 in gone {
        if let Err(error) = tokio::fs::remove_file(app.blobs.path(&sha256)).await
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, sha256, "an unreferenced blob's file stays");
        }
    }
    Ok(())
}
