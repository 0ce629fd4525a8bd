//! uringvpn: forwards packets between a TUN device and UDP at the speed the machine allows.
//!
//! # Folders, from pure to effectful
//!
//! A folder uses only those above it (`tests/tidy.rs` checks).
//!
//! | folder | one sentence |
//! |---|---|
//! | [`time`] | time since boot, spans and wall-clock time as plain numbers; nobody reads a clock here |
//! | [`wire`] | bytes to meaning and back: IP, TCP, UDP, ICMP errors, checksums, the virtio header |
//! | [`offload`] | superpackets, segments, datagrams, trains: cutting and joining |
//! | [`stats`] | counters and latency histograms, and the thread that collects them |
//! | [`proto`] | WireGuard without I/O: handshakes, sessions, timers, cookies |
//! | [`dataplane`] | **start here**: one packet, one chain of calls, in both directions |
//! | [`io`] | the kernel: rings, TUN, UDP; the only folder with `unsafe` |
//! | [`control`] | command line, configuration file, netlink, the protocol of `wg`; `show`, `top`, `report`, `capture`, metrics |
//! | [`worker`] | threads: where the data plane meets the kernel |
//! | [`expose`] | a local TCP or UDP port made public elsewhere: `uringvpn local` and `uringvpn server`, with no tunnel needed |
//!
//! # Threads
//!
//! ```text
//! main: parse, open devices, start threads, then wait for signals and link changes; follows its file on SIGHUP
//!  ├─ worker 0..N-1  pinned; ring, TUN queue, UDP sockets, buffers, recorders of its own
//!  ├─ protocol       keys, peers, handshakes, timers; tells every worker what changed; sleeps until something does
//!  ├─ uapi           the configuration socket that `wg` talks to, and a thread per client
//!  ├─ resolver       looks host names up, if there are any
//!  ├─ stats          receives full recorders over a bounded channel; prints, and answers questions
//!  ├─ observer       those who watch: `show`, `top`, `report`, Prometheus; asks stats and protocol
//!  └─ capture        sleeps until somebody captures; gives every worker a tap and writes what they copy
//! ```
//!
//! No packet crosses from one thread to another: workers seal and open by themselves, and packets that wait for a session
//! wait where they were read. What does cross ([`worker::handoff`]): handshake messages to the protocol thread, orders from
//! it. A capture gets copies ([`worker::tap`]). Plaintext mode has neither the protocol thread nor the configuration socket.
//!
//! `uringvpn local` and `uringvpn server` are programs of their own ([`expose`]). All that is to do for a port is done by one
//! thread: a server has one for all ports, a client one for each. The others wait: for signals, and for those who watch, an
//! observer as a tunnel has, which reads what the busy ones count ([`stats::exposed`]); a client's also for names to be looked up,
//! and for its ports to end.

pub mod control;
pub mod dataplane;
pub mod expose;
pub mod io;
pub mod offload;
pub mod proto;
pub mod stats;
pub mod time;
pub mod wire;
pub mod worker;
