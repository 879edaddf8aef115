//! The binary `causeway-trainer`.

fn main() {}
