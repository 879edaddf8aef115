//! The object store: bytes named by their sha256. They come in whole (PUT), or piece by piece (PATCH) so that a large file
//! crosses a bad line; a name never stands for half a file, and memory does not grow with its size.

mod incoming;

use crate::{App, Error, Result, auth::Identity, error::found, leases};
use anyhow::Context;
use axum::{
    Extension,
    body::Body,
    extract::{Path as UrlPath, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use causeway_protocol::UPLOAD_OFFSET;
use incoming::{Incoming, Piece};
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};
use std::{
    io::{ErrorKind, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::io::AsyncSeekExt;
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use uuid::Uuid;

/// Largest blob, bytes: a ViT-g in f32 with its moments fits.
const BLOB_MAX: u64 = 32 << 30;
/// Write buffer, bytes.
const BUFFER: usize = 1 << 20;
/// How often blobs that nothing refers to are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// An unreferenced blob younger than this may be about to be referred to, minutes.
const SWEEP_AGE_MINUTES: i32 = 60;

/// The folder that holds the blobs.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<PathBuf>);

impl Blobs {
    /// Opens the store. Other servers may have the same folder open; uploads in progress stay.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Blobs> {
        let incoming = folder.join("incoming");
        std::fs::create_dir_all(&incoming).with_context(|| format!("making {}", incoming.display()))?;
        Ok(Blobs(Arc::new(folder.to_owned())))
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.0.join(&sha256[..2]).join(sha256)
    }

    /// What a sender has sent of a blob. Each has a file of its own: another's wrong bytes do not get into it.
    fn incoming(&self, sha256: &str, sender: Uuid) -> Incoming {
        Incoming::at(self.0.join("incoming").join(format!("{sha256}.{sender}")))
    }

    /// Takes a whole blob, or nothing; in a task of its own, which cleans up when the sender is cut off.
    async fn receive(&self, sha256: String, body: Body) -> Result<u64> {
        let blobs = self.clone();
        let work = async move {
            let incoming = blobs.incoming(&sha256, Uuid::new_v4());
            let received = async {
                let bytes = incoming.take(Piece { offset: 0, length: BLOB_MAX }, body).await?;
                incoming.finish(bytes, &sha256, blobs.path(&sha256)).await?;
                Ok(bytes)
            };
            let received = received.await;
            if received.is_err() {
                incoming.forget().await;
            }
            received
        };
        tokio::spawn(work).await.context("taking a blob")?
    }

    /// The file, or what the request has not got of it yet (`Range: bytes=N-`).
    async fn send(&self, sha256: &str, headers: &HeaderMap) -> Result<Response> {
        let internal = |error: std::io::Error| Error::Internal(error.into());
        let mut file = match tokio::fs::File::open(self.path(sha256)).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("no blob {sha256}")));
            }
            Err(error) => return Err(internal(error)),
        };
        let length = file.metadata().await.map_err(internal)?.len();
        let start = range_start(headers).filter(|start| *start < length).unwrap_or(0);
        file.seek(SeekFrom::Start(start)).await.map_err(internal)?;
        let about = [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH, (length - start).to_string()),
            (header::ETAG, format!("\"{sha256}\"")),
        ];
        let body = Body::from_stream(ReaderStream::with_capacity(file, BUFFER));
        if start == 0 {
            return Ok((about, body).into_response());
        }
        let range = [(header::CONTENT_RANGE, format!("bytes {start}-{}/{length}", length - 1))];
        Ok((StatusCode::PARTIAL_CONTENT, about, range, body).into_response())
    }
}

/// Where a request wants a file to begin. Other kinds of ranges are answered with all of it, as HTTP allows.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
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

/// True if the blob is here; keeps it from being swept before it is referred to.
async fn refresh(pool: &PgPool, sha256: &str) -> Result<bool> {
    let touched =
        sqlx::query!("update blob set created_at = now() where sha256 = $1", sha256).execute(pool).await?;
    Ok(touched.rows_affected() > 0)
}

/// An answer that tells how much of a blob has come.
fn arrived(status: impl IntoResponse, bytes: u64) -> Response {
    ([(UPLOAD_OFFSET, bytes.to_string())], status).into_response()
}

/// 404, with what the sender has sent already.
async fn absent(app: &App, sha256: &str, sender: Uuid) -> Result<Response> {
    let bytes = app.blobs.incoming(sha256, sender).bytes().await?;
    Ok(arrived(Error::NotFound(format!("no blob {sha256}")), bytes))
}

/// Takes a piece, and makes the blob once it is whole; `lease` must hold then. In a task of its own: what has come is kept
/// when its sender is cut off, and hashing a large file takes longer than some proxies wait.
async fn take(
    app: App,
    sha256: String,
    sender: Uuid,
    piece: Piece,
    body: Body,
    lease: Option<(Uuid, i64)>,
) -> Result<Response> {
    let work = async move {
        let incoming = app.blobs.incoming(&sha256, sender);
        let bytes = incoming.take(piece, body).await?;
        if bytes < piece.length {
            return Ok(arrived(StatusCode::NO_CONTENT, bytes));
        }
        incoming.finish(bytes, &sha256, app.blobs.path(&sha256)).await?;
        let mut tx = app.pool.begin().await?;
        if let Some((id, epoch)) = lease {
            leases::fence(&mut tx, id, epoch).await?;
        }
        note(&mut tx, &sha256, bytes).await?;
        tx.commit().await?;
        Ok(arrived(StatusCode::CREATED, bytes))
    };
    tokio::spawn(work).await.context("taking a piece of a blob")?
}

/// Upload a file, for example weights to evaluate. The body's sha256 must be the name. A body that breaks off leaves
/// nothing: PATCH goes on after a cut.
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
    if refresh(&app.pool, &sha256).await? {
        return Ok(StatusCode::OK);
    }
    let bytes = app.blobs.receive(sha256.clone(), body).await?;
    let mut conn = app.pool.acquire().await?;
    note(&mut conn, &sha256, bytes).await?;
    Ok(StatusCode::CREATED)
}

/// Upload a piece of a file. `Upload-Offset` says how many bytes come before it, which must be as many as are here; HEAD
/// tells how many those are, and so does a refusal. What arrives of a piece is kept, for a day and across restarts. With
/// the last byte of `Upload-Length` the blob is made, if its sha256 is its name.
#[utoipa::path(patch, path = "/api/v1/blobs/{sha256}", operation_id = "patch_blob", tag = "blobs",
    params(("sha256" = String, Path), ("Upload-Offset" = u64, Header), ("Upload-Length" = u64, Header)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "The blob is whole"), (status = 200, description = "Was here already"),
        (status = 204, description = "Taken", headers(("Upload-Offset" = u64, description = "Bytes that are here"))),
        (status = 400, body = crate::error::ProblemDetails, description = "Also where the bytes are not what the name says"),
        (status = 409, body = crate::error::ProblemDetails, description = "Another number of bytes is here",
            headers(("Upload-Offset" = u64, description = "Bytes that are here"))),
        (status = 413, body = crate::error::ProblemDetails)))]
pub async fn patch_blob(
    State(app): State<App>,
    Extension(sender): Extension<Identity>,
    UrlPath(sha256): UrlPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_name(&sha256)?;
    let piece = Piece::of(&headers)?;
    if refresh(&app.pool, &sha256).await? {
        return Ok(StatusCode::OK.into_response());
    }
    take(app, sha256, sender.token_id, piece, body, None).await
}

/// Download a file; `Range: bytes=N-` goes on after a cut. Where there is none, `Upload-Offset` tells how much of it the same token has sent.
#[utoipa::path(get, path = "/api/v1/blobs/{sha256}", operation_id = "get_blob", tag = "blobs",
    params(("sha256" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = crate::error::ProblemDetails,
            headers(("Upload-Offset" = u64, description = "Bytes of an unfinished upload")))))]
pub async fn get_blob(
    State(app): State<App>,
    Extension(sender): Extension<Identity>,
    UrlPath(sha256): UrlPath<String>,
    headers: HeaderMap,
) -> Result<Response> {
    check_name(&sha256)?;
    match file(&app, &sha256, &headers).await {
        Err(Error::NotFound(_)) => absent(&app, &sha256, sender.token_id).await,
        answer => answer,
    }
}

/// The file of a blob, from where the request wants it.
///
/// # Errors
/// 404 if there is none.
pub async fn file(app: &App, sha256: &str, headers: &HeaderMap) -> Result<Response> {
    known(&app.pool, sha256).await?;
    app.blobs.send(sha256, headers).await
}

/// The file of a blob as an image of this kind, for pages. What is named by its contents never changes.
///
/// # Errors
/// 404 if there is none.
pub async fn image(app: &App, sha256: &str, kind: &'static str) -> Result<Response> {
    check_name(sha256)?;
    let mut response = app.blobs.send(sha256, &HeaderMap::new()).await?;
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

/// Upload a file of an attempt, whole.
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
    if refresh(&app.pool, &sha256).await? {
        return Ok(StatusCode::OK);
    }
    let bytes = app.blobs.receive(sha256.clone(), body).await?;
    let mut tx = app.pool.begin().await?;
    leases::fence(&mut tx, id, query.epoch).await?;
    note(&mut tx, &sha256, bytes).await?;
    tx.commit().await?;
    Ok(StatusCode::CREATED)
}

/// Upload a piece of a file of an attempt, as `patch_blob` does. HEAD tells where to go on.
#[utoipa::path(patch, path = "/api/v1/leases/{id}/blobs/{sha256}", operation_id = "patch_lease_blob",
    tag = "worker protocol",
    params(("id" = Uuid, Path), ("sha256" = String, Path), ("epoch" = i64, Query),
        ("Upload-Offset" = u64, Header), ("Upload-Length" = u64, Header)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "The blob is whole"), (status = 200, description = "Was here already"),
        (status = 204, description = "Taken", headers(("Upload-Offset" = u64, description = "Bytes that are here"))),
        (status = 400, body = crate::error::ProblemDetails, description = "Also where the bytes are not what the name says"),
        (status = 409, body = crate::error::ProblemDetails, description = "A stale lease, or another number of bytes is here",
            headers(("Upload-Offset" = u64, description = "Bytes that are here"))),
        (status = 413, body = crate::error::ProblemDetails)))]
pub async fn patch_lease_blob(
    State(app): State<App>,
    Extension(sender): Extension<Identity>,
    UrlPath((id, sha256)): UrlPath<(Uuid, String)>,
    Query(query): Query<EpochQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_name(&sha256)?;
    let piece = Piece::of(&headers)?;
    let mut tx = app.pool.begin().await?;
    leases::fence(&mut tx, id, query.epoch).await?;
    tx.commit().await?;
    if refresh(&app.pool, &sha256).await? {
        return Ok(StatusCode::OK.into_response());
    }
    take(app, sha256, sender.token_id, piece, body, Some((id, query.epoch))).await
}

/// Download a file that an attempt needs: a resume state, a checkpoint, weights that were uploaded.
#[utoipa::path(get, path = "/api/v1/leases/{id}/blobs/{sha256}", operation_id = "get_lease_blob",
    tag = "worker protocol",
    params(("id" = Uuid, Path), ("sha256" = String, Path), ("epoch" = i64, Query)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = crate::error::ProblemDetails,
            headers(("Upload-Offset" = u64, description = "Bytes of an unfinished upload"))),
        (status = 409, body = crate::error::ProblemDetails)))]
pub async fn get_lease_blob(
    State(app): State<App>,
    Extension(sender): Extension<Identity>,
    UrlPath((id, sha256)): UrlPath<(Uuid, String)>,
    Query(query): Query<EpochQuery>,
    headers: HeaderMap,
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
    match known(&app.pool, &sha256).await {
        Ok(_) => {}
        Err(Error::NotFound(_)) => return absent(&app, &sha256, sender.token_id).await,
        Err(error) => return Err(error),
    }
    if !readable {
        return Err(Error::Forbidden("this lease's run does not name that blob".into()));
    }
    app.blobs.send(&sha256, &headers).await
}

/// Deletes blobs that nothing refers to, for example the resume states of runs that have ended, and uploads that nobody goes
/// on with, until told to stop.
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
    let folder = app.blobs.0.join("incoming");
    let expired = tokio::task::spawn_blocking(move || incoming::expire(&folder)).await;
    expired.context("looking for unfinished uploads")?.map_err(storage)?;
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
