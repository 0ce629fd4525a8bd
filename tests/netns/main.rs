//! The program as it ships, between network namespaces on the running kernel.
//!
//! | file | holds |
//! |---|---|
//! | [`rig`] | hosts (namespaces) and the wires between them |
//! | [`tunnel`] | one `uringvpn` process: start, stop, what it printed |
//! | [`traffic`] | ping, iperf3, files with their hash, UDP in order |
//! | [`kernel`] | the few calls that need `unsafe`: a seccomp filter, raw frames |
//! | [`modes`] | both ends of a tunnel, sealed or plain |
//! | [`offload`], [`faults`], [`junk`], [`cost`] | the tests in both modes |
//! | [`forwarding`], [`lifecycle`], [`refusals`] | the tests in plaintext mode |
//! | [`wireguard`] | the tests of the encrypted tunnel, beside wireguard-go, boringtun, `wg` and `wg-quick` |
//! | [`top`] | the live view in a real terminal, and as lines |
//!
//! Needs root, ip(8), ss(8), tc(8), ethtool(8), ping(8), iperf3(1), setpriv(1), wg(8), wg-quick(8), wireguard-go, boringtun-cli, tmux(1), stty(1). Without root a test prints that it was skipped, or fails if the
//! environment says `CI=true`. Times are printed; asserted only where something would otherwise hang.
#![allow(clippy::unwrap_used)]

mod cost;
mod faults;
mod forwarding;
mod junk;
mod kernel;
mod lifecycle;
mod modes;
mod offload;
#[path = "../packets/mod.rs"]
mod packets;
mod refusals;
mod rig;
mod top;
mod traffic;
mod tunnel;
mod wireguard;
