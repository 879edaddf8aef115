//! The journal of an attempt: `journal.jsonl` in its folder, one line per event, numbered from 1. The training
//! process appends; the agent, or a person, reads. A line is one `write`, so that a process killed at any moment
//! leaves whole lines and at most one torn one, which is cut off when the file is opened again.

use anyhow::{Context, Result, bail};
use causeway_protocol::{Event, JournalLine};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// Name of the journal in an attempt's folder.
pub const FILE_NAME: &str = "journal.jsonl";

/// The writing end.
pub struct Journal {
    file: File,
    path: PathBuf,
    next_seq: u64,
}

impl Journal {
    /// Opens the journal of `folder`, or begins it. A torn last line is cut off; numbering goes on after the last
    /// whole one.
    pub fn open(folder: &Path) -> Result<Journal> {
        let path = folder.join(FILE_NAME);
        let context = || format!("opening the journal {}", path.display());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(context)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(context)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64).with_context(context)?;
        }
        let next_seq = text[..whole].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        Ok(Journal { file, path, next_seq })
    }

    /// Appends one event, as one write.
    pub fn append(&mut self, event: Event) -> Result<()> {
        if let Event::Metrics { step, values } = &event
            && let Some((name, value)) = values.iter().find(|(_, value)| !value.is_finite())
        {
            bail!("the metric `{name}` is {value} at step {step}");
        }
        let line = JournalLine { seq: self.next_seq, at: OffsetDateTime::now_utc(), event };
        let mut text = serde_json::to_vec(&line).context("writing a journal line as JSON")?;
        text.push(b'\n');
        self.file
            .write_all(&text)
            .with_context(|| format!("appending to the journal {}", self.path.display()))?;
        self.next_seq += 1;
        Ok(())
    }
}

/// The reading end: gives whole lines as they appear.
pub struct JournalTail {
    path: PathBuf,
    offset: u64,
}

impl JournalTail {
    /// Begins at the first line of the journal of `folder`, which need not exist yet.
    pub fn new(folder: &Path) -> JournalTail {
        JournalTail { path: folder.join(FILE_NAME), offset: 0 }
    }

    /// The next whole lines, at most `limit`. Empty where there are none yet.
    pub fn read(&mut self, limit: usize) -> Result<Vec<JournalLine>> {
        let context = || format!("reading the journal {}", self.path.display());
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(context),
        };
        file.seek(SeekFrom::Start(self.offset)).with_context(context)?;
        let mut text = Vec::new();
        file.take(READ_BYTES).read_to_end(&mut text).with_context(context)?;
        let mut lines = Vec::new();
        let mut begin = 0;
        while lines.len() < limit
            && let Some(length) = text[begin..].iter().position(|byte| *byte == b'\n')
        {
            let line = serde_json::from_slice(&text[begin..begin + length]).with_context(|| {
                format!("{} is damaged at byte {}", self.path.display(), self.offset + begin as u64)
            })?;
            lines.push(line);
            begin += length + 1;
        }
        if begin == 0 && text.len() as u64 == READ_BYTES {
            bail!("{} has a line of more than {READ_BYTES} bytes", self.path.display());
        }
        self.offset += begin as u64;
        Ok(lines)
    }
}

/// Most bytes read at once; far above the longest line, a point on the largest dataset.
const READ_BYTES: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn metric(step: u64, value: f64) -> Event {
        Event::Metrics { step, values: BTreeMap::from([("loss".to_owned(), value)]) }
    }

    #[test]
    fn lines_are_numbered_from_one_without_gaps_across_reopening() {
        let folder = tempfile::tempdir().unwrap();
        for step in 0..3 {
            Journal::open(folder.path()).unwrap().append(metric(step, 1.5)).unwrap();
        }
        let lines = JournalTail::new(folder.path()).read(100).unwrap();
        assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(lines[2].event, metric(2, 1.5));
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_its_number_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        Journal::open(folder.path()).unwrap().append(metric(1, 1.0)).unwrap();
        let torn = std::fs::read_to_string(&path).unwrap() + r#"{"seq":2,"at":"20"#;
        std::fs::write(&path, torn).unwrap();
        let mut tail = JournalTail::new(folder.path());
        assert_eq!(tail.read(100).unwrap().len(), 1, "a torn line is not read");
        Journal::open(folder.path()).unwrap().append(metric(2, 2.0)).unwrap();
        let lines = tail.read(100).unwrap();
        assert_eq!((lines.len(), lines[0].seq), (1, 2));
        assert_eq!(lines[0].event, metric(2, 2.0));
    }

    #[test]
    fn a_tail_hands_out_at_most_what_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        (0..5).for_each(|step| journal.append(metric(step, 0.5)).unwrap());
        let mut tail = JournalTail::new(folder.path());
        let counts: Vec<usize> = (0..4).map(|_| tail.read(2).unwrap().len()).collect();
        assert_eq!(counts, [2, 2, 1, 0]);
    }

    #[test]
    fn values_that_are_not_finite_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = Journal::open(folder.path()).unwrap().append(metric(7, f64::NAN)).unwrap_err();
        assert_eq!(error.to_string(), "the metric `loss` is NaN at step 7");
    }
}
