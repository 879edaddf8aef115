//! What a run printed: the last lines in the page, later ones by cursor, so that only new lines travel.

use crate::{App, Error, Result};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

/// Lines in the page when it is opened.
const TAIL: i64 = 400;
/// Most lines in one fragment.
const FRAGMENT: i64 = 500;

/// A printed line.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The attempt that printed it.
    pub attempt: i32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text, without terminal control sequences.
    pub text: String,
}

/// Lines, and where to go on from.
#[derive(Debug, Default, Serialize)]
pub struct Lines {
    /// The lines in the order in which they arrived.
    pub lines: Vec<Line>,
    /// Send this as `after` for later lines.
    pub cursor: String,
}

/// Where to go on from.
#[derive(Debug, Default, Deserialize)]
pub struct After {
    #[serde(default)]
    after: String,
}

/// Place of a line in the order of arrival. The two streams count their positions apart, so a position alone does not
/// say which lines have been seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Cursor {
    attempt: i32,
    micros: i64,
    stream: String,
    position: i64,
}

impl Cursor {
    fn parse(text: &str) -> Option<Cursor> {
        let mut parts = text.split('.');
        let (attempt, micros) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (stream, position) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        Some(Cursor { attempt, micros, stream, position })
    }

    fn text(&self) -> String {
        format!("{}.{}.{}.{}", self.attempt, self.micros, self.stream, self.position)
    }
}

/// `GET /fragments/runs/{id}/log?after=…`: lines that came after the cursor.
pub async fn fragment(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<After>,
) -> Result<Json<Lines>> {
    let cursor = match query.after.as_str() {
        "" => Cursor::default(),
        text => Cursor::parse(text)
            .ok_or_else(|| Error::BadRequest(format!("after: `{text}` is no cursor of this log")))?,
    };
    lines_after(&app.pool, id, &cursor).await.map(Json)
}

async fn lines_after(pool: &PgPool, run: Uuid, cursor: &Cursor) -> Result<Lines> {
    let rows = sqlx::query!(
        r#"select attempt, stream, position, text, (extract(epoch from received_at) * 1000000)::int8 as "micros!"
           from log_line
           where run_id = $1 and attempt >= $2
             and (attempt, (extract(epoch from received_at) * 1000000)::int8, stream, position) > ($2, $3, $4, $5)
           order by attempt, received_at, stream, position limit $6"#,
        run,
        cursor.attempt,
        cursor.micros,
        cursor.stream,
        cursor.position,
        FRAGMENT
    )
    .fetch_all(pool)
    .await?;
    let rows = rows.into_iter().map(|row| {
        (
            Cursor { attempt: row.attempt, micros: row.micros, stream: row.stream, position: row.position },
            row.text,
        )
    });
    Ok(collect(rows.collect(), cursor))
}

/// The last lines of a run.
///
/// # Errors
/// If the database does not answer.
pub async fn tail(pool: &PgPool, run: Uuid) -> Result<Lines> {
    let rows = sqlx::query!(
        r#"select attempt, stream, position, text, (extract(epoch from received_at) * 1000000)::int8 as "micros!"
           from log_line where run_id = $1
           order by attempt desc, received_at desc, stream desc, position desc limit $2"#,
        run,
        TAIL
    )
    .fetch_all(pool)
    .await?;
    let rows = rows.into_iter().rev().map(|row| {
        (
            Cursor { attempt: row.attempt, micros: row.micros, stream: row.stream, position: row.position },
            row.text,
        )
    });
    Ok(collect(rows.collect(), &Cursor::default()))
}

fn collect(rows: Vec<(Cursor, String)>, before: &Cursor) -> Lines {
    let cursor = rows.last().map_or(before, |(cursor, _)| cursor).text();
    let lines = rows.into_iter().map(|(cursor, text)| Line {
        attempt: cursor.attempt,
        stream: cursor.stream,
        text: plain(&text),
    });
    Lines { lines: lines.collect(), cursor }
}

/// A line as a terminal would have left it: without colours, and after the last carriage return.
fn plain(text: &str) -> String {
    let text = text.trim_end_matches('\r');
    let text = text.rsplit('\r').next().unwrap_or(text);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\u{1b}' {
            if char == '\t' || !char.is_control() {
                out.push(char);
            }
            continue;
        }
        // A control sequence ends with a letter (or with what no sequence may hold).
        if chars.next() == Some('[') {
            for char in chars.by_ref() {
                if char.is_ascii_alphabetic() || !char.is_ascii() {
                    break;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_bar_is_its_last_state_and_colours_are_gone() {
        assert_eq!(plain("  1 %\r 50 %\r100 %"), "100 %");
        assert_eq!(plain("\u{1b}[32mINFO\u{1b}[0m loss 1.2"), "INFO loss 1.2");
        assert_eq!(plain("done\r"), "done");
    }

    #[test]
    fn a_cursor_reads_back() {
        let cursor = Cursor { attempt: 2, micros: 17, stream: "stderr".to_owned(), position: 400 };
        assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        assert_eq!(Cursor::parse("2.17"), None);
    }
}
