//! A local service, TCP or UDP, made public on a port of another machine: `uringvpn local` and `uringvpn server`.
//!
//! It speaks the protocol of bore 0.6, so that either side may be bore:
//!
//! ```text
//!  service            local                          server                 visitor
//!     │                 │── Hello(port) ──────────────▶│ listens at port        │
//!     │                 │◀───────────────── Hello(port)│                        │
//!     │                 │◀─────────────────── Heartbeat│ every 500 ms           │
//!     │                 │                              │◀────────────── connects│
//!     │                 │◀────────────── Connection(id)│                        │
//!     │◀───────connects │── new connection ───────────▶│                        │
//!     │                 │── Accept(id) ───────────────▶│                        │
//!     │◀══════════════ bytes, each direction by itself ═══════════════════════▶ │
//! ```
//!
//! With a secret every connection to the server begins with its Challenge ([`auth`]).
//!
//! # What we add, and why bore never notices
//!
//! Our Hello has a space behind its JSON, which JSON does not count. A server of ours that sees it sends `{"Lease":"UUID"}`
//! before its own Hello. When the client is lost, its port stays open for a while; when it comes back and asks
//! for that port, it is sent a Challenge and proves that it was given the lease ([`auth::Authenticator::for_lease`]). With a
//! secret, which was proven before, this is left out while the port has no owner: a client that was killed and started again
//! has no lease to prove, and gets its port nevertheless. A client that ends says `"Release"`, and the port is free at once.
//! Visitors are announced by `{"Visitor":["UUID","ADDR:PORT"]}` instead of `Connection`. None of this is ever sent to one who
//! has not shown that it understands it.
//!
//! # UDP
//!
//! A client asks for a public UDP port with `{"Datagrams":PORT}` in place of its Hello. A server that does not know that ends the
//! connection, as bore does with every message it does not know, and the client says what that means. Everything else is as
//! above: Challenge, Lease, Hello in answer, Visitor, Release. A visitor is a source address at the public port; its first
//! datagram announces it, and an `Accept` takes it over. The connection that said so carries datagrams from there on, each
//! direction a sequence of
//!
//! ```text
//!  length, 2 bytes, big-endian, 0 to 65,527 │ payload
//! ```
//!
//! Either end of it ends the flow; so does a silence of 60 seconds, or of 10 until the visitor has gone on after an answer. Nobody
//! waits for anybody: what finds no room is lost and counted ([`Loss`](crate::stats::exposed::reasons::Loss)).
//!
//! # One connection for all visitors
//!
//! A client that has a lease may make one more connection and say `{"Carry":"LEASE"}` on it, where others say `Accept`. From then
//! on it carries the port's visitors as streams, in frames of both directions ([`mux`]), and none is announced on the control
//! connection. The visitor's first bytes come with it: no round trip is spent on connecting. When the carrier is lost, visitors
//! are announced again, until there is another.
//!
//! # Map
//!
//! | file | what |
//! |---|---|
//! | [`message`], [`auth`] | messages, frames, the proof |
//! | [`caller`], [`control`] | the two ends of a connection until its purpose is clear, pure |
//! | [`server`], [`client`] | the two programs, on any [`Tcp`](crate::io::tcp::Tcp); `turn` is what they do alike |
//! | `server::owners`, `ports`, `server::visitors` | public ports and the clients they belong to; who comes there |
//! | `client::link`, `client::calls` | the connection to the server; visitors brought to the local service |
//! | `client::carrier` | the connection that visitors share |
//! | [`relay`] | pairs of connections: half-close, RST, back-pressure, time-outs |
//! | [`mux`] | streams on a carrier: the same for them |
//! | [`mux::frames`], [`mux::window`] | what a carrier carries; how much each side may send |
//! | `mux::carrier`, `mux::stream` | the state of one |
//! | [`flows`], `flows::passing` | a visitor's datagrams and their connection: time-outs; bounds |
//! | `flows::service` | which address of a service answers |
//! | [`frames`] | datagrams as bytes on a connection |
//! | [`proxy`] | the PROXY protocol: where a visitor comes from, told to the local service |
//! | [`alarms`] | what is to be looked at when |
//! | [`news`], `output` | what the operator hears, and where: the log, JSON |
//! | [`run`], `watch` | the thread, the driver, signals, names; those who watch ([`crate::stats::exposed`]) |

pub mod alarms;
pub mod auth;
pub mod caller;
pub mod client;
pub mod control;
pub mod flows;
pub mod frames;
pub mod message;
pub mod mux;
pub mod news;
mod output;
mod ports;
pub mod proxy;
pub mod relay;
pub mod run;
pub mod server;
mod turn;
mod watch;

/// How sockets are made.
mod sockets {
    use crate::io::tcp::{Options, Patience};
    use crate::time::Span;

    /// Between client and server, through `device` if there is one: found dead after 15 seconds.
    pub fn leg(device: Option<&str>) -> Options {
        let patience = Patience {
            idle: Span::from_secs(5),
            interval: Span::from_secs(5),
            probes: 2,
            unacknowledged: Some(Span::from_secs(15)),
        };
        Options { patience, device: device.map(str::to_owned) }
    }

    /// Towards visitors and the local service: they may be out of reach for a while.
    pub fn end() -> Options {
        let patience = Patience {
            idle: Span::from_secs(60),
            interval: Span::from_secs(10),
            probes: 6,
            unacknowledged: None,
        };
        Options { patience, device: None }
    }
}
