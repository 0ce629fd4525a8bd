//! How connections of a public port end, and for which reasons somebody is turned away or refused.
//!
//! Each is a counter, a label, and a sentence of help. Who decides is in [`crate::stats`]'s users; here is only what it is called.

use super::super::counters::Counter;
use super::Whose;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident;
     $($variant:ident $whose:ident $label:literal $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $(#[doc = $help] $variant,)*
        }

        impl Reason for $name {
            const ALL: &'static [$name] = &[$($name::$variant),*];

            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                match self { $($name::$variant => $label),* }
            }

            fn whose(self) -> Whose {
                match self { $($name::$variant => Whose::$whose),* }
            }

            fn help(self) -> &'static str {
                match self { $($name::$variant => $help),* }
            }
        }
    };
}

/// Counters of one table.
pub trait Reason: Copy + 'static {
    /// Every reason, in the order of its index.
    const ALL: &'static [Self];

    /// Its place among the counters.
    fn index(self) -> usize;

    /// The name in statistics.
    fn label(self) -> &'static str;

    /// To whom it happens.
    fn whose(self) -> Whose;

    /// What it means, and what to do.
    fn help(self) -> &'static str;
}

reasons! {
    /// How a relayed connection ended.
    Ended;
    Finished Both "finished" "Both sides ended it.";
    Broken Both "broken" "One side broke it off, or could no longer be reached; the other was told by a reset.";
    Idle Both "idle" "It was silent for longer than --idle-timeout or --half-open-timeout; over UDP for 60 seconds, or 10 before the visitor has gone on after an answer.";
}

reasons! {
    /// Why a visitor was not joined.
    TurnedAway;
    NotAllowed Server "not_allowed" "It comes from no network of --allow-visitors.";
    TooMany Server "too_many" "There are as many visitors as --max-connections, or the limit of descriptors, allows.";
    TooManyOfClient Server "too_many_of_client" "The port has as many visitors as --max-connections-per-client allows.";
    TooManyWaiting Server "too_many_waiting" "As many visitors of the UDP port wait for its client as may.";
    NotTaken Server "not_taken" "Its client did not take it within 10 seconds: look whether the client is reachable and not overloaded.";
    PortClosed Server "port_closed" "The port was closed while it waited.";
    Draining Server "draining" "The server is about to end.";
    LocalUnreachable Local "local_unreachable" "The local service did not accept a connection: look whether it runs, and where.";
    ServerUnreachable Local "server_unreachable" "No connection to the server could be made for it, or the visitor had left before.";
    TooSlow Local "too_slow" "Connections to the server and the local service did not stand within 8 seconds.";
    NoChallenge Local "no_challenge" "The server did not ask for the secret: somebody else may answer in its place.";
}

reasons! {
    /// Why a datagram between a visitor and the service was lost, as far as that was here.
    Loss;
    Early Server "early" "More came than is kept until the client takes its visitor.";
    Full Both "full" "The visitor's connection has as many bytes on their way as it may have: the other side, or the way there, is slower than who sends.";
    Overflown Both "overflown" "More came at once than the kernel kept for us, or what came was damaged (wrong checksum): look whether the machine is overloaded; without privileges it keeps what net.core.rmem_max says.";
    NoRoom Both "no_room" "The kernel had no room to send it.";
    TooLong Both "too_long" "It was too long for where it goes to.";
    Refused Local "refused" "Nobody listens at the local service's port: look whether it runs, and where.";
    Unsent Both "unsent" "The kernel did not send it for another reason, or its connection ended before: look at the routes to where it goes.";
    TurnedAway Server "turned_away" "Its visitor was turned away, or the port is about to be closed.";
}

reasons! {
    /// Why a connection to the control port was refused.
    Refused;
    NotAllowed Server "not_allowed" "It comes from no network of --allow-clients.";
    CrowdedOut Server "crowded_out" "It had not said what it wants when too many others came.";
    NotTheProtocol Server "not_the_protocol" "It sent what is no message of the protocol.";
    OutOfTurn Server "out_of_turn" "It sent a message that does not belong there.";
    Silent Server "silent" "It said nothing within 3 seconds.";
    WrongSecret Server "wrong_secret" "It has another secret.";
    NoSecret Server "no_secret" "It has no secret, and the server has one.";
    PortInUse Server "port_in_use" "It wanted a port that somebody has, or that is kept for another client.";
    PortForbidden Server "port_forbidden" "It wanted a port that the kernel does not let the server open.";
    CannotBind Server "cannot_bind" "The port could not be opened for want of descriptors, or of the address of --bind-tunnels.";
    OutOfRange Server "out_of_range" "It wanted a port outside --min-port and --max-port.";
    NoPort Server "no_port" "It wanted any port, and none was free.";
    NoUdp Server "no_udp" "It wanted a UDP port, and the server has --no-udp.";
    TooManyPorts Server "too_many_ports" "There are as many ports as --max-ports allows, and each has its client.";
    UnknownVisitor Server "unknown_visitor" "It wanted a visitor that is not there: one that left, or that nobody ever announced.";
    UnknownLease Server "unknown_lease" "It wanted to carry the visitors of a port that is not there: one that was closed, or that another client has.";
}

/// A counter for each reason of a table.
#[derive(Debug)]
pub struct ByReason<R> {
    counters: Box<[Counter]>,
    table: std::marker::PhantomData<fn(R)>,
}

impl<R: Reason> Default for ByReason<R> {
    fn default() -> ByReason<R> {
        let counters = R::ALL.iter().map(|_| Counter::default()).collect();
        ByReason { counters, table: std::marker::PhantomData }
    }
}

impl<R: Reason> ByReason<R> {
    /// Counts one. Only the owning thread may call this.
    pub fn count(&self, reason: R) {
        self.counters[reason.index()].add(1);
    }

    /// Counts so many. Only the owning thread may call this.
    pub fn count_many(&self, reason: R, count: u64) {
        self.counters[reason.index()].add(count);
    }

    /// How often it happened.
    pub fn get(&self, reason: R) -> u64 {
        self.counters[reason.index()].get()
    }

    /// How often for any reason.
    pub fn total(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }

    /// Adds all to `sums`, which is in the order of the table.
    pub fn add_to(&self, sums: &mut Vec<u64>) {
        sums.resize(R::ALL.len(), 0);
        sums.iter_mut().zip(&self.counters).for_each(|(sum, counter)| *sum += counter.get());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn labels<R: Reason>() {
        let labels: BTreeSet<_> = R::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), R::ALL.len());
        for (index, reason) in R::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(reason.help().ends_with('.') && !reason.help().contains(['"', '\\']));
        }
    }

    #[test]
    fn each_reason_has_its_place_its_name_and_its_sentence() {
        labels::<Ended>();
        labels::<TurnedAway>();
        labels::<Refused>();
        labels::<Loss>();
    }
}
