//! The dashboard: HTML that reads without JavaScript. One file per page, its queries beside it; what several pages
//! share is here: the frame around them, the theme, and how answers are sent.

mod accuracies;
mod answer;
mod assets;
mod classes;
mod compare;
mod experiment;
mod figure;
mod format;
mod home;
mod log;
mod numbers;
mod protocols;
mod queue;
mod run;
mod run_list;
mod search;
mod search_figures;
mod searches;
mod similarity;
mod spec_view;
mod spectrum;
mod values;
mod workers;

use crate::{App, Error, Result};
use askama::Template;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Query, Request},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Scripts and styles come from this server only. The one exception is the style element that Observable Plot 0.6
/// puts into each of its SVGs, named by its digest; the browser test fails if a new version changes it.
const POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self' 'sha256-jSYQUrW7J0b3jPqhZP9C2Xh1PyJKHKXd4s0fpGGKrww='; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Largest problem+json body that is turned into a page, bytes.
const PROBLEM_MAX: usize = 64 << 10;

/// The pages of signed-in people.
pub fn router() -> Router<App> {
    Router::new()
        .route("/", get(home::show))
        .route("/experiments/{id}", get(experiment::show))
        .route("/experiments/{id}/alpha.svg", get(experiment::paper))
        .route("/experiments/{id}/curves.csv", get(experiment::csv))
        .route("/runs/{id}", get(run::show))
        .route("/runs/{id}/do", post(run::act))
        .route("/runs/{id}/classes.csv", get(classes::csv))
        .route("/runs/{id}/spectrum.csv", get(spectrum::csv))
        .route("/runs/{id}/similarity.csv", get(similarity::csv))
        .route("/tiles/{sha256}", get(crate::analysis::tiles))
        .route("/fragments/runs/{id}/log", get(log::fragment))
        .route("/searches", get(searches::list))
        .route("/searches/{id}", get(search::show))
        .route("/searches/{id}/pause", post(search::pause))
        .route("/searches/{id}/resume", post(search::resume))
        .route("/searches/{id}/extend", post(search::extend))
        .route("/searches/{id}/cancel", post(search::cancel))
        .route("/compare", get(compare::show))
        .route("/workers", get(workers::show))
        .route("/workers/{id}/service", post(workers::service))
        .route("/queue", get(queue::show))
}

/// What everybody may have: the stylesheet and scripts, and the choice of theme.
pub fn open_router() -> Router<App> {
    Router::new().route("/assets/{name}", get(assets::show)).route("/theme", get(choose_theme))
}

/// The frame around a page.
#[derive(Debug, Default)]
pub struct Shell {
    /// `light`, `dark`, or empty for the system's.
    pub theme: &'static str,
    /// What the theme link switches to.
    pub next_theme: &'static str,
    /// Path and query of this page, to come back to.
    pub here: String,
    /// Runs waiting.
    pub queued: i64,
    /// Workers heard of lately.
    pub ready: i64,
    /// Workers in all.
    pub workers: i64,
    /// Whether the page asks for news every two seconds.
    pub live: bool,
    /// Whether somebody is signed in, so that there is something to navigate to.
    pub signed_in: bool,
}

impl Shell {
    /// The frame for a request; counts for the navigation come from the database.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn load(app: &App, request: &Asked, live: bool) -> Result<Shell> {
        let counts = sqlx::query!(
            r#"select (select count(*) from run where state = 'queued') as "queued!",
                      (select count(*) from worker) as "workers!",
                      (select count(*) from worker_pulse where seen_at > now() - make_interval(secs => $1))
                        as "ready!""#,
            crate::scheduler::suspect_seconds(app.lease_seconds)
        )
        .fetch_one(&app.pool)
        .await?;
        let shell = Shell {
            queued: counts.queued,
            ready: counts.ready,
            workers: counts.workers,
            live,
            ..Shell::bare(request)
        };
        Ok(Shell { signed_in: true, ..shell })
    }

    /// The frame without a database: for errors and for signing in.
    pub fn bare(request: &Asked) -> Shell {
        let next_theme = match request.theme {
            "" => "dark",
            "dark" => "light",
            _ => "system",
        };
        Shell { theme: request.theme, next_theme, here: request.here.clone(), ..Shell::default() }
    }

    /// Address of an asset, with its digest so that browsers may keep it.
    pub fn asset(&self, name: &str) -> String {
        assets::address(name)
    }
}

/// What every page needs to know about its request.
#[derive(Clone, Debug)]
pub struct Asked {
    theme: &'static str,
    here: String,
    etag: Option<String>,
}

impl Asked {
    fn new(headers: &HeaderMap, uri: &axum::http::Uri) -> Asked {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
        let theme = text(header::COOKIE)
            .split(';')
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == "causeway_theme")
            .map_or("", |(_, value)| value);
        let theme = match theme {
            "light" => "light",
            "dark" => "dark",
            _ => "",
        };
        let here = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let etag = Some(text(header::IF_NONE_MATCH).to_owned()).filter(|etag| !etag.is_empty());
        Asked { theme, here, etag }
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Asked {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> std::result::Result<Self, Self::Rejection> {
        Ok(Asked::new(&parts.headers, &parts.uri))
    }
}

/// Renders a page. An unchanged one is not sent again: pages ask for news every two seconds.
pub fn page(template: &impl Template, asked: &Asked) -> Result<Response> {
    let html = template.render().map_err(|error| Error::Internal(error.into()))?;
    let digest = causeway_protocol::hex(&Sha256::digest(&html)[..12]);
    // Weak: what travels is a compressed encoding of it.
    let etag = format!("W/\"{digest}\"");
    let mut response = if asked.etag.as_deref() == Some(etag.as_str()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Html(html).into_response()
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    add_headers(&mut response);
    Ok(response)
}

fn add_headers(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("cookie"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
}

/// A page that says one thing: an error, or how to sign in.
#[derive(Template)]
#[template(path = "message.html")]
struct Message<'a> {
    shell: Shell,
    title: &'a str,
    detail: &'a str,
    status: u16,
}

/// The page for an error.
pub fn error_page(status: StatusCode, title: &str, detail: &str) -> Html<String> {
    message(&Asked { theme: "", here: "/".to_owned(), etag: None }, status, title, detail)
}

/// The page for somebody who is not signed in.
pub fn sign_in_page() -> Html<String> {
    error_page(StatusCode::UNAUTHORIZED, "Sign in", "")
}

fn message(asked: &Asked, status: StatusCode, title: &str, detail: &str) -> Html<String> {
    let page = Message { shell: Shell::bare(asked), title, detail, status: status.as_u16() };
    Html(page.render().unwrap_or_else(|_| format!("{} {}", status.as_u16(), status)))
}

/// Middleware: what API clients get as problem+json, browsers get as a page that says the same.
pub async fn errors_as_pages(request: Request, next: Next) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let browser = accept.contains("text/html") && !request.uri().path().starts_with("/api/");
    let asked = Asked::new(request.headers(), request.uri());
    let response = next.run(request).await;
    let problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    if !browser || !problem {
        return response;
    }
    #[derive(Deserialize)]
    struct Problem {
        title: String,
        detail: String,
    }
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, PROBLEM_MAX).await.unwrap_or_default();
    let Ok(problem) = serde_json::from_slice::<Problem>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    let html = message(&asked, parts.status, &problem.title, &problem.detail);
    let mut response = (parts.status, html).into_response();
    add_headers(&mut response);
    response
}

#[derive(Deserialize)]
struct ThemeChoice {
    to: String,
    back: String,
}

/// `GET /theme?to=dark&back=/queue`: keeps the choice in a cookie, so that the server renders it and nothing flashes.
async fn choose_theme(Query(choice): Query<ThemeChoice>) -> Response {
    let theme = match choice.to.as_str() {
        "light" => "light",
        "dark" => "dark",
        _ => "system",
    };
    let own = choice.back.starts_with('/') && !choice.back.starts_with("//") && !choice.back.contains('\\');
    let mut response = Redirect::to(if own { &choice.back } else { "/" }).into_response();
    let cookie = format!("causeway_theme={theme}; Path=/; Max-Age=31536000; SameSite=Lax; HttpOnly");
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}
