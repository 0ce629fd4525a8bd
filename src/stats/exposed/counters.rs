//! What a program that exposes ports counts: its counters, and what there is now.
//!
//! Add one by adding a line to a table; JSON, text, `top` and metrics follow.

use super::super::counters::{Counter, Gauge};
use super::Whose;

/// What one number is called, who has it, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name in statistics, that of the field.
    pub name: &'static str,
    /// Who counts it.
    pub whose: Whose,
    /// What one unit is, if that is not clear from the name.
    pub unit: &'static str,
    /// What is counted, in a sentence.
    pub help: &'static str,
}

macro_rules! numbers {
    ($(#[$doc:meta])* $all:ident of $cell:ident, $(#[$sum_doc:meta])* $sums:ident;
     $($name:ident $whose:ident $unit:literal $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $all {
            $(#[doc = $help] pub $name: $cell,)*
        }

        $(#[$sum_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $sums {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl $sums {
            /// The table.
            pub const TABLE: &[Info] = &[$(Info {
                name: stringify!($name), whose: Whose::$whose, unit: $unit, help: $help,
            }),*];

            /// The values, in the order of the table.
            pub fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$name),*].into_iter()
            }

            /// Adds what one thread has.
            pub fn add(&mut self, one: &$all) {
                $(self.$name += one.$name.get();)*
            }

            /// How much each has grown since `earlier`.
            pub fn since(&self, earlier: &$sums) -> $sums {
                $sums { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }
        }
    };
}

numbers! {
    /// What one relay thread counted.
    Counters of Counter,
    /// The sum over all threads, in plain numbers.
    Counted;
    visitors Both "" "Visitors that came to a public port, as a server accepts them, and as a client is told of them.";
    joined Both "" "Visitors that were joined with the local service: from then on they are relayed.";
    left Server "" "Visitors that left before they were joined.";
    in_bytes Both "bytes" "Bytes that came from visitors.";
    out_bytes Both "bytes" "Bytes that were passed on to visitors.";
    callers Server "" "Connections to the control port, whatever they were for.";
    opened Both "" "Public ports that were opened, those of clients that came back not counted.";
    reconnects Both "" "Clients that came back to their port, as a server sees it, and as the client does.";
    lost Both "" "Connections between client and server that were lost, and attempts to come back that failed.";
    starved Server "" "Times nobody could be accepted for want of descriptors or memory.";
}

numbers! {
    /// What there is now with one relay thread.
    Gauges of Gauge,
    /// The sum over all threads, in plain numbers.
    Present;
    open Both "" "Connections that are relayed.";
    waiting Both "" "Visitors that are not joined yet.";
    ports_open Both "" "Public ports whose client is there.";
    ports_held Both "" "Public ports whose client is away: kept for it, or, as the client sees it, asked for again.";
    pending_callers Server "" "Connections to the control port of which nobody knows yet what they want.";
}
