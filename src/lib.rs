//! uringvpn: forwards packets between a TUN device and UDP at the speed the machine allows.
//!
//! # Folders, from pure to effectful
//!
//! A folder uses only those above it (`tests/tidy.rs` checks).
//!
//! | folder | one sentence |
//! |---|---|
//! | [`time`] | time since boot, spans and wall-clock time as plain numbers; nobody reads a clock here |
//! | [`wire`] | bytes to meaning and back: IP, TCP, UDP, checksums, the virtio header |
//! | [`offload`] | superpackets, segments, datagrams, trains: cutting and joining |
//! | [`proto`] | WireGuard without I/O: handshakes, sessions, timers, cookies |
//! | [`stats`] | counters and latency histograms, and the thread that collects them |
//! | [`dataplane`] | **start here**: one packet, one chain of calls, in both directions |
//! | [`io`] | the kernel: rings, TUN, UDP; the only folder with `unsafe` |
//! | [`control`] | command line, configuration file, netlink, the protocol of `wg`; `show`, `top`, `report`, metrics |
//! | [`worker`] | threads: where the data plane meets the kernel |
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
//!  └─ observer       those who watch: `show`, `top`, `report`, Prometheus; asks stats and protocol
//! ```
//!
//! No packet crosses from one thread to another: workers seal and open by themselves, and packets that wait for a session
//! wait where they were read. What does cross ([`worker::handoff`]): handshake messages to the protocol thread, orders from
//! it. Plaintext mode has neither the protocol thread nor the configuration socket.

pub mod control;
pub mod dataplane;
pub mod io;
pub mod offload;
pub mod proto;
pub mod stats;
pub mod time;
pub mod wire;
pub mod worker;
