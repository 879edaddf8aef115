//! Cursor pagination: a page says where the next one begins, so that rows arriving meanwhile shift nothing.

use crate::{Error, Result};
use serde::Serialize;
use utoipa::ToSchema;

/// Rows on a page unless asked otherwise.
const LIMIT_DEFAULT: i64 = 100;
/// Most rows on a page.
const LIMIT_MAX: i64 = 500;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Send this as `cursor` for the next page; null at the end.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// From `limit` + 1 rows at most; `key` makes the cursor of a row.
    pub fn new(mut rows: Vec<T>, limit: i64, key: impl Fn(&T) -> String) -> Page<T> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(key) } else { None };
        Page { items: rows, next }
    }
}

/// The limit asked for, or the default.
///
/// # Errors
/// 400 outside 1 to 500.
pub fn limit(asked: Option<i64>) -> Result<i64> {
    match asked {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Error::BadRequest(format!("limit must be 1 to {LIMIT_MAX}, is {limit}"))),
    }
}
