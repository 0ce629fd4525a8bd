//! What the operator hears: for people as a sentence, for programs as JSON.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;
use tracing::Level;

use super::flows;
use super::relay::End;
use crate::control::logging::Line;
use crate::stats::exposed::public_port::Protocol;
use crate::stats::exposed::public_port::PublicPort;
use crate::time::Span;

/// Something that happened. As JSON an object whose `event` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum News {
    /// The server waits for clients.
    Serving {
        /// The control port.
        control: SocketAddr,
    },
    /// A client has a public port.
    Opened {
        /// The client.
        client: SocketAddr,
        /// Its public port.
        #[serde(flatten)]
        port: PublicPort,
        /// It had it before.
        kept: bool,
    },
    /// A client has gone.
    Left {
        /// Its public port.
        #[serde(flatten)]
        port: PublicPort,
        /// Why.
        reason: String,
        /// Seconds for which the port is kept for it.
        held_seconds: u64,
    },
    /// A port that was kept is free again.
    Freed {
        /// Which.
        #[serde(flatten)]
        port: PublicPort,
    },
    /// A connection to the control port that came to nothing.
    Refused {
        /// Whose.
        client: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A visitor came to a public port.
    Visitor {
        /// Which.
        #[serde(flatten)]
        port: PublicPort,
        /// Who.
        from: SocketAddr,
    },
    /// A visitor was turned away.
    TurnedAway {
        /// The public port.
        #[serde(flatten)]
        port: PublicPort,
        /// Who.
        from: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A relayed connection has ended.
    Closed {
        /// Why.
        reason: String,
        /// Bytes from the visitor.
        bytes_in: u64,
        /// Bytes to the visitor.
        bytes_out: u64,
        /// How long it lasted.
        seconds: f64,
    },
    /// A flow of datagrams has ended.
    FlowEnded {
        /// Why.
        reason: String,
        /// From the visitor.
        datagrams_in: u64,
        /// Their payload.
        bytes_in: u64,
        /// To the visitor.
        datagrams_out: u64,
        /// Their payload.
        bytes_out: u64,
        /// Lost here, in both directions.
        datagrams_lost: u64,
        /// How long it lasted.
        seconds: f64,
    },
    /// Visitors share one connection to their client from now on.
    Carried {
        /// The public port.
        #[serde(flatten)]
        port: PublicPort,
    },
    /// Visitors do not come by a carrier any more, or for the moment: each gets a connection.
    CarrierLost {
        /// The public port.
        #[serde(flatten)]
        port: PublicPort,
        /// Why.
        reason: String,
    },
    /// Nobody can be accepted for the moment.
    Starved {
        /// Why.
        reason: String,
    },
    /// The local service is public.
    Public {
        /// HOST:PORT for visitors.
        address: String,
        /// The public port.
        #[serde(flatten)]
        port: PublicPort,
        /// The local service, HOST:PORT.
        local: String,
    },
    /// The control connection is gone, or did not come about again.
    Lost {
        /// Why.
        reason: String,
        /// Seconds until the next attempt.
        again_in_seconds: f64,
    },
    /// A visitor could not be served.
    Unserved {
        /// Why.
        reason: String,
    },
    /// The server reports trouble of its own.
    Trouble {
        /// In its words.
        reason: String,
    },
    /// More happened of one kind than is told one by one.
    LeftOut {
        /// How many.
        lines: u64,
        /// The newest of them.
        newest: Box<News>,
    },
    /// Nobody read what was told.
    Unread {
        /// How many lines were lost.
        lines: u64,
    },
}

impl News {
    /// A relayed connection is over.
    pub fn closed(end: End, bytes_in: u64, bytes_out: u64, lasted: Span) -> News {
        News::Closed { reason: reason(end), bytes_in, bytes_out, seconds: lasted.as_nanos() as f64 / 1e9 }
    }

    /// A flow is over, of which the visitor brought `incoming` and the service `outgoing`.
    pub fn flow_ended<T>(over: &flows::Over<T>, incoming: flows::Traffic, outgoing: flows::Traffic) -> News {
        News::FlowEnded {
            reason: reason(over.end),
            datagrams_in: incoming.datagrams,
            bytes_in: incoming.bytes,
            datagrams_out: outgoing.datagrams,
            bytes_out: outgoing.bytes,
            datagrams_lost: over.lost,
            seconds: over.lasted.as_nanos() as f64 / 1e9,
        }
    }

    /// Whether somebody who is no client of ours, and no server, decides how often it happens.
    pub fn is_brought_about_by_others(&self) -> bool {
        use News::{Closed, FlowEnded, Refused, Starved, Trouble, TurnedAway, Unserved, Visitor};
        matches!(self, Refused { .. } | TurnedAway { .. } | Unserved { .. } | Starved { .. } | Trouble { .. })
            || matches!(self, Visitor { .. } | Closed { .. } | FlowEnded { .. })
    }

    /// How severe it is.
    pub fn level(&self) -> Level {
        match self {
            News::Visitor { .. } | News::Closed { .. } | News::FlowEnded { .. } => Level::DEBUG,
            News::Refused { .. } | News::TurnedAway { .. } | News::Starved { .. } => Level::WARN,
            News::Lost { .. } | News::Unserved { .. } | News::Trouble { .. } => Level::WARN,
            News::LeftOut { .. } | News::Unread { .. } | News::CarrierLost { .. } => Level::WARN,
            _ => Level::INFO,
        }
    }
}

fn reason(end: End) -> String {
    match end {
        End::Finished => "finished".to_owned(),
        End::Broken(error) => format!("broken ({})", error.desc()),
        End::Idle => "silent for too long".to_owned(),
    }
}

impl Line for News {
    fn newest_of(self, lines: u64) -> News {
        News::LeftOut { lines, newest: Box::new(self) }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            News::Serving { control } => write!(f, "waiting for clients at {control}"),
            News::Opened { client, port, kept: false } => write!(f, "port {port} is public for {client}"),
            News::Opened { client, port, kept: true } => {
                write!(f, "port {port} is public again for {client}")
            }
            News::Left { port, reason, held_seconds: 0 } => write!(f, "port {port} is closed: {reason}"),
            News::Left { port, reason, held_seconds } => {
                write!(f, "port {port} is kept for {held_seconds} s, its client is away: {reason}")
            }
            News::Freed { port } => write!(f, "port {port} is closed: its client did not come back"),
            News::Refused { client, reason } => write!(f, "{client} refused: {reason}"),
            News::Visitor { port, from } => write!(f, "port {port}: visitor {from}"),
            News::TurnedAway { port, from, reason } => write!(f, "port {port}: {from} turned away: {reason}"),
            News::Closed { reason, bytes_in, bytes_out, seconds } => {
                write!(f, "connection {reason} after {seconds:.3} s, {bytes_in} bytes in, {bytes_out} out")
            }
            News::Carried { port } => write!(f, "port {port}: visitors share one connection to their client"),
            News::CarrierLost { port, reason } => {
                write!(f, "port {port}: visitors get a connection each, they share none: {reason}")
            }
            News::Starved { reason } => write!(f, "cannot accept connections for a moment: {reason}"),
            News::FlowEnded { reason, datagrams_in, datagrams_out, datagrams_lost, seconds, .. } => write!(
                f,
                "flow {reason} after {seconds:.3} s, {datagrams_in} datagrams in, {datagrams_out} out, {datagrams_lost} lost"
            ),
            News::Public { address, port, local } => match port.protocol {
                Protocol::Tcp => write!(f, "{local} is public at {address}"),
                Protocol::Udp => write!(f, "{local}/udp is public at {address}/udp"),
            },
            News::Lost { reason, again_in_seconds } => {
                write!(f, "not connected: {reason}; trying again in {again_in_seconds:.1} s")
            }
            News::Unserved { reason } => write!(f, "a visitor could not be served: {reason}"),
            News::Trouble { reason } => write!(f, "the server says: {reason}"),
            News::LeftOut { lines, newest } => write!(f, "{newest} (the newest of {lines} lines like it)"),
            News::Unread { lines } => write!(f, "{lines} lines were lost: nobody read them"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_the_public_address_in_one_line() {
        let public =
            |port| News::Public { address: "example.net:7".into(), port, local: "localhost:80".into() };
        let news = public(PublicPort::tcp(7));
        let json = serde_json::to_string(&news).unwrap();
        let line = r#"{"event":"public","address":"example.net:7","port":7,"protocol":"tcp","local":"localhost:80"}"#;
        assert_eq!(json, line);
        assert_eq!(news.to_string(), "localhost:80 is public at example.net:7");
        let news = public(PublicPort::udp(7));
        assert_eq!(serde_json::to_string(&news).unwrap(), line.replace("tcp", "udp"));
        assert_eq!(news.to_string(), "localhost:80/udp is public at example.net:7/udp");
    }
}
