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
//! | [`modes`] | both ends of a tunnel, sealed or plain |
//! | [`offload`], [`faults`], [`junk`], [`cost`] | the tests in both modes |
//! | [`forwarding`], [`lifecycle`], [`refusals`] | the tests in plaintext mode |
//! | [`self_check`] | what the kernel does for a tunnel, and what it refuses |
//! | [`settings`], [`reload`], [`startup`] | the tests of configuration: by `wg`, by file, by environment and limits |
//! | [`metrics`] | what Prometheus is told, by a real one, and where that cannot be |
//! | [`report`] | the page that `uringvpn report` draws, and how a browser shows it |
//! | [`wireguard`] | the tests of the encrypted tunnel, beside wireguard-go, boringtun, `wg` and `wg-quick` |
//! | [`capture`] | what `uringvpn capture` writes, read by tshark |
//! | [`top`] | the live view in a real terminal, and as lines |
//! | [`raw_peer`], [`raw_session`], [`spoof`] | a WireGuard peer and an enemy, written here from the whitepaper |
//! | [`daemon`] | one encrypted `uringvpn` before them |
//! | [`observed`], [`timers`], [`hostile`], [`bent`], [`flood`] | what they see of it, and what it withstands |
//! | [`logs`] | what the log tells, and where it goes |
//! | [`nonce`] | what the encrypted tunnel sends, captured on the wire |
//! | [`nat`], [`source_address`], [`routing`], [`mtu`], [`cryptokeys`], [`interop`], [`outages`] | scenarios: what surrounds an encrypted tunnel, what it is told, what befalls it |
//!
//! Needs root, ip(8), ss(8), tc(8), ethtool(8), ping(8), iperf3(1), setpriv(1), unshare(1), prlimit(1), taskset(1), nft(8), conntrack(8), tmux(1), stty(1), tshark(1),
//! mount(8), wg(8), wg-quick(8), wireguard-go, boringtun-cli, prometheus. Without root a test prints that it was skipped, or fails if the
//! environment says `CI=true`. Times are printed; asserted only where something would otherwise hang.
#![allow(clippy::unwrap_used)]

mod bent;
mod capture;
mod cost;
mod cryptokeys;
mod daemon;
mod ends;
mod expose;
mod faults;
mod filter;
mod flood;
mod forwarding;
mod hostile;
mod interop;
mod junk;
mod kernel;
mod lifecycle;
mod logs;
mod metrics;
mod modes;
mod mtu;
mod nat;
mod nonce;
mod observed;
mod offload;
mod outages;
#[path = "../packets/mod.rs"]
mod packets;
mod raw_peer;
mod raw_session;
mod refusals;
mod reload;
mod report;
mod rig;
mod routing;
mod self_check;
mod settings;
mod source_address;
mod spoof;
mod startup;
mod timers;
mod top;
mod traffic;
mod tunnel;
mod unreachable;
mod wireguard;
