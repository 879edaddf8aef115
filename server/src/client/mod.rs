//! The command line's side of the API: each command is a few requests and a table.

mod http;
mod results;
mod spec_file;
mod submit;

pub use http::Connection;
pub use results::{CompareArgs, ExportArgs, ValuesArgs, compare, export, values};
pub use spec_file::expand;
pub use submit::{CancelArgs, RunsArgs, SubmitArgs, WatchArgs, cancel, runs, submit, watch};
