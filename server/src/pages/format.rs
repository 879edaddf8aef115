//! How times, sizes, counts and states read on pages.

use crate::figures::escape;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// A moment as a relative time that also says the absolute one.
pub fn ago(moment: OffsetDateTime) -> String {
    let text = match OffsetDateTime::now_utc() - moment {
        past if past < Duration::seconds(45) => "just now".to_owned(),
        past => format!("{} ago", span(past)),
    };
    element(moment, &text)
}

/// The same to the second: for heartbeats, where seconds matter.
pub fn ago_exact(moment: OffsetDateTime) -> String {
    element(moment, &format!("{} ago", span(OffsetDateTime::now_utc() - moment)))
}

/// A moment as an absolute time, in UTC.
pub fn at(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let text = moment.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default();
    element(moment, &text)
}

/// The day of a moment.
pub fn day(moment: OffsetDateTime) -> String {
    moment.date().to_string()
}

fn element(moment: OffsetDateTime, text: &str) -> String {
    let iso = moment.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(moment).format(&Rfc3339);
    let iso = iso.unwrap_or_default();
    format!(r#"<time datetime="{iso}" title="{iso}">{}</time>"#, escape(text))
}

/// "4 min", "2 h", "3 d": one unit, rounded down.
pub fn span(length: Duration) -> String {
    let seconds = length.whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// "3 min 20 s", for how long something took.
pub fn took(length: Duration) -> String {
    let seconds = length.whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// "11.4 MB".
pub fn bytes(size: i64) -> String {
    let mut value = size as f64;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if value < 1000.0 || unit == "GB" {
            return if unit == "bytes" { format!("{size} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{size} bytes")
}

/// 22056576 as "22,056,576".
pub fn count(number: i64) -> String {
    let digits = number.abs().to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("\u{2212}{text}") } else { text }
}

/// "1 run", "2 runs".
pub fn plural(number: i64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", count(number)) }
}

/// A state as shape and word; colour only repeats them.
pub fn state(word: &str) -> String {
    let shape = match word {
        "queued" | "assigned" | "waiting" => r#"<circle cx="7" cy="7" r="4.5" fill="none"/>"#,
        "running" => {
            r#"<circle cx="7" cy="7" r="4.5" fill="none"/><path d="M7 2.5a4.5 4.5 0 0 1 0 9z" class="solid"/>"#
        }
        "succeeded" | "finished" => r#"<path d="M2.5 7.5l3 3 6-7" fill="none"/>"#,
        "ready" => r#"<circle cx="7" cy="7" r="4" class="solid"/>"#,
        "failed" => r#"<path d="M3 3l8 8M11 3l-8 8" fill="none"/>"#,
        "cancelled" => r#"<circle cx="7" cy="7" r="4.5" fill="none"/><path d="M4 10l6-6" fill="none"/>"#,
        "paused" | "yielded" | "draining" => r#"<path d="M5 3v8M9 3v8" fill="none"/>"#,
        "stopped" => r#"<path d="M3.5 3.5h7v7h-7z" fill="none"/>"#,
        "suspect" | "lost" => {
            r#"<path d="M4.5 5a2.5 2.5 0 1 1 3.4 2.3c-.6.3-.9.7-.9 1.4v.4" fill="none"/><circle cx="7" cy="11.5" r="1" class="solid"/>"#
        }
        _ => "",
    };
    let word = escape(word);
    format!(
        r#"<span class="state {word}"><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{shape}</svg>{word}</span>"#
    )
}

/// A sentence whose words in backticks are code, as messages of the API and the command line have them.
pub fn sentence(text: &str) -> String {
    let escaped = escape(text);
    if escaped.matches('`').count() % 2 == 1 {
        return escaped;
    }
    let parts = escaped.split('`').enumerate();
    parts
        .map(|(at, part)| if at % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() })
        .collect()
}

/// JSON that may stand inside a script element: nothing in it can end the element.
pub fn escape_json(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// The first twelve digits of a digest.
pub fn short_digest(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_backticks_is_code_and_nothing_else_is() {
        assert_eq!(sentence("start `a <b>` or `c`"), "start <code>a &lt;b&gt;</code> or <code>c</code>");
        assert_eq!(sentence("a ` alone & more"), "a ` alone &amp; more");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(22_056_576), "22,056,576");
        assert_eq!(count(-1_000), "\u{2212}1,000");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(88_200_000), "88.2 MB");
        assert_eq!(plural(1, "run"), "1 run");
        assert_eq!(span(Duration::minutes(125)), "2 h");
        assert_eq!(took(Duration::seconds(200)), "3 min 20 s");
    }
}
