//! The pool and the migrations.

use anyhow::{Context, Result};
use sqlx::{
    Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{str::FromStr, time::Duration};

/// Connections the server keeps at most.
const CONNECTIONS_MAX: u32 = 24;
/// How long a request waits for a connection before it is answered 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is asked whether it is alive before it is used. One that was not has just answered:
/// sqlx asks when it is given back.
const FRESH: Duration = Duration::from_secs(1);
/// Oldest Postgres the SQL is written for.
const VERSION_MIN: i32 = 140_000;

/// Migrations are append-only, checked in, and run at start under an advisory lock, so that several servers may
/// start at once.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Connects, checks the version and brings the schema up to date.
///
/// # Errors
/// An unreachable or too old Postgres, or a schema that is newer than this server.
pub async fn connect(url: &str) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)
        .context("DATABASE_URL")?
        .application_name("causeway")
        // A statement that runs this long is a bug, and holds locks. So does a server that was stopped or cut off in the
        // middle of a transaction: the others wait for what it holds, the scheduler's lock for example, so long at most.
        .options([("statement_timeout", "60s"), ("idle_in_transaction_session_timeout", "10s")]);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move {
                if about.idle_for > FRESH {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_with(options)
        .await
        .context("connecting to Postgres")?;
    let version: i32 =
        sqlx::query_scalar!(r#"select current_setting('server_version_num')::int as "version!""#)
            .fetch_one(&pool)
            .await?;
    anyhow::ensure!(
        version >= VERSION_MIN,
        "Postgres {} is too old: 14 or newer is needed",
        version / 10_000
    );
    MIGRATIONS.run(&pool).await.context("bringing the schema up to date")?;
    Ok(pool)
}
