//! The `mtdnn-raw` program.

fn main() {}
