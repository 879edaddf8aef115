//! HTML character references in captions. Captions from the web carry them, often escaped twice; CLIP's tokenizer was
//! trained on what Python's `html.unescape` makes of them. Here are the names of HTML 4 that captions use; another
//! name stays as it is.

/// Longest name or number that is looked at, as in `html.unescape`.
const NAME_MAX: usize = 32;

/// The names of U+00A0 to U+00FF in order; these, like the five of [`MARKUP`], count without their semicolon too.
const LATIN: &str = "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 \
    acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml Aring AElig \
    Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash Ugrave \
    Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml igrave \
    iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc uuml yacute thorn yuml";

/// The characters of markup itself.
const MARKUP: [(&str, char); 8] = [
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("AMP", '&'),
    ("LT", '<'),
    ("GT", '>'),
    ("QUOT", '"'),
];

/// Names that need their semicolon.
const OTHERS: [(&str, char); 29] = [
    ("apos", '\''),
    ("ndash", '–'),
    ("mdash", '—'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("sbquo", '‚'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("bdquo", '„'),
    ("hellip", '…'),
    ("bull", '•'),
    ("prime", '′'),
    ("Prime", '″'),
    ("euro", '€'),
    ("trade", '™'),
    ("dagger", '†'),
    ("permil", '‰'),
    ("lsaquo", '‹'),
    ("rsaquo", '›'),
    ("OElig", 'Œ'),
    ("oelig", 'œ'),
    ("Scaron", 'Š'),
    ("scaron", 'š'),
    ("hearts", '♥'),
    ("larr", '←'),
    ("rarr", '→'),
    ("minus", '−'),
    ("ensp", '\u{2002}'),
    ("emsp", '\u{2003}'),
];

/// What browsers make of the numbers 128 to 159: the characters of Windows-1252.
const WINDOWS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// The text with its character references replaced by what they stand for, once.
pub fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(&rest[1..]) {
            Some((character, length)) => {
                plain.extend(character);
                rest = &rest[1 + length..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain + rest
}

/// What the reference after an ampersand stands for (nothing, for a number that is no character), and its length in
/// bytes.
fn reference(rest: &str) -> Option<(Option<char>, usize)> {
    if let Some(digits) = rest.strip_prefix('#') {
        return number(digits).map(|(character, length)| (character, 1 + length));
    }
    let ends = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let name: String = rest.chars().take_while(|c| !ends(*c)).take(NAME_MAX).collect();
    let closed = rest[name.len()..].starts_with(';');
    if let Some(character) = named(&name, closed) {
        return Some((Some(character), name.len() + usize::from(closed)));
    }
    // `&copyright` begins with a name that counts without its semicolon; the longest one does.
    let shorter = name.char_indices().map(|(at, _)| &name[..at]).rev();
    shorter.filter(|name| name.len() > 1).find_map(|name| Some((Some(named(name, false)?), name.len())))
}

fn named(name: &str, closed: bool) -> Option<char> {
    let of = |table: &[(&str, char)]| table.iter().find(|(known, _)| *known == name).map(|(_, c)| *c);
    let latin = || {
        let at = LATIN.split_whitespace().position(|known| known == name)?;
        char::from_u32(0xa0 + at as u32)
    };
    of(&MARKUP).or_else(latin).or_else(|| if closed { of(&OTHERS) } else { None })
}

fn number(digits: &str) -> Option<(Option<char>, usize)> {
    let (radix, prefix) = if digits.starts_with(['x', 'X']) { (16, 1) } else { (10, 0) };
    let count = digits[prefix..].bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    if count == 0 {
        return None;
    }
    let end = prefix + count;
    let length = end + usize::from(digits[end..].starts_with(';'));
    // A number too long for u32 is no character either.
    let character = match u32::from_str_radix(&digits[prefix..end], radix).unwrap_or(u32::MAX) {
        0 => Some('\u{fffd}'),
        code @ 0x80..=0x9f => Some(WINDOWS[code as usize - 0x80]),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        code => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
    };
    Some((character, length))
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn references_become_what_python_makes_of_them() {
        // Right: html.unescape of Python 3.
        for (escaped, plain) in [
            ("Tom &amp; Jerry", "Tom & Jerry"),
            ("&lt;b&gt; &quot;x&quot; it&#39;s it&#x27;s", "<b> \"x\" it's it's"),
            ("caf&eacute; &Eacute; &yuml;&nbsp;&szlig", "café É ÿ\u{a0}ß"),
            ("1990&ndash;2000 &hellip; &ndash", "1990–2000 … &ndash"),
            ("it&#146;s &#8217; &#x1F600;", "it’s ’ 😀"),
            ("&copyright &notit; &amp", "©right ¬it; &"),
            ("AT&T, R&D; & &; &# &#x; &unknown;", "AT&T, R&D; & &; &# &#x; &unknown;"),
            ("&#0; &#xD800; &#99999999999; &#7;.", "\u{fffd} \u{fffd} \u{fffd} ."),
        ] {
            assert_eq!(unescape(escaped), plain, "{escaped}");
        }
    }

    #[test]
    fn what_was_escaped_twice_needs_two_passes() {
        assert_eq!(unescape("&amp;quot;"), "&quot;");
        assert_eq!(unescape(&unescape("&amp;quot;")), "\"");
    }
}
