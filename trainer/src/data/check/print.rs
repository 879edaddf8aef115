//! A report as a person reads it.

use super::{Names, Report};

/// Classes that are told one by one.
const CLASSES: usize = 30;

/// The report in lines.
pub fn report(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| text += &format!("{label:<11} {value}\n");
    line("path", report.path.display().to_string());
    line("holds", report.kind.to_owned());
    if !["dataset", "captions"].contains(&report.kind) {
        line("images", "none to look at".to_owned());
        return text;
    }
    let format = serde_json::to_string(&report.format).unwrap_or_default();
    line("format", format.trim_matches('"').to_owned());
    line("images", report.images.to_string());
    if let Some(sizes) = report.sizes {
        let side = |[least, median, most]: [u32; 3]| format!("{least} / {median} / {most}");
        line("width", format!("{} pixels (least / median / greatest)", side(sizes.width)));
        line("height", format!("{} pixels", side(sizes.height)));
    }
    if !report.classes.is_empty() {
        line("classes", report.classes.len().to_string());
        for (class, images) in report.classes.iter().take(CLASSES) {
            line("", format!("{images:>7} {class}"));
        }
        if report.classes.len() > CLASSES {
            line("", format!("… {} more", report.classes.len() - CLASSES));
        }
    }
    if let Some(captions) = &report.captions {
        line(
            "captions",
            format!("{} distinct, {:.1} words on average", captions.distinct, captions.mean_words),
        );
        captions.examples.iter().for_each(|caption| line("", format!("“{caption}”")));
        line("listed", format!("{} images", captions.listed));
        let losses = [
            (captions.incomplete, "incomplete or ambiguous entries"),
            (captions.captionless, "images without a caption"),
            (captions.empty, "empty captions"),
        ];
        for (count, what) in losses.iter().filter(|(count, _)| *count > 0) {
            line("left out", format!("{count} {what}"));
        }
        line("choice", format!("sha256 {}", captions.chosen));
    }
    names(&mut line, "missing", "images are not there", &report.missing);
    names(&mut line, "unreadable", "images cannot be read", &report.unreadable);
    names(&mut line, "duplicates", "images have the pixels of another", &report.duplicates);
    for leak in &report.leaks {
        let against = leak.against.display();
        names(&mut line, "leaks", &format!("images are also in {against}, pixel for pixel"), &leak.exact);
        names(&mut line, "near", &format!("pairs with {against} look alike; judge for yourself"), &leak.near);
        if leak.exact.count + leak.near.count == 0 {
            line("leaks", format!("none to {against}"));
        }
    }
    if report.queries_in_bank > 0 {
        line("warning", format!("{} scored images are also neighbours", report.queries_in_bank));
    }
    if let Some(digest) = &report.digest {
        line("digest", digest.clone());
    }
    text
}

/// How many of a kind, and their names below.
fn names(line: &mut impl FnMut(&str, String), label: &str, what: &str, names: &Names) {
    if names.count == 0 {
        return;
    }
    line(label, format!("{} {what}", names.count));
    names.names.iter().for_each(|name| line("", name.clone()));
    if names.count > names.names.len() {
        line("", format!("… {} more", names.count - names.names.len()));
    }
}
