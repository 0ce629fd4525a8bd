//! Packets that wait for a session, per peer the newest in order.
//!
//! A worker stages what its own queue brought, so a flow's packets wait in one place and leave in the order they came.
//! Source: WireGuard whitepaper §6.1; drivers/net/wireguard/messages.h MAX_STAGED_PACKETS.

use std::collections::{HashMap, VecDeque};

use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::outbound::Read;
use crate::time::{Span, Time};

/// Packets that may wait for one peer, each segment of a superpacket counted.
pub const STAGED_PACKETS_MAX: usize = 128;
/// Bytes that may wait for all peers of one worker: a scan of a thousand dead peers must not fill the memory.
pub const STAGED_BYTES_MAX: usize = 16 << 20;
/// What a waiting read takes besides its bytes: its place in a queue, which may be half empty, and what the allocator keeps.
/// More than a small packet itself.
const OVERHEAD_BYTES: usize = 2 * size_of::<StagedRead>() + 16;
/// The protocol thread is told again after so long that there is a wish for a session: what kept it from making one may
/// have passed.
const ASK_AGAIN: Span = Span::from_secs(1);

/// A TUN read that waits.
#[derive(Debug)]
pub struct StagedRead {
    /// Vnet header and packet.
    pub bytes: Box<[u8]>,
    /// How far it has come.
    pub read: Read,
    /// Packets in it that are still to be sent.
    pub packets: usize,
}

impl StagedRead {
    /// What it takes from [`STAGED_BYTES_MAX`].
    fn memory_bytes(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }
}

#[derive(Debug)]
struct Queue {
    reads: VecDeque<StagedRead>,
    packets: usize,
    asked_at: Time,
}

/// The staged packets of one worker.
#[derive(Debug, Default)]
pub struct Stage {
    queues: HashMap<PeerIndex, Queue>,
    bytes: usize,
    packets: usize,
}

/// What became of a staged read.
#[derive(Debug)]
pub struct Staged {
    /// Older reads, or itself, that went for lack of room.
    pub dropped: Vec<StagedRead>,
    /// Whether the protocol thread should be told that a session is wanted.
    pub ask: bool,
}

impl Stage {
    /// Stages a read behind the others for `peer`.
    pub fn push(&mut self, peer: PeerIndex, read: StagedRead, now: Time) -> Staged {
        let ask_first = !self.queues.contains_key(&peer);
        let queue = self.queues.entry(peer).or_insert_with(|| Queue {
            reads: VecDeque::new(),
            packets: 0,
            asked_at: now,
        });
        let mut dropped = Vec::new();
        let room = STAGED_BYTES_MAX.saturating_sub(read.memory_bytes());
        while queue.packets + read.packets > STAGED_PACKETS_MAX || self.bytes > room {
            let Some(oldest) = queue.reads.pop_front() else { break };
            queue.packets -= oldest.packets;
            self.bytes -= oldest.memory_bytes();
            self.packets -= oldest.packets;
            dropped.push(oldest);
        }
        if self.bytes > room {
            dropped.push(read);
        } else {
            self.bytes += read.memory_bytes();
            self.packets += read.packets;
            queue.packets += read.packets;
            queue.reads.push_back(read);
        }
        let ask = ask_first || now.since(queue.asked_at) >= ASK_AGAIN;
        if ask {
            queue.asked_at = now;
        }
        Staged { dropped, ask }
    }

    /// Takes the oldest read for `peer`.
    pub fn pop(&mut self, peer: PeerIndex) -> Option<StagedRead> {
        let queue = self.queues.get_mut(&peer)?;
        let Some(read) = queue.reads.pop_front() else {
            self.queues.remove(&peer);
            return None;
        };
        queue.packets -= read.packets;
        self.bytes -= read.memory_bytes();
        self.packets -= read.packets;
        Some(read)
    }

    /// Puts a read back that [`Stage::pop`] gave and that could not go on.
    pub fn put_back(&mut self, peer: PeerIndex, read: StagedRead) {
        if let Some(queue) = self.queues.get_mut(&peer) {
            queue.packets += read.packets;
            self.bytes += read.memory_bytes();
            self.packets += read.packets;
            queue.reads.push_front(read);
        }
    }

    /// Packets that wait, for whichever peer.
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Takes out all that waits for `peer`.
    pub fn discard(&mut self, peer: PeerIndex) -> Vec<StagedRead> {
        let Some(queue) = self.queues.remove(&peer) else { return Vec::new() };
        self.bytes -= queue.reads.iter().map(StagedRead::memory_bytes).sum::<usize>();
        self.packets -= queue.packets;
        queue.reads.into()
    }

    /// Takes out everything.
    pub fn discard_all(&mut self) -> Vec<StagedRead> {
        self.bytes = 0;
        self.packets = 0;
        self.queues.drain().flat_map(|(_, queue)| queue.reads).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_nanos(1_000_000_000);

    fn read(mark: u8, packets: usize, bytes: usize) -> StagedRead {
        let read = Read { bytes, resume: Some(0), at: NOW };
        StagedRead { bytes: vec![mark; bytes].into(), read, packets }
    }

    fn packets<'a>(reads: impl IntoIterator<Item = &'a StagedRead>) -> usize {
        reads.into_iter().map(|read| read.packets).sum()
    }

    fn marks(stage: &mut Stage, peer: PeerIndex) -> Vec<u8> {
        std::iter::from_fn(|| stage.pop(peer)).map(|read| read.bytes[0]).collect()
    }

    #[test]
    fn the_newest_128_packets_wait_in_order() {
        let mut stage = Stage::default();
        let dropped: usize =
            (0..200u8).map(|mark| packets(&stage.push(1, read(mark, 1, 100), NOW).dropped)).sum();
        assert_eq!(dropped, 72);
        assert_eq!(marks(&mut stage, 1), (72..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_superpacket_counts_as_its_segments() {
        let mut stage = Stage::default();
        for (mark, dropped) in [(1, 0), (2, 0), (3, 45)] {
            assert_eq!(packets(&stage.push(1, read(mark, 45, 60_000), NOW).dropped), dropped);
        }
        assert_eq!(marks(&mut stage, 1), [2, 3]);
    }

    #[test]
    fn memory_has_a_bound_however_many_peers_are_dead() {
        let mut stage = Stage::default();
        let (mut kept, mut dropped) = (0, 0);
        for peer in 0..1000 {
            dropped += packets(&stage.push(peer, read(0, 45, 60_000), NOW).dropped);
            kept += 1;
        }
        assert!(stage.bytes <= STAGED_BYTES_MAX);
        assert_eq!(kept * 45 - dropped, packets(&stage.discard_all()));
        assert_eq!(stage.bytes, 0);
    }

    #[test]
    fn small_packets_count_with_what_keeping_them_takes() {
        let mut stage = Stage::default();
        for peer in 0..5000 {
            (0..128).for_each(|_| assert!(stage.push(peer, read(0, 1, 44), NOW).dropped.len() <= 1));
        }
        let queues = stage.queues.values().map(|queue| &queue.reads);
        let memory: usize =
            queues.map(|reads| reads.capacity() * size_of::<StagedRead>() + reads.len() * 44).sum();
        assert!(memory <= STAGED_BYTES_MAX, "{memory} bytes");
        assert!(stage.discard_all().len() > 10_000);
    }

    #[test]
    fn a_session_is_asked_for_once_a_second_at_most() {
        let mut stage = Stage::default();
        assert!(stage.push(1, read(0, 1, 100), NOW).ask);
        assert!(!stage.push(1, read(0, 1, 100), NOW).ask);
        assert!(stage.push(1, read(0, 1, 100), NOW + ASK_AGAIN).ask);
        assert_eq!(stage.discard(1).len(), 3);
        assert!(stage.push(1, read(0, 1, 100), NOW + ASK_AGAIN).ask);
    }

    #[test]
    fn what_could_not_go_on_is_first_again() {
        let mut stage = Stage::default();
        for mark in 1..=3 {
            stage.push(7, read(mark, 1, 100), NOW);
        }
        let first = stage.pop(7).expect("three wait");
        stage.put_back(7, first);
        assert_eq!(marks(&mut stage, 7), [1, 2, 3]);
    }
}
