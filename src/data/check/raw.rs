//! What the bytes of a file say before it is cut into fields.

use super::Severity::{Error, Note, Warning};
use super::{Found, Lines};
use crate::data::task::Format;

/// Looks at encoding, line ends, quotes and odd spaces.
pub(super) fn look(found: &mut Found) {
    let bytes = match std::fs::read(&found.file.path) {
        Ok(bytes) => bytes,
        Err(error) => return found.add(Error, "file", None, format!("cannot be read: {error}")),
    };
    let (mut foreign, mut ends, mut returns) = (Lines::default(), Lines::default(), Lines::default());
    let (mut quotes, mut spaces, mut separators) = (Lines::default(), Lines::default(), Lines::default());
    let mut nuls = Lines::default();
    let mut lines = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        lines += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let inner = text.strip_suffix(b"\r").unwrap_or(text);
        if inner.len() < text.len() {
            ends.add(lines);
        }
        if inner.contains(&b'\r') {
            returns.add(lines);
        }
        if inner.contains(&0) {
            nuls.add(lines);
        }
        if inner.iter().filter(|&&byte| byte == b'"').count() % 2 == 1 {
            quotes.add(lines);
        }
        match std::str::from_utf8(inner) {
            Err(_) => foreign.add(lines),
            Ok(text) => {
                if text.contains('\u{a0}') {
                    spaces.add(lines);
                }
                if text.contains(['\u{85}', '\u{2028}', '\u{2029}', '\u{b}', '\u{c}']) {
                    separators.add(lines);
                }
            }
        }
    }
    found.lines(Error, "utf8", &foreign, "not UTF-8; convert the file, for example with iconv");
    found.lines(Warning, "nul", &nuls, "a NUL character");
    if bytes.starts_with(b"\xef\xbb\xbf") {
        found.add(
            Note,
            "bom",
            Some(1),
            "begins with a byte order mark, which is not taken for part of a name here",
        );
    }
    if ends.count == lines || ends.count + 1 == lines && !bytes.ends_with(b"\n") {
        found.lines(Note, "crlf", &ends, "all end as on Windows (CR LF)");
    } else {
        found.lines(Warning, "crlf", &ends, "end as on Windows (CR LF), and the others do not");
    }
    found.lines(Warning, "cr", &returns, "a carriage return inside, where other tools end the line");
    found.lines(
        Note,
        "separator",
        &separators,
        "U+0085, U+2028 or the like inside, where other tools end the line; here only \\n does",
    );
    found.lines(Note, "nbsp", &spaces, "a no-break space, which tokenizers take for a blank");
    if matches!(found.file.format, Format::Tsv { .. }) {
        found.lines(
            Note,
            "quotes",
            &quotes,
            "an odd number of quotes; a reader with CSV quoting loses rows there, this one takes them as text",
        );
    }
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        found.add(
            Note,
            "last line",
            Some(lines),
            "does not end with a line end; tools that count those count one less",
        );
    }
}
