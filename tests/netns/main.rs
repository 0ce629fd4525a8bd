//! The program as it ships, between network namespaces on the running kernel.
//!
//! | file | holds |
//! |---|---|
//! | [`rig`] | hosts (namespaces) and the wires between them |
//! | [`tunnel`] | one `uringvpn` process: start, stop, what it printed |
//! | [`ends`] | ends of encrypted tunnels, ours and others, and their keys |
//! | [`traffic`] | ping, iperf3, files with their hash, UDP in order |
//! | [`filter`] | nftables: what is counted, dropped, translated on a host |
//! | [`kernel`] | the few calls that need `unsafe`: a seccomp filter, raw frames |
//! | [`forwarding`], [`lifecycle`], [`refusals`], [`junk`], [`cost`] | the tests, in plaintext mode |
//! | [`wireguard`] | the tests of the encrypted tunnel, beside wireguard-go, boringtun, `wg` and `wg-quick` |
//! | [`nat`], [`source_address`], [`routing`], [`mtu`], [`settings`], [`interop`], [`faults`] | its scenarios: what surrounds it, what it is told, what befalls it |
//!
//! Needs root, ip(8), ss(8), ping(8), iperf3(1), setpriv(1), wg(8), wg-quick(8), nft(8), conntrack(8), wireguard-go, boringtun-cli. Without root a test prints that it was skipped, or fails if the
//! environment says `CI=true`. Times are printed; asserted only where something would otherwise hang.
#![allow(clippy::unwrap_used)]

mod cost;
mod ends;
mod faults;
mod filter;
mod forwarding;
mod interop;
mod junk;
mod kernel;
mod lifecycle;
mod mtu;
mod nat;
mod refusals;
mod rig;
mod routing;
mod settings;
mod source_address;
mod traffic;
mod tunnel;
mod wireguard;
