//! How figures speak: numbers with a true minus, and the sentence that describes a panel to those who do not see it.

use super::alpha::{LineKey, Panel, Place};

/// An accuracy, percent, one decimal.
pub fn value(percent: f64) -> String {
    format!("{percent:.1}")
}

/// A signed difference, one decimal, with a minus sign and not a hyphen; "0.0" has no sign.
pub fn signed(points: f64) -> String {
    let rounded = (points * 10.0).round() / 10.0;
    if rounded > 0.0 {
        format!("+{rounded:.1}")
    } else if rounded < 0.0 {
        format!("\u{2212}{:.1}", -rounded)
    } else {
        "0.0".to_owned()
    }
}

/// A role as figures and sentences write it.
pub fn role_word(role: &str) -> &'static str {
    match role {
        "id" => "ID",
        "target" => "target",
        _ => "OOD",
    }
}

/// The colour word of a difference: `gain`, `loss`, or nothing where it rounds to none.
pub fn tone(points: f64) -> &'static str {
    if points >= 0.05 {
        "gain"
    } else if points <= -0.05 {
        "loss"
    } else {
        ""
    }
}

/// "3.1 points", "1 point".
pub fn points(size: f64) -> String {
    let text = format!("{:.1}", size.abs());
    if text == "1.0" { "1.0 point".to_owned() } else { format!("{text} points") }
}

/// The label at a line's end: where it arrived and what that changed.
pub fn end_label(line: &LineKey, last: &Place) -> String {
    let name = if line.short.is_empty() { String::new() } else { format!("{} ", line.short) };
    if last.alpha < 1.0 {
        // The sweep is not over: what stands here is not what the checkpoint does.
        return format!("{name}to α {}", last.alpha);
    }
    match last.delta {
        Some(delta) => format!("{name}{} ({})", value(last.mean), signed(delta)),
        None => format!("{name}{}", value(last.mean)),
    }
}

/// "adapter goes from 71.0 % at α 0 to 73.0 % at α 1; highest 74.5 % at α 0.4."
pub fn describe_panel(panel: &Panel, lines: &[LineKey]) -> String {
    let mut text = format!(
        "Top-1 accuracy against α on {} ({}), {} images.",
        panel.title,
        role_word(panel.role),
        panel.queries
    );
    if let Some(base) = panel.backbone {
        text.push_str(&format!(" The backbone has {} %.", value(base)));
    }
    for (line, key) in panel.lines.iter().zip(lines) {
        let (Some(last), Some(top)) =
            (line.points.last(), line.points.iter().max_by(|a, b| a.mean.total_cmp(&b.mean)))
        else {
            continue;
        };
        text.push_str(&format!(
            " {} has {} % at α {}, highest {} % at α {}.",
            key.label,
            value(last.mean),
            last.alpha,
            value(top.mean),
            top.alpha
        ));
    }
    text
}
