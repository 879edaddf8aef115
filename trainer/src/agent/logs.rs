//! The printed lines of a training process, as they appear in its files. A line is named by where it begins, so that
//! the server takes a line that is sent twice once.

use anyhow::{Context, Result};
use causeway_protocol::{LogLine, Stream};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest line that is shipped, bytes; the rest of it is cut off.
const LINE_MAX: usize = 4096;
/// Most lines of one file that are shipped: a process that prints without end must not fill the database.
const LINES_MAX: u64 = 20_000;
/// Most bytes read at once, and the longest line that is looked for an end.
const READ_BYTES: u64 = 256 * 1024;

/// One of the two files.
pub struct LogTail {
    path: PathBuf,
    stream: Stream,
    offset: u64,
    lines: u64,
}

impl LogTail {
    /// Begins at the first line of a file, which need not exist yet.
    pub fn new(path: &Path, stream: Stream) -> LogTail {
        LogTail { path: path.to_owned(), stream, offset: 0, lines: 0 }
    }

    /// The next lines. Once the process has ended, a last line without an end is one too.
    pub fn read(&mut self, limit: usize, ended: bool) -> Result<Vec<LogLine>> {
        let context = || format!("reading {}", self.path.display());
        if self.lines > LINES_MAX {
            return Ok(Vec::new());
        }
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(context),
        };
        file.seek(SeekFrom::Start(self.offset)).with_context(context)?;
        let mut text = Vec::new();
        file.take(READ_BYTES).read_to_end(&mut text).with_context(context)?;
        let full = text.len() as u64 == READ_BYTES;

        let mut lines = Vec::new();
        let mut begin = 0;
        while lines.len() < limit && begin < text.len() && self.lines <= LINES_MAX {
            let rest = &text[begin..];
            let (line, length) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(length) => (&rest[..length], length + 1),
                None if ended || (full && begin == 0) => (rest, rest.len()),
                None => break,
            };
            let shown = match self.lines == LINES_MAX {
                true => format!("… more than {LINES_MAX} lines: the rest is not kept"),
                false => shown(line),
            };
            lines.push(LogLine { stream: self.stream, offset: self.offset + begin as u64, text: shown });
            begin += length;
            self.lines += 1;
        }
        self.offset += begin as u64;
        Ok(lines)
    }
}

/// A line without what a database or a page cannot show, and not longer than the limit.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line).trim_end_matches('\r').replace('\0', "\u{fffd}");
    if text.len() <= LINE_MAX {
        return text;
    }
    let end = text.floor_char_boundary(LINE_MAX - '…'.len_utf8());
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn whole_lines_come_at_once_and_the_last_one_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stderr.log");
        let mut tail = LogTail::new(&path, Stream::Stderr);
        assert!(tail.read(10, false).unwrap().is_empty(), "there is no file yet");
        fs::write(&path, "one\ntwo\r\nthr").unwrap();
        let named = |lines: Vec<LogLine>| -> Vec<(u64, String)> {
            lines.into_iter().map(|line| (line.offset, line.text)).collect()
        };
        assert_eq!(named(tail.read(10, false).unwrap()), [(0, "one".to_owned()), (4, "two".to_owned())]);
        assert!(tail.read(10, false).unwrap().is_empty());
        assert_eq!(named(tail.read(10, true).unwrap()), [(9, "thr".to_owned())]);
        assert!(tail.read(10, true).unwrap().is_empty());
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout.log");
        fs::write(&path, format!("x{}\nnext\n\0\n", "é".repeat(5000))).unwrap();
        let lines = LogTail::new(&path, Stream::Stdout).read(10, false).unwrap();
        assert!(lines[0].text.len() <= LINE_MAX && lines[0].text.ends_with("é…"));
        assert_eq!((lines[1].offset, lines[1].text.as_str()), (10_002, "next"));
        assert_eq!(lines[2].text, "\u{fffd}", "Postgres keeps no NUL");
    }

    #[test]
    fn a_process_that_prints_without_end_is_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout.log");
        fs::write(&path, "spam\n".repeat(30_000)).unwrap();
        let mut tail = LogTail::new(&path, Stream::Stdout);
        let mut all = Vec::new();
        loop {
            let lines = tail.read(500, true).unwrap();
            if lines.is_empty() {
                break;
            }
            all.extend(lines);
        }
        assert_eq!(all.len() as u64, LINES_MAX + 1);
        assert!(all.last().unwrap().text.contains("the rest is not kept"));
    }
}
