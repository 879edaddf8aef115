//! Hugging Face's datasets: parquet files with a column of images, `struct<bytes, path>`, and one of labels, and the names
//! of the classes in the metadata that `datasets` leaves in the schema. An image's bytes are read when it is needed: a
//! window of rows is unpacked at a time, so memory does not grow with the file.

use super::dataset::manifest::Label;
use super::source::Source;
use anyhow::{Context, Result, bail, ensure};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that are unpacked at once.
const WINDOW: usize = 16;
/// Windows that are kept: threads that read in order are a few rows apart.
const WINDOWS: usize = 8;

/// The images of a parquet file.
pub struct Table {
    path: PathBuf,
    column: usize,
    /// Where each group of rows begins, and where the last ends.
    starts: Vec<usize>,
    state: Mutex<State>,
}

struct State {
    reader: SerializedFileReader<File>,
    /// Group, row in the file that comes next, and the reader that stands there.
    cursor: Option<(usize, usize, ColumnReaderImpl<ByteArrayType>)>,
    /// Number of the window and its rows.
    windows: VecDeque<(usize, Vec<ByteArray>)>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("path", &self.path).finish_non_exhaustive()
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Table) -> bool {
        self.path == other.path
    }
}

impl Eq for Table {}

/// What some files hold.
pub struct Listing {
    /// The images in order, with their labels.
    pub images: Vec<(Source, u32)>,
    /// The names of the classes, if the files tell them.
    pub classes: Option<Vec<String>>,
}

/// The images of some files, in order, with their labels.
pub fn read(folder: &Path, parts: &[String], label: Label) -> Result<Listing> {
    let mut listing = Listing { images: Vec::new(), classes: None };
    for part in parts {
        let path = folder.join(part);
        let context = || format!("reading the parquet file {}", path.display());
        let (table, labels, classes) = open(&path, label).with_context(context)?;
        let table = Arc::new(table);
        let image = |(row, label)| (Source::Row { table: table.clone(), row }, label);
        listing.images.extend(labels.into_iter().enumerate().map(image));
        match (&listing.classes, classes) {
            (Some(first), Some(classes)) => ensure!(
                *first == classes,
                "{} names other classes than {}; they do not belong together",
                path.display(),
                parts[0]
            ),
            (None, classes) => listing.classes = classes,
            _ => {}
        }
    }
    Ok(listing)
}

fn open(path: &Path, label: Label) -> Result<(Table, Vec<u32>, Option<Vec<String>>)> {
    let file = File::open(path)?;
    let reader =
        SerializedFileReader::new(file).context("it is no parquet file, or was cut off; fetch it again")?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
    let find = |wanted: &[&str]| {
        let at = names.iter().position(|name| wanted.contains(&name.as_str()));
        at.with_context(|| format!("it has no column {}; it has {}", wanted.join(" or "), names.join(", ")))
    };
    let column = find(&["img.bytes", "image.bytes"])?;
    let labels = find(match label {
        Label::Fine => &["label", "fine_label"],
        Label::Coarse => &["coarse_label"],
    })?;
    let mut starts = vec![0];
    let mut values = Vec::new();
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let rows = usize::try_from(group.metadata().num_rows())?;
        let numbers = match group.get_column_reader(labels)? {
            ColumnReader::Int64ColumnReader(reader) => read_column(reader, rows)?,
            ColumnReader::Int32ColumnReader(reader) => {
                read_column(reader, rows)?.into_iter().map(i64::from).collect()
            }
            _ => bail!("the column {} holds no whole numbers", names[labels]),
        };
        ensure!(numbers.len() == rows, "the column {} has rows without a label", names[labels]);
        starts.push(starts[starts.len() - 1] + rows);
        values.extend(numbers);
    }
    let classes = class_names(&reader, &names[labels]);
    let count = classes.as_ref().map_or(i64::from(u32::MAX), |classes| classes.len() as i64);
    let label = |(row, label): (usize, i64)| {
        ensure!(
            (0..count).contains(&label),
            "row {row}: the label is {label}, of {count} classes; a part without labels cannot be evaluated"
        );
        Ok(label as u32)
    };
    let labels = values.into_iter().enumerate().map(label).collect::<Result<_>>()?;
    let state = Mutex::new(State { reader, cursor: None, windows: VecDeque::new() });
    Ok((Table { path: path.to_owned(), column, starts, state }, labels, classes))
}

fn read_column<T: DataType>(mut reader: ColumnReaderImpl<T>, rows: usize) -> Result<Vec<T::T>> {
    let (mut values, mut levels) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    reader.read_records(rows, Some(&mut levels), None, &mut values)?;
    Ok(values)
}

/// The names of a column's classes, from the description that `datasets` keeps as JSON.
fn class_names(reader: &SerializedFileReader<File>, column: &str) -> Option<Vec<String>> {
    let pairs = reader.metadata().file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == "huggingface")?.value.as_ref()?;
    let told: Value = serde_json::from_str(text).ok()?;
    let names = told.pointer(&format!("/info/features/{column}/names"))?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

impl Table {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image file in a row.
    pub fn bytes(&self, row: usize) -> Result<Vec<u8>> {
        let window = row / WINDOW;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rows)) = state.windows.iter().find(|(number, _)| *number == window) {
            return rows.get(row % WINDOW).map(|bytes| bytes.data().to_vec()).context("there is no such row");
        }
        let end = self.starts[self.starts.len() - 1].min((window + 1) * WINDOW);
        let rows =
            (window * WINDOW..end).map(|row| self.read(&mut state, row)).collect::<Result<Vec<_>>>()?;
        let found = rows.get(row % WINDOW).map(|bytes| bytes.data().to_vec());
        if state.windows.len() == WINDOWS {
            state.windows.pop_front();
        }
        state.windows.push_back((window, rows));
        found.context("there is no such row")
    }

    /// One row: the next one where the reader stands, or what it skips to.
    fn read(&self, state: &mut State, row: usize) -> Result<ByteArray> {
        let group = self.starts.partition_point(|start| *start <= row) - 1;
        let stands = state.cursor.take().filter(|(at, next, _)| *at == group && *next <= row);
        let (next, mut reader) = match stands {
            Some((_, next, reader)) => (next, reader),
            None => match state.reader.get_row_group(group)?.get_column_reader(self.column)? {
                ColumnReader::ByteArrayColumnReader(reader) => (self.starts[group], reader),
                _ => bail!("the column of images holds no bytes"),
            },
        };
        reader.skip_records(row - next)?;
        let (mut values, mut levels) = (Vec::with_capacity(1), Vec::with_capacity(1));
        reader.read_records(1, Some(&mut levels), None, &mut values)?;
        state.cursor = Some((group, row + 1, reader));
        values.pop().with_context(|| {
            format!("row {row} of {} has no bytes, only a path; embed the images", self.path.display())
        })
    }
}
