//! What statistics, messages and options alike call a public port.

use std::fmt;

use serde::Serialize;

/// What a service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A public port: TCP and UDP have their own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PublicPort {
    /// Its number; to whoever asks for one, 0 is any.
    #[serde(rename = "port")]
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PublicPort {
    /// A TCP port.
    pub fn tcp(number: u16) -> PublicPort {
        PublicPort { number, protocol: Protocol::Tcp }
    }

    /// A UDP port.
    pub fn udp(number: u16) -> PublicPort {
        PublicPort { number, protocol: Protocol::Udp }
    }
}

impl fmt::Display for PublicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.number),
            Protocol::Udp => write!(f, "{}/udp", self.number),
        }
    }
}
