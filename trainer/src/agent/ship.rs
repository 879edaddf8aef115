//! Shipping: what a training process writes goes to the server, in order. Earlier lines, then a checkpoint's blob, then
//! the line that names it, so that the server owns everything up to the line it has.

use super::client::{Client, Lease, Refusal};
use super::logs::LogTail;
use super::process::{STDERR, STDOUT};
use crate::journal::JournalTail;
use causeway_protocol::{BlobRef, Event, EventBatch, JournalLine, LogLine, Phase, Stream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Most journal lines, and most log lines, in one batch.
const BATCH_MAX: usize = 500;
/// Wait between two looks at the files.
const EVERY: Duration = Duration::from_millis(500);

/// Ships one attempt.
pub struct Shipper {
    client: Client,
    lease: Lease,
    folder: PathBuf,
    journal: JournalTail,
    logs: [LogTail; 2],
    shipped_seq: u64,
}

impl Shipper {
    /// Begins after the last line that the server has.
    pub fn new(client: Client, lease: Lease, folder: &Path, shipped_seq: u64) -> Shipper {
        let log = |name: &str, stream| LogTail::new(&folder.join(name), stream);
        Shipper {
            client,
            lease,
            folder: folder.to_owned(),
            journal: JournalTail::new(folder),
            logs: [log(STDOUT, Stream::Stdout), log(STDERR, Stream::Stderr)],
            shipped_seq,
        }
    }

    /// Ships until the process has ended and everything it wrote is with the server.
    pub async fn run(mut self, mut ended: watch::Receiver<bool>) -> Result<(), Refusal> {
        loop {
            // Asked before the files are read: what was written before the end is then seen.
            let last_look = *ended.borrow();
            let (lines, logs) =
                self.read(last_look).map_err(|error| Refusal::Refused(format!("{error:#}")))?;
            let nothing = lines.is_empty() && logs.is_empty();
            if nothing && last_look {
                return Ok(());
            }
            if !nothing {
                self.ship(lines, logs).await?;
            }
            if !last_look {
                // Woken by the end, or by the end of whoever tells it.
                let _ = tokio::time::timeout(EVERY, ended.changed()).await;
            }
        }
    }

    fn read(&mut self, ended: bool) -> anyhow::Result<(Vec<JournalLine>, Vec<LogLine>)> {
        let mut lines = self.journal.read(BATCH_MAX)?;
        while lines.last().is_some_and(|line| line.seq <= self.shipped_seq) {
            lines = self.journal.read(BATCH_MAX)?; // of an agent before this one
        }
        lines.retain(|line| line.seq > self.shipped_seq);
        let mut logs = Vec::new();
        for log in &mut self.logs {
            logs.extend(log.read(BATCH_MAX - logs.len(), ended)?);
        }
        Ok((lines, logs))
    }

    async fn ship(&mut self, lines: Vec<JournalLine>, logs: Vec<LogLine>) -> Result<(), Refusal> {
        let last = lines.last().map_or(0, |line| line.seq);
        let mut batch = EventBatch { epoch: self.lease.epoch, lines, logs };
        loop {
            for line in &mut batch.lines {
                self.upload(line).await?;
            }
            match self.client.ship(self.lease, &batch).await {
                Ok(accepted) => {
                    self.shipped_seq = self.shipped_seq.max(last).max(accepted.shipped_seq);
                    return Ok(());
                }
                Err(Refusal::Conflict(detail)) => {
                    // A blob that the server lost between the two requests: once more, from the blobs on.
                    tracing::warn!(detail, "a batch was not taken; trying on");
                    tokio::time::sleep(EVERY).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Sees to it that the server has the file a line names.
    async fn upload(&self, line: &mut JournalLine) -> Result<(), Refusal> {
        let Some(blob) = blob(&line.event) else { return Ok(()) };
        let file = self.folder.join(&blob.file);
        match self.client.upload(self.lease, &blob.sha256, &file).await {
            Err(Refusal::Refused(_)) if matches!(line.event, Event::ResumeState { .. }) && !file.exists() => {
                // The process keeps its last two states, and may have removed this one while the server was away. It
                // is no use to anyone; its line still has a number, and now says what is true of it.
                tracing::info!(file = %file.display(), "a resume state was superseded before it could be shipped");
                line.event = Event::Phase { phase: Phase::Train };
                Ok(())
            }
            uploaded => uploaded,
        }
    }
}

/// The file that a line names.
fn blob(event: &Event) -> Option<&BlobRef> {
    match event {
        Event::ResumeState { blob, .. } | Event::Checkpoint { blob, .. } => Some(blob),
        Event::Features(file) => Some(&file.blob),
        Event::Similarity(report) => report.tiles.as_ref().map(|tiles| &tiles.blob),
        _ => None,
    }
}
