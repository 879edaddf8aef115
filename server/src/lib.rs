//! Causeway's server. This file is its table of contents: what an application is, and every route it answers.

use axum::{
    Router,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};
use serde::de::DeserializeOwned;
use sqlx::PgPool;
use std::{collections::BTreeSet, sync::Arc};
use tokio_util::sync::CancellationToken;
use tower_http::{compression::CompressionLayer, limit::RequestBodyLimitLayer, trace::TraceLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub mod analysis;
pub mod auth;
pub mod blobs;
pub mod checkpoints;
pub mod cli;
pub mod client;
pub mod curves;
pub mod database;
pub mod error;
pub mod estimate;
pub mod experiments;
pub mod figures;
pub mod ingest;
pub mod launch;
pub mod leases;
pub mod lines;
pub mod logs;
pub mod measured;
pub mod metrics;
pub mod page;
pub mod pages;
pub mod postgres;
pub mod projects;
pub mod report;
pub mod runs;
pub mod scheduler;
pub mod search;
pub mod serve;
pub mod tls;
pub mod wake;
pub mod workers;

pub use error::{Error, Result};

/// Largest JSON body, bytes.
const JSON_MAX: usize = 8 << 20;

/// What every handler can reach.
#[derive(Clone, Debug)]
pub struct App {
    /// Connections to Postgres.
    pub pool: PgPool,
    /// The object store.
    pub blobs: blobs::Blobs,
    /// Rung when something changed that a held request may wait for.
    pub wake: wake::Wake,
    /// Why runs wait, for those who ask.
    pub reasons: scheduler::Reasons,
    /// The host names this server answers to.
    pub hosts: Hosts,
    /// Whether browsers reach it by TLS, so that they keep their session from plain http.
    pub tls: bool,
    /// How long a lease lasts unless renewed, seconds.
    pub lease_seconds: f64,
    /// Cancelled when the server is to stop: held requests answer at once.
    pub stop: CancellationToken,
}

/// The host names a server answers to: the loopback names, and those it was started with.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Arc<BTreeSet<String>>);

impl Hosts {
    /// The loopback names and these, each with or without a port.
    pub fn new(names: impl IntoIterator<Item = String>) -> Hosts {
        Hosts(Arc::new(names.into_iter().collect()))
    }

    /// Whether a request that names this host is for us. Loopback names count on any port, so that a forwarded port
    /// works; the Origin check still keeps other local pages out.
    pub fn allows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        matches!(name, "127.0.0.1" | "localhost" | "[::1]") || self.0.contains(name) || self.0.contains(host)
    }
}

/// The REST API, described by itself.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Causeway",
        description = "Experiments, runs, curves of k-NN accuracy against α, and the worker protocol. \
            Send `Authorization: Bearer <token>`. Errors are application/problem+json.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(
        causeway_protocol::JournalLine,
        causeway_protocol::RunProgress,
        error::ProblemDetails
    ))
)]
struct Api;

fn user_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(projects::list_projects))
        .routes(routes!(projects::put_project))
        .routes(routes!(experiments::list_experiments, experiments::create_experiment))
        .routes(routes!(experiments::get_experiment_handler))
        .routes(routes!(curves::get_experiment_curves))
        .routes(routes!(runs::list_runs, runs::create_run))
        .routes(routes!(runs::get_run_handler, runs::update_run))
        .routes(routes!(runs::cancel_runs))
        .routes(routes!(runs::cancel_run_handler))
        .routes(routes!(runs::pause_run))
        .routes(routes!(runs::resume_run))
        .routes(routes!(runs::move_run_to_front))
        .routes(routes!(runs::clone_run))
        .routes(routes!(search::list_searches, search::create_search))
        .routes(routes!(search::get_search_handler))
        .routes(routes!(search::list_search_decisions))
        .routes(routes!(search::pause_search))
        .routes(routes!(search::resume_search))
        .routes(routes!(search::extend_search))
        .routes(routes!(search::cancel_search))
        .routes(routes!(metrics::get_metrics))
        .routes(routes!(metrics::export_metrics))
        .routes(routes!(metrics::get_summary))
        .routes(routes!(metrics::list_conflicts))
        .routes(routes!(logs::get_logs))
        .routes(routes!(curves::get_run_curves))
        .routes(routes!(analysis::get_run_spectrum))
        .routes(routes!(analysis::get_run_similarity))
        .routes(routes!(checkpoints::list_checkpoints))
        .routes(routes!(checkpoints::get_checkpoint_handler))
        .routes(routes!(checkpoints::download_checkpoint))
        .routes(routes!(checkpoints::compare_handler))
        .routes(routes!(curves::list_datasets))
        .routes(routes!(workers::list_workers))
        .routes(routes!(workers::drain_worker))
        .routes(routes!(scheduler::list_queue))
        .routes(routes!(auth::list_tokens, auth::post_token))
        .routes(routes!(auth::delete_token))
}

fn worker_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(workers::register_worker))
        .routes(routes!(leases::request_lease))
        .routes(routes!(leases::heartbeat))
        .routes(routes!(leases::renew_lease))
        .routes(routes!(leases::ship_events))
        .routes(routes!(leases::finish_lease))
}

/// What a command may do, by a token of its own.
fn command_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(report::report))
}

/// Bodies of these are streams, so no body limit but their own applies.
fn blob_routes() -> (OpenApiRouter<App>, OpenApiRouter<App>) {
    let user = OpenApiRouter::new().routes(routes!(blobs::put_blob, blobs::patch_blob, blobs::get_blob));
    let worker = OpenApiRouter::new().routes(routes!(
        blobs::put_lease_blob,
        blobs::patch_lease_blob,
        blobs::get_lease_blob
    ));
    (user, worker)
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (user_blobs, worker_blobs) = blob_routes();
    OpenApiRouter::<App>::with_openapi(Api::openapi())
        .merge(user_routes())
        .merge(worker_routes())
        .merge(command_routes())
        .merge(user_blobs)
        .merge(worker_blobs)
        .split_for_parts()
        .1
}

/// Every route of the server.
pub fn router(app: App) -> Router {
    let (user_blobs, worker_blobs) = blob_routes();
    let limit = RequestBodyLimitLayer::new(JSON_MAX);
    let unlimited = axum::extract::DefaultBodyLimit::disable();
    let users = user_routes()
        .split_for_parts()
        .0
        .layer(limit)
        .merge(user_blobs.split_for_parts().0.layer(unlimited))
        .layer(from_fn_with_state(app.clone(), auth::users_only));
    let workers = worker_routes()
        .split_for_parts()
        .0
        .layer(limit)
        .merge(worker_blobs.split_for_parts().0.layer(unlimited))
        .layer(from_fn_with_state(app.clone(), auth::workers_only));
    let document = openapi();
    let open = Router::new()
        .route("/api/v1/health", get(|| async { axum::Json(serde_json::json!({ "status": "ok" })) }))
        .route("/api/v1/openapi.json", get(move || async move { axum::Json(document) }))
        .route("/sign-in", get(auth::sign_in))
        .merge(command_routes().split_for_parts().0.layer(limit));
    let pages = pages::router().layer(limit).layer(from_fn_with_state(app.clone(), auth::users_only));
    Router::new()
        .merge(open)
        .merge(pages::open_router())
        .merge(pages)
        .merge(users)
        .merge(workers)
        .fallback(|| async { Error::NotFound("there is nothing at this address".into()) })
        .layer(from_fn_with_state(app.clone(), auth::same_origin))
        .layer(from_fn(pages::errors_as_pages))
        .layer(CompressionLayer::new())
        .layer(TraceLayer::new_for_http())
        .with_state(app)
}

/// A JSON body. Unlike axum's own extractor it answers problem+json, and names the field.
#[derive(Debug)]
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        if !is_json(request.headers()) {
            return Err(Error::UnsupportedMediaType);
        }
        let bytes =
            axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
                match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        Error::TooLarge(format!("a body has at most {JSON_MAX} bytes"))
                    }
                    _ => Error::BrokenOff(rejection.body_text()),
                }
            })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let field = error.path().to_string();
            let rule = error.inner().to_string();
            Error::Invalid(vec![causeway_protocol::Problem { field, rule }])
        })?;
        reader.end().map_err(|error| Error::BadRequest(format!("after the JSON document: {error}")))?;
        Ok(ApiJson(value))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}
