//! The offload self-check: what the kernel does for us, and why not where it does not.
//!
//! The main thread sets down at the start what is in use. A worker that is refused something later, as a train on a path
//! too narrow for it, reports that; what is accepted costs nothing. The first refusal of each cause is logged, the newest of
//! each is shown.
//!
//! Of io_uring those features have a row that the driver can do without. What it cannot do without (provided buffers,
//! multishot receive, a single submitting thread) is part of [`Offload::Uring`].

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::snapshot::OffloadSnapshot;
use crate::time::Time;

/// What one offload is called and what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadInfo {
    /// Its name in statistics and on the command line.
    pub name: &'static str,
    /// What leaves it unused, on the command line.
    pub switch: &'static str,
    /// What it is, with the kernel's own name.
    pub what: &'static str,
    /// First Linux version that has it.
    pub since: &'static str,
    /// What is done without it.
    pub without: &'static str,
}

macro_rules! offloads {
    ($($variant:ident $name:literal $switch:literal $what:literal $since:literal $without:literal;)*) => {
        /// Something that the kernel may do for us and that a tunnel can do without.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Offload {
            $(#[doc = $what] $variant,)*
        }

        impl Offload {
            /// Every one, in the order of every list.
            pub const ALL: [Offload; OFFLOADS] = [$(Offload::$variant),*];

            /// What it is called and what it is good for.
            pub const fn info(self) -> &'static OffloadInfo {
                const TABLE: &[OffloadInfo] = &[$(OffloadInfo {
                    name: $name, switch: $switch, what: $what, since: $since, without: $without
                }),*];
                &TABLE[self as usize]
            }
        }
    };
}

/// How many there are.
const OFFLOADS: usize = 8;

offloads! {
    Tso "tso" "--disable tso" "TCP segmentation offload (TUN_F_TSO4, TUN_F_TSO6)" "2.6.27"
        "one read and one write per TCP segment: several times slower";
    Uso "uso" "--disable uso" "UDP segmentation offload (TUN_F_USO4, TUN_F_USO6)" "6.2"
        "one read and one write per UDP datagram; TCP is not affected";
    Gso "gso" "--disable gso" "trains sent in one call (UDP_SEGMENT)" "4.18"
        "one send per datagram: several times slower";
    Gro "gro" "--disable gro" "trains received in one call (UDP_GRO)" "5.0"
        "one receive per datagram: several times slower";
    Steering "steering" "--disable steering" "steering to the right worker (SO_ATTACH_REUSEPORT_CBPF)" "4.5"
        "the kernel's hash chooses the worker; a single peer may not reach all";
    Uring "uring" "--io syscall" "io_uring, with provided buffers and multishot receive" "6.0"
        "plain system calls (epoll, readv, sendmsg): up to 10 % slower";
    DeferTaskrun "defer-taskrun" "--disable defer-taskrun" "completions only when asked for (DEFER_TASKRUN)" "6.1"
        "COOP_TASKRUN: a little more work per completion";
    MultishotRead "multishot-read" "--disable multishot-read" "multishot read, for the TUN" "6.7"
        "single reads, submitted anew each time";
}

/// How an offload was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// In use.
    #[default]
    On,
    /// The operator's switch keeps it unused.
    SwitchedOff,
    /// The kernel refuses it: how.
    Refused(String),
    /// There is nothing for it to do: why.
    Unneeded(&'static str),
}

/// What the kernel refused while the tunnel ran, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A train on a way that cuts none, whatever its size.
    Train {
        /// The peer's endpoint.
        to: SocketAddr,
    },
    /// A train of more datagrams than older kernels take.
    LongTrain {
        /// What they take.
        datagrams_max: u16,
    },
    /// A train of datagrams that are too long for the path to this peer.
    NarrowPath {
        /// The peer's endpoint.
        to: SocketAddr,
        /// UDP payload of each.
        datagram_bytes: u16,
    },
    /// A write of joined packets to the interface.
    Superpacket {
        /// Of TCP; else of UDP.
        tcp: bool,
    },
    /// A ring for this worker, though there was one for another.
    Ring {
        /// Its number.
        worker: usize,
    },
}

impl Refusal {
    /// What is in use no longer, or not everywhere.
    pub fn offload(self) -> Offload {
        match self {
            Refusal::Train { .. } | Refusal::LongTrain { .. } | Refusal::NarrowPath { .. } => Offload::Gso,
            Refusal::Superpacket { tcp: true } => Offload::Tso,
            Refusal::Superpacket { tcp: false } => Offload::Uso,
            Refusal::Ring { .. } => Offload::Uring,
        }
    }
}

/// What happened, and what follows.
impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Train { to } => {
                write!(out, "no train passes on the way to {to}; all datagrams leave one by one")
            }
            Refusal::LongTrain { datagrams_max } => {
                write!(out, "the kernel takes shorter trains; they have {datagrams_max} datagrams at most")
            }
            Refusal::NarrowPath { to, datagram_bytes } => write!(
                out,
                "the path to {to} is too narrow for trains of {datagram_bytes}-byte datagrams; there they leave one by \
                 one, in fragments (a smaller MTU of the interface avoids that)"
            ),
            Refusal::Superpacket { tcp } => write!(
                out,
                "the interface refused joined {} packets; what is refused is written packet by packet",
                if *tcp { "TCP" } else { "UDP" }
            ),
            Refusal::Ring { worker } => {
                write!(out, "no ring for worker {worker} (raise `ulimit -l`); it uses plain system calls")
            }
        }
    }
}

/// Refusals of one cause, of which the newest stands for all.
#[derive(Clone, Copy, Debug)]
struct Downgrade {
    times: u64,
    refusal: Refusal,
    errno: Errno,
    at: Time,
    /// When it is forgotten; `None`: never.
    until: Option<Time>,
}

impl Downgrade {
    fn has_cause(&self, refusal: Refusal, errno: Errno) -> bool {
        std::mem::discriminant(&self.refusal) == std::mem::discriminant(&refusal) && self.errno == errno
    }
}

impl fmt::Display for Downgrade {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Downgrade { times, refusal, errno, .. } = self;
        match times {
            1 => write!(out, "{errno:?}: {refusal}"),
            _ => write!(out, "{errno:?}, {times} times: {refusal}"),
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    found: Found,
    /// By cause.
    downgrades: Vec<Downgrade>,
}

/// What is known of every offload of a tunnel. Shared by those who find out and those who show it.
#[derive(Debug, Default)]
pub struct SelfCheck {
    interface: String,
    /// Held no longer than it takes to write the rows down, and workers come only with news.
    rows: Mutex<[Row; OFFLOADS]>,
}

impl SelfCheck {
    /// Everything is on until something else is found. `interface` stands in front of what is logged.
    pub fn new(interface: &str) -> SelfCheck {
        SelfCheck { interface: interface.to_owned(), rows: Mutex::default() }
    }

    /// Sets down how `offload` was found at the start; what the kernel refuses is logged.
    pub fn found(&self, offload: Offload, found: Found) {
        let OffloadInfo { name, without, .. } = offload.info();
        let interface = &self.interface;
        match (&found, offload) {
            // Old kernels lack them, little is lost, and nobody can do anything about it.
            (Found::Refused(how), Offload::DeferTaskrun | Offload::MultishotRead) => {
                tracing::info!("{interface}: {name} is off: {how}; {without}");
            }
            (Found::Refused(how), _) => tracing::warn!("{interface}: {name} is off: {how}; {without}"),
            _ => {}
        }
        self.rows()[offload as usize].found = found;
    }

    /// Takes in that the kernel refused something at `at`, which is told until `until`. The first of its cause is logged.
    pub fn refused(&self, refusal: Refusal, errno: Errno, at: Time, until: Option<Time>) {
        let offload = refusal.offload();
        let downgrade = self.rows()[offload as usize].note(refusal, errno, at, until);
        let (interface, name) = (&self.interface, offload.info().name);
        if downgrade.times == 1 {
            tracing::warn!("{interface}: {name} is downgraded: {downgrade}");
        } else {
            tracing::debug!("{interface}: {name} is downgraded: {downgrade}");
        }
    }

    /// All offloads as they are at `now`.
    pub fn snapshot(&self, now: Time) -> Vec<OffloadSnapshot> {
        let rows = self.rows();
        Offload::ALL.iter().zip(rows.iter()).map(|(offload, row)| row.snapshot(*offload, now)).collect()
    }

    fn rows(&self) -> MutexGuard<'_, [Row; OFFLOADS]> {
        // Whoever panicked left whole rows behind.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn note(&mut self, refusal: Refusal, errno: Errno, at: Time, until: Option<Time>) -> Downgrade {
        let first = Downgrade { times: 1, refusal, errno, at, until };
        match self.downgrades.iter_mut().find(|known| known.has_cause(refusal, errno)) {
            Some(known) => {
                *known = Downgrade { times: known.times + 1, ..first };
                *known
            }
            None => {
                self.downgrades.push(first);
                first
            }
        }
    }

    fn snapshot(&self, offload: Offload, now: Time) -> OffloadSnapshot {
        let OffloadInfo { name, switch, what, since, without } = offload.info();
        let present: Vec<_> =
            self.downgrades.iter().filter(|known| known.until.is_none_or(|until| now < until)).collect();
        let newest = present.iter().max_by_key(|known| known.at);
        let (state, cause, reason) = match (&self.found, newest) {
            (Found::On, Some(newest)) => {
                let told: Vec<_> = present.iter().map(|known| known.to_string()).collect();
                ("downgraded", format!("{:?}", newest.errno), told.join("; "))
            }
            (Found::On, None) => ("on", "none".to_owned(), (*what).to_owned()),
            (Found::SwitchedOff, _) => ("off", "switch".to_owned(), format!("{switch}: {without}")),
            (Found::Refused(how), _) => {
                ("off", "kernel".to_owned(), format!("{how}; Linux {since} has it; {without}"))
            }
            (Found::Unneeded(why), _) => ("off", "unneeded".to_owned(), (*why).to_owned()),
        };
        OffloadSnapshot {
            offload: (*name).to_owned(),
            state: state.to_owned(),
            cause,
            reason,
            seconds_ago: newest
                .filter(|_| state == "downgraded")
                .map(|newest| now.since(newest.at).as_nanos() as f64 / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    const NOW: Time = Time::from_nanos(5_000_000_000);

    fn row(check: &SelfCheck, offload: Offload, now: Time) -> OffloadSnapshot {
        check.snapshot(now).swap_remove(offload as usize)
    }

    fn narrow(last: u8) -> Refusal {
        Refusal::NarrowPath { to: ([192, 0, 2, last], 7).into(), datagram_bytes: 1452 }
    }

    #[test]
    fn every_offload_has_a_state_and_a_reason_whatever_was_found() {
        let found = [
            Found::On,
            Found::SwitchedOff,
            Found::Refused("TUNSETOFFLOAD: EINVAL".to_owned()),
            Found::Unneeded("a single worker"),
        ];
        for (found, state) in found.into_iter().zip(["on", "off", "off", "off"]) {
            let check = SelfCheck::default();
            Offload::ALL.iter().for_each(|offload| check.found(*offload, found.clone()));
            for (row, offload) in check.snapshot(NOW).into_iter().zip(Offload::ALL) {
                assert_eq!((row.offload.as_str(), row.state.as_str()), (offload.info().name, state));
                assert!(!row.reason.is_empty() && !row.cause.is_empty(), "{row:?}");
            }
        }
    }

    #[test]
    fn a_switch_and_an_old_kernel_are_told_apart_and_say_what_to_do() {
        let check = SelfCheck::default();
        check.found(Offload::Uso, Found::Refused("TUNSETOFFLOAD: EINVAL".to_owned()));
        check.found(Offload::Gso, Found::SwitchedOff);
        let [uso, gso] = [Offload::Uso, Offload::Gso].map(|offload| row(&check, offload, NOW));
        assert_eq!((uso.cause.as_str(), gso.cause.as_str()), ("kernel", "switch"));
        assert!(uso.reason.starts_with("TUNSETOFFLOAD: EINVAL; Linux 6.2 has it; "), "{}", uso.reason);
        assert!(gso.reason.starts_with("--disable gso: "), "{}", gso.reason);
    }

    #[test]
    fn a_downgrade_lasts_as_long_as_it_is_remembered_and_the_newest_of_a_cause_stands_for_all() {
        let check = SelfCheck::default();
        let later = NOW + Span::from_secs(2);
        check.refused(narrow(1), Errno::EMSGSIZE, NOW, Some(NOW + Span::from_secs(10)));
        check.refused(narrow(2), Errno::EMSGSIZE, later, Some(NOW + Span::from_secs(12)));
        let gso = row(&check, Offload::Gso, NOW + Span::from_secs(5));
        assert_eq!((gso.state.as_str(), gso.cause.as_str()), ("downgraded", "EMSGSIZE"));
        assert_eq!(gso.seconds_ago, Some(3.0));
        let told = "EMSGSIZE, 2 times: the path to 192.0.2.2:7 is too narrow";
        assert!(gso.reason.starts_with(told), "{}", gso.reason);
        let gso = row(&check, Offload::Gso, NOW + Span::from_secs(12));
        assert_eq!((gso.state.as_str(), gso.seconds_ago), ("on", None));
    }

    #[test]
    fn different_causes_are_all_told_and_what_is_off_stays_off() {
        let check = SelfCheck::default();
        check.refused(narrow(1), Errno::EMSGSIZE, NOW, None);
        check.refused(Refusal::Train { to: ([192, 0, 2, 3], 7).into() }, Errno::EIO, NOW, None);
        check.refused(Refusal::Superpacket { tcp: false }, Errno::EINVAL, NOW, None);
        check.found(Offload::Uring, Found::SwitchedOff);
        check.refused(Refusal::Ring { worker: 1 }, Errno::ENOMEM, NOW, None);
        let reason = row(&check, Offload::Gso, NOW).reason;
        assert!(reason.contains("EMSGSIZE: ") && reason.contains("; EIO: "), "{reason}");
        let states =
            [Offload::Tso, Offload::Uso, Offload::Uring].map(|offload| row(&check, offload, NOW).state);
        assert_eq!(states, ["on", "downgraded", "off"]);
    }
}
