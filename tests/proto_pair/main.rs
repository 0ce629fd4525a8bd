//! Two devices, a wire that loses and captures, and a clock that the test owns: one test per sentence that we implement.
#![allow(clippy::unwrap_used)]

mod configuration;
mod craft;
mod handshake;
mod load;
mod net;
mod node;
mod random;
mod sessions;
mod timers;
