//! The `uringvpn` command.
fn main() {}
