//! Which trains the kernel refuses, for how long that is worth remembering, and sending them in pieces that it takes.

use std::collections::HashMap;

use nix::errno::Errno;

use crate::dataplane::allowed_ips::PeerIndex;
use crate::io::driver::{Driver, Send};
use crate::offload::Part;
use crate::offload::train::{TRAIN_BYTES_MAX, TRAIN_SEGMENTS_SAFE};
use crate::stats::offloads::Refusal;
use crate::time::{Span, Time};

/// How long a refused train is remembered. As long as the kernel remembers a path MTU (net.ipv4.route.mtu_expires).
pub const REFUSED_TIME: Span = Span::from_secs(600);

/// Trains that are not worth trying for a while.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Whoever they are for.
    everywhere: Option<Refused>,
    by_peer: HashMap<PeerIndex, Refused>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    /// Of datagrams at least this long.
    segment_bytes: u16,
    /// Of more datagrams than this.
    segments_max: u16,
    until: Time,
}

impl Refused {
    /// Datagrams of `segment_bytes` that one send may carry, as far as this refusal goes.
    fn segments_max(&self, segment_bytes: u16, now: Time) -> u16 {
        let applies = now < self.until && segment_bytes >= self.segment_bytes;
        if applies { self.segments_max } else { u16::MAX }
    }
}

impl Refusals {
    /// Datagrams of `segment_bytes` that one send to `peer` may carry, as far as is known.
    pub fn segments_max(&self, peer: PeerIndex, segment_bytes: u16, now: Time) -> u16 {
        let known = [self.everywhere.as_ref(), self.by_peer.get(&peer)];
        known
            .iter()
            .flatten()
            .map(|refused| refused.segments_max(segment_bytes, now))
            .min()
            .unwrap_or(u16::MAX)
    }

    /// Remembers a refused train, and says how many datagrams to try instead and what was learned. Older kernels take 64
    /// and some devices cut none (EIO), whoever they are for; else they are too long for the path to this peer: EMSGSIZE,
    /// on older kernels EINVAL. Single datagrams may be fragmented.
    pub fn learn(&mut self, train: &Send, error: Errno, now: Time) -> (u16, Refusal) {
        let until = now + REFUSED_TIME;
        let to = train.to.remote;
        if error == Errno::EINVAL && train.datagrams > TRAIN_SEGMENTS_SAFE {
            let segments_max = TRAIN_SEGMENTS_SAFE;
            self.everywhere = Some(Refused { segment_bytes: 0, segments_max, until });
            return (segments_max, Refusal::LongTrain { datagrams_max: segments_max });
        }
        if error == Errno::EIO {
            self.everywhere = Some(Refused { segment_bytes: 0, segments_max: 1, until });
            return (1, Refusal::Train { to });
        }
        let datagram_bytes = train.segment_bytes;
        let refused = Refused { segment_bytes: datagram_bytes, segments_max: 1, until };
        self.by_peer.insert(train.peer, refused);
        (1, Refusal::NarrowPath { to, datagram_bytes })
    }

    /// Forgets a peer that is gone or lives elsewhere now.
    pub fn forget(&mut self, peer: PeerIndex) {
        self.by_peer.remove(&peer);
    }
}

/// The source address that the peer once sent to has gone from this host.
pub fn source_is_stale(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH)
}

/// The kernel or the device does not cut this train: udp(7) UDP_SEGMENT.
pub fn train_is_refused(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP)
}

/// As few submissions as the limits allow, in order; returns how many.
pub fn send_in_pieces<D: Driver>(driver: &mut D, train: Send, segments_max: u16) -> usize {
    let Part { slot, start, len } = train.part;
    let stride = u32::from(train.segment_bytes).max(1);
    let datagrams_max = u32::from(segments_max).min(TRAIN_BYTES_MAX / stride).max(1);
    let count = u32::from(train.datagrams).div_ceil(datagrams_max);
    for piece in 0..count {
        let first = piece * datagrams_max;
        let datagrams = datagrams_max.min(u32::from(train.datagrams) - first);
        let skip = first * stride;
        let part = Part { slot, start: start + skip, len: (datagrams * stride).min(len - skip) };
        driver.send(Send { part, datagrams: datagrams as u16, ..train });
    }
    count as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Endpoint;

    const NOW: Time = Time::from_nanos(1);

    fn train(peer: u32, datagrams: u16) -> Send {
        let to = Endpoint { remote: ([192, 0, 2, peer as u8], 7).into(), local: None };
        let part = Part { slot: 0, start: 0, len: 1400 * u32::from(datagrams) };
        Send { peer, to, tos: 0, part, segment_bytes: 1400, datagrams, started: NOW, sealed: NOW }
    }

    #[test]
    fn a_refusal_says_whom_it_concerns_and_lasts_ten_minutes() {
        let to = ([192, 0, 2, 1], 7).into();
        for (errno, datagrams, refusal, [this_peer, another]) in [
            (Errno::EMSGSIZE, 128, Refusal::NarrowPath { to, datagram_bytes: 1400 }, [1, u16::MAX]),
            (Errno::EINVAL, 64, Refusal::NarrowPath { to, datagram_bytes: 1400 }, [1, u16::MAX]),
            (Errno::EINVAL, 65, Refusal::LongTrain { datagrams_max: 64 }, [64, 64]),
            (Errno::EIO, 2, Refusal::Train { to }, [1, 1]),
        ] {
            let mut refusals = Refusals::default();
            assert_eq!(refusals.learn(&train(1, datagrams), errno, NOW), (this_peer, refusal));
            let at = |time| [1, 2].map(|peer| refusals.segments_max(peer, 1400, time));
            assert_eq!(at(NOW), [this_peer, another], "{errno}");
            assert_eq!(at(NOW + REFUSED_TIME), [u16::MAX; 2], "{errno}");
        }
    }
}
