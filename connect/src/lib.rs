//! How a worker and the command line reach a server: whom they believe, what went wrong in words, files piece by piece.

mod explain;
mod trust;
mod upload;

pub use explain::explain;
pub use trust::Trust;
pub use upload::Upload;
