//! What became of the images that the lists name. Nothing is left out in silence.

use std::fmt;

/// Names that are kept of a kind of loss; the number is always complete.
const EXAMPLES: usize = 50;

/// What became of the images that the lists name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Account {
    /// Images in the lists.
    pub listed: usize,
    /// Entries without image or caption, or whose image could be another's.
    pub incomplete: usize,
    /// Images whose file is not there. With a `limit` only the images that the seed came to were looked for.
    pub missing: LeftOut,
    /// Images whose file cannot be read.
    pub unreadable: LeftOut,
    /// Images whose captions are all empty.
    pub captionless: LeftOut,
    /// Captions that were empty once cleaned.
    pub empty: usize,
    /// Images with the pixels of another, which was kept.
    pub duplicates: Vec<Duplicate>,
    /// sha256 over one line for each chosen pair in order, `key⇥caption`: the choice, as it was made.
    pub chosen: String,
}

/// Some of the names that were left out, and how many there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeftOut {
    /// All.
    pub count: usize,
    /// The first.
    pub examples: Vec<String>,
}

/// An image that was left out because another has the same pixels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Duplicate {
    /// The one that was left out.
    pub image: String,
    /// The one that was kept.
    pub of: String,
}

impl LeftOut {
    /// Counts one, and keeps its name if it is among the first.
    pub fn add(&mut self, name: String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(name);
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images listed", self.listed)?;
        let losses = [
            (self.incomplete, "entries incomplete or ambiguous"),
            (self.missing.count, "missing"),
            (self.unreadable.count, "unreadable"),
            (self.captionless.count, "without a caption"),
            (self.empty, "empty captions dropped"),
            (self.duplicates.len(), "there twice"),
        ];
        losses
            .iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, what)| write!(f, ", {count} {what}"))
    }
}
