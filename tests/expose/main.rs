//! `uringvpn local` and `uringvpn server`: on a network in memory, on real sockets with both drivers, opposite the real bore,
//! both ways, and in front of real nginx and HAProxy.
//!
//! bore knows one control port only, so every test has a loopback address of its own.
#![allow(clippy::unwrap_used)]

mod carriers;
mod datagrams;
mod drivers;
mod hostile;
mod interop;
mod lost;
mod many;
mod memory;
mod memory_datagrams;
mod memory_faults;
mod proxy;
mod rig;
mod seen;
mod streams;
mod udp;
mod watched;
mod world;
