//! How far a download is: a bar on a terminal, elsewhere a line for each tenth.

use indicatif::{ProgressBar, ProgressStyle};

/// How far a download is.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    total: Option<u64>,
    /// Tenths that have been told.
    told: u64,
}

impl Progress {
    /// A download that begins at some byte.
    pub fn new(name: String, begin: u64, total: Option<u64>) -> Progress {
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_position(begin);
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.reset_eta();
        bar.set_message(name.clone());
        let told = total.map_or(0, |total| tenths(begin, total));
        Progress { bar, name, total, told }
    }

    /// So many bytes are there.
    pub fn at(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
        let Some(total) = self.total else { return };
        let tenths = tenths(bytes, total);
        if self.bar.is_hidden() && tenths > self.told {
            self.told = tenths;
            eprintln!("{}: {} of {} MB ({} %)", self.name, bytes / 1_000_000, total / 1_000_000, tenths * 10);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn tenths(bytes: u64, total: u64) -> u64 {
    bytes.saturating_mul(10) / total.max(1)
}
