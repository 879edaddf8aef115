//! The command line's side of the API: each command is a few requests and a table.

mod http;
mod queue;
mod results;
mod search;
mod spec_file;
mod submit;
mod upload;

pub use http::{Connection, Server};
pub use queue::{CloneArgs, ProjectsCommand, RunIds, WorkersCommand, act, clone, projects, queue, workers};
pub use results::{CompareArgs, ExportArgs, ValuesArgs, compare, export, values};
pub use search::{
    SearchExtendArgs, SearchIdArgs, SearchListArgs, SearchSubmitArgs, change_search, extend_search,
    list_searches, show_search, submit_search,
};
pub use spec_file::expand;
pub use submit::{CancelArgs, RunsArgs, SubmitArgs, WatchArgs, cancel, runs, submit, watch};
