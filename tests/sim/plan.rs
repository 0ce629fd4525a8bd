//! What a run of the encrypted simulation consists of.

use uringvpn::io::fake::Faults;
use uringvpn::offload::coalesce::Merge;

use crate::check::HOSTS_MAX;
use crate::network::Troubles;
use crate::random::Random;
use crate::wire::Hostility;

/// What a run consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Per host.
    pub workers: Vec<usize>,
    pub outer_v6: bool,
    pub mtu: u16,
    pub preshared: bool,
    /// Per host, in seconds; 0 for none.
    pub keepalive: [u16; HOSTS_MAX],
    pub train_segments_max: u16,
    pub merge: Merge,
    /// This host learns from handshakes where the others are.
    pub server: Option<usize>,
    pub faults: Faults,
    pub troubles: Troubles,
    pub hostility: Hostility,
    pub incidents: Incidents,
    pub episodes: usize,
}

/// What may happen to a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incidents {
    /// The kernel or an operator hands over nonsense.
    pub junk: bool,
    /// Orders reach a worker late.
    pub held_up: bool,
    /// It starts anew.
    pub restarts: bool,
    /// Its address changes.
    pub roams: bool,
    /// Its wall clock is set, forward; backward only where nothing restarts, since nobody answers initiations of the past.
    pub clock_jumps: bool,
    /// It sleeps for up to an hour.
    pub suspends: bool,
    /// Its protocol thread gets no time for up to ten seconds.
    pub sticks: bool,
    /// Its interface goes down and comes up.
    pub links: bool,
}

impl Plan {
    /// Of all troubles each run has a random part; one run in eight has none.
    pub fn of(seed: u64) -> Plan {
        let random = &mut Random::new(seed ^ 0xe7c2);
        let calm = seed.is_multiple_of(8);
        let mut percent =
            |most: usize| if calm || random.chance(60) { 0 } else { random.between(1, most) as u8 };
        let faults = Faults {
            late: percent(60),
            ended: percent(50),
            short_read: percent(10),
            truncated: percent(20),
            receive_error: percent(30),
            send_error: percent(20),
            refuses_trains: percent(1) > 0,
            tun_down: percent(20),
            ..Faults::default()
        };
        let troubles =
            Troubles { lost: percent(30), duplicated: percent(10), swapped: percent(5), padded: percent(5) };
        let hostility = Hostility {
            flipped: percent(10),
            late: percent(10),
            relayed: percent(5),
            replays: percent(1) > 0,
            forges: percent(1) > 0,
            floods: percent(1) > 0 && percent(1) > 0,
        };
        let mut happens = || percent(1) > 0;
        let incidents = Incidents {
            junk: happens(),
            held_up: happens(),
            restarts: happens(),
            roams: happens(),
            clock_jumps: happens(),
            suspends: happens(),
            sticks: happens(),
            links: happens(),
        };
        let hosts = if random.chance(25) { 3 } else { 2 };
        Plan {
            workers: (0..hosts).map(|_| random.between(1, 4)).collect(),
            outer_v6: random.chance(50),
            mtu: random.pick(&[0, 1420, 1500]),
            preshared: random.chance(50),
            keepalive: [0; HOSTS_MAX].map(|_| random.pick(&[0, 0, 25])),
            train_segments_max: random.pick(&[1, 2, 64, 128]),
            merge: Merge { tcp: random.chance(80), udp: random.chance(80) },
            server: random.chance(30).then_some(0),
            troubles,
            hostility,
            incidents,
            episodes: random.between(2, 5),
            faults: Faults {
                refused_write: if calm || random.chance(60) { 0 } else { random.between(1, 30) as u8 },
                ..faults
            },
        }
    }

    /// Nothing goes wrong.
    pub fn calm(seed: u64) -> Plan {
        Plan { train_segments_max: 64, server: None, ..Plan::of(seed.wrapping_mul(8)) }
    }

    pub fn sends_in_order(&self) -> bool {
        self.faults.send_error == 0 && !self.faults.refuses_trains
    }

    pub fn arrives_in_order(&self) -> bool {
        // What was lost and is replayed comes late; what the TUN refused comes behind what was written with it.
        let replayed = self.hostility.late > 0 || self.hostility.replays;
        self.troubles.swapped == 0 && !replayed && self.faults.refused_write == 0
    }
}
