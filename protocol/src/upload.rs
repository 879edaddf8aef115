//! How a file crosses a bad line: in pieces, each of which says where it begins. The words are tus's
//! (<https://tus.io/protocols/resumable-upload>); the file's address is its digest, so nothing has to be made beforehand.

/// Header: bytes that come before a piece; in an answer, bytes that are there.
pub const UPLOAD_OFFSET: &str = "upload-offset";
/// Header: bytes of the whole file.
pub const UPLOAD_LENGTH: &str = "upload-length";
/// Most bytes that a client of ours sends in one request: some proxies take a body whole before they pass it on, and then a
/// cut costs no more than this.
pub const UPLOAD_PIECE_BYTES: u64 = 16 << 20;
