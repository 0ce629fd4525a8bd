//! What happened, cheaply: counters with one writer each, latency recorders that are swapped and never locked.
//!
//! The conservation law, per direction and in packets: `in = out + Σ drops + in flight`.

pub mod counters;
pub mod drop;
