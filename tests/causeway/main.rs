//! Tests of the whole, one module for each side of it.

mod access;
mod api;
mod bad_input;
mod browser;
mod end_to_end;
mod kills;
mod queue;
