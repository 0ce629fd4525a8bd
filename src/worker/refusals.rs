//! Which trains the kernel refuses, and for how long that is worth remembering.

use std::collections::HashMap;

use nix::errno::Errno;

use crate::dataplane::allowed_ips::PeerIndex;
use crate::io::driver::Send;
use crate::offload::train::TRAIN_SEGMENTS_SAFE;
use crate::time::{Span, Time};

/// How long a refused train is remembered. As long as the kernel remembers a path MTU (net.ipv4.route.mtu_expires).
const REFUSED_TIME: Span = Span::from_secs(600);

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

    /// Remembers a refused train and says how many datagrams to try instead. Older kernels take 64 and some devices
    /// cut none (EIO), whoever they are for; else they are too long for the path to this peer: EMSGSIZE, on older kernels
    /// EINVAL. Single datagrams may be fragmented.
    pub fn learn(&mut self, train: &Send, error: Errno, now: Time) -> u16 {
        let until = now + REFUSED_TIME;
        let too_many = error == Errno::EINVAL && train.datagrams > TRAIN_SEGMENTS_SAFE;
        if too_many || error == Errno::EIO {
            let segments_max = if too_many { TRAIN_SEGMENTS_SAFE } else { 1 };
            self.everywhere = Some(Refused { segment_bytes: 0, segments_max, until });
            return segments_max;
        }
        let refused = Refused { segment_bytes: train.segment_bytes, segments_max: 1, until };
        self.by_peer.insert(train.peer, refused);
        1
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
