//! Tests of the whole, one module for each side of it.

mod access;
mod api;
mod queue;
