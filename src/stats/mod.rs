//! What happened, cheaply: counters with one writer each, latency recorders that are swapped and never locked.
//!
//! # The conservation law
//!
//! Per direction and in packets: `in = out + Σ drops + staged + in flight`. Outbound, *in* is the segments the TUN gave us and
//! *out* the datagrams the kernel took; inbound, *in* is the datagrams received and *out* the packets the TUN took.
//! Nobody counts what is in flight: [`Totals::in_flight`](counters::Totals::in_flight) derives it, so a packet that
//! vanished silently stays in flight for ever and [`check_drained`](counters::Totals::check_drained) says so. What we write to
//! the TUN of our own accord (`icmp_errors`) came in nowhere and is no part of it.
//!
//! What the kernel drops before we receive it was never *in*: [`overflown`](counters::Totals::overflown) is in no sum, and told
//! beside the drops.
//!
//! # From a worker to the operator's eyes
//!
//! | who | what | where |
//! |---|---|---|
//! | worker | adds to its own [`WorkerCounters`](counters::WorkerCounters) | [`counters`] |
//! | | and to what all share of a peer | [`Activity`] |
//! | worker | records into its own [`Recorder`](recorder::Recorder), hands it over once a second | [`recorder`] |
//! | protocol thread | records how long handshakes took | [`recorder::Handshakes`] |
//! | whoever finds out | sets down what the kernel does for us, and how the tunnel is set up | [`offloads`], [`settings`] |
//! | stats thread | reads the counters, merges the recorders, gives them back, prints | [`thread`] |
//! | | keeps the last minute second by second | [`history`] |
//! | | answers with all of it, for `show` and `top`, as buckets for `report`, as text for Prometheus | [`snapshot`], [`histograms`], [`openmetrics`], [`text_format`] |
//! | capture thread | writes packets that workers hand it as a file, with what became of them | [`pcapng`] |
//!
//! `uringvpn local` and `uringvpn server` have connections instead of packets: [`exposed`].
//!
//! [`Activity`]: crate::proto::activity::Activity

pub mod counters;
pub mod distributions;
pub mod drop;
pub mod exposed;
pub mod histograms;
pub mod history;
pub mod offloads;
pub mod openmetrics;
pub mod pcapng;
pub mod recorder;
pub mod settings;
pub mod snapshot;
pub mod text_format;
pub mod thread;
