//! What happened to the connections of public ports: counted and timed by `uringvpn local` and `uringvpn server`, told to those
//! who watch.
//!
//! # From a relay thread to the operator's eyes
//!
//! | who | what | where |
//! |---|---|---|
//! | relay thread | counts and times, into memory that it alone writes and anybody may read | [`recorder`], [`live`] |
//! | | what it can count, for which reasons a connection ends, and of which port | [`counters`], [`reasons`], [`public_port`] |
//! | observer | reads that once a second, and keeps the last minute | [`minute`] |
//! | | answers with all of it, for `show` and `top`, and for Prometheus | [`snapshot`], [`openmetrics`] |
//!
//! Nothing is handed over and nobody asks the relay thread, so whoever watches, however slow or hostile, takes nothing from it.
//!
//! # The law
//!
//! `visitors = joined + turned away + left + waiting`, and `joined = open + ended`. Each number is counted or set by itself where
//! it happens, none is derived, so one that was forgotten shows: `uringvpn show --check` looks.
//!
//! # Times
//!
//! The clock is that of the driver ([`crate::io`]), read when a turn has reaped: everything one turn brought counts from the same
//! moment, and how long it lay in the kernel before is in no interval. What each includes is said in [`recorder::DISTRIBUTIONS`].
//!
//! # Another kind of traffic
//!
//! A flow of datagrams is a connection here: it has a [`recorder::Meter`] from its first datagram until it was silent for too
//! long ([`reasons::Ended::Idle`]), and what that counts appears everywhere.

pub mod counters;
pub mod live;
pub mod minute;
pub mod openmetrics;
pub mod public_port;
pub mod reasons;
pub mod recorder;
pub mod snapshot;

/// Which of the two programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// `uringvpn server`.
    #[default]
    Server,
    /// `uringvpn local`.
    Local,
}

impl Kind {
    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Server => "server",
            Kind::Local => "local",
        }
    }
}

/// To which program something can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// To either.
    Both,
    /// To `uringvpn server` alone.
    Server,
    /// To `uringvpn local` alone.
    Local,
}

impl Whose {
    /// Whether it can happen to a program of this kind.
    pub const fn is(self, kind: Kind) -> bool {
        matches!((self, kind), (Whose::Both, _) | (Whose::Server, Kind::Server) | (Whose::Local, Kind::Local))
    }
}
