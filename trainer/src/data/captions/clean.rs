//! Captions as people meant them: captions from the web come with HTML entities, sometimes escaped twice, with line
//! ends, control characters and letters composed in different ways. Cleaning is what open_clip's `basic_clean` and
//! `whitespace_clean` do, without ftfy's guesses at wrong encodings. Case is left alone: lowering it is the tokenizer's.

use unicode_normalization::UnicodeNormalization;

/// HTML unescaped twice, Unicode NFC, runs of white space and control characters one space, none at the ends.
pub fn clean(caption: &str) -> String {
    let text = unescape(caption);
    let mut cleaned = String::with_capacity(text.len());
    for character in text.nfc() {
        match character {
            // White space or a control character: a space, if anything follows.
            c if c.is_whitespace() || c.is_control() => {
                if !cleaned.is_empty() && !cleaned.ends_with(' ') {
                    cleaned.push(' ');
                }
            }
            // Zero width space and no-break space, the byte order mark: seen by no reader.
            '\u{200b}' | '\u{2060}' | '\u{feff}' => {}
            c => cleaned.push(c),
        }
    }
    cleaned.truncate(cleaned.trim_end().len());
    cleaned
}

/// HTML's character references, which captions from the web carry up to twice escaped.
pub fn unescape(text: &str) -> String {
    let once = htmlize::unescape(text);
    htmlize::unescape(once.as_ref()).into_owned()
}

/// The text between HTML tags, as in Flickr's descriptions: `<a href="…">lake</a>` is `lake`. A `<` that begins no tag
/// stays.
pub fn without_tags(text: &str) -> String {
    let text = unescape(text);
    let mut rest = text.as_str();
    let mut kept = String::with_capacity(rest.len());
    while let Some(open) = rest.find('<') {
        let (before, from) = rest.split_at(open);
        kept.push_str(before);
        let begins_tag = from[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
        match from.find('>') {
            Some(close) if begins_tag => {
                kept.push(' ');
                rest = &from[close + 1..];
            }
            _ => {
                kept.push('<');
                rest = &from[1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_unescaped_twice_and_no_more() {
        assert_eq!(clean("salt &amp; pepper"), "salt & pepper");
        assert_eq!(clean("salt &amp;amp; pepper"), "salt & pepper");
        assert_eq!(clean("&amp;amp;amp;"), "&amp;");
        // Python's html.unescape gives the same: numbers of Windows-1252, names without a semicolon, unknown names.
        assert_eq!(
            clean("a dog&#146;s life &#x1F436; &copy 2020 &nosuch; R&D"),
            "a dog’s life 🐶 © 2020 &nosuch; R&D"
        );
    }

    #[test]
    fn white_space_and_control_characters_collapse() {
        assert_eq!(clean(" A man\u{a0}with\r\n\ta hat.\u{0}\u{7} \n"), "A man with a hat.");
        assert_eq!(clean("two\u{200b}words\u{feff}"), "twowords");
        assert_eq!(clean("&nbsp; \u{2003}"), "");
    }

    #[test]
    fn letters_are_composed_and_case_is_kept() {
        assert_eq!(clean("Cafe\u{301} ANGSTRO\u{308}M"), "Café ANGSTRÖM");
    }

    #[test]
    fn tags_go_and_their_text_stays() {
        let flickr = "At the <a href=\"http://x.y/?a=1&amp;b\">lake</a>, 3 < 5 &lt;b&gt;bold&lt;/b&gt;";
        assert_eq!(clean(&without_tags(flickr)), "At the lake , 3 < 5 bold");
        assert_eq!(without_tags("I <3 you"), "I <3 you");
    }
}
