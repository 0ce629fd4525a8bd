//! What workers and the protocol thread share of one peer: facts about its traffic, and news for the protocol thread.
//!
//! Workers note facts, per train, with plain stores; they decide nothing. The protocol thread reads the facts when one of
//! the peer's timers is due, and decides (see [`super::timers`]). A worker rings for it only when there is something that
//! cannot wait for a timer, or when no timer is running that would make it look.
//!
//! Beside them stands what was counted of the peer: bytes, datagrams, drops by reason. Several workers may send to one peer, so
//! these are added to, once per train, on a cache line that the facts have brought to the worker anyway.
//!
//! Facts are relaxed: one that is seen late is seen at the next look. News are not: what a worker did before it left some must
//! be seen by whoever takes them, also if the message that says "look at this peer" came from another worker.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

use crate::stats::drop::{DROP_REASONS, DropReason};
use crate::time::{Span, Time};

/// A worker asks again so long after it asked for a new session: while a handshake is under way every train would ask.
const ASK_AGAIN: Span = Span::from_secs(1);

/// Something happened that the protocol thread must hear of soon. Several may be pending for one peer; its thread takes
/// them all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum News {
    /// A worker holds packets for the peer and has no session to seal them with.
    SessionWanted = 1,
    /// The current session should be renewed.
    RekeyDue = 2,
    /// The peer has shown that it has the keys of the next session.
    Confirmed = 4,
    /// Traffic began; no timer watches it yet.
    Active = 8,
}

/// Pending [`News`], as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewsSet(u8);

impl NewsSet {
    /// Whether `news` is among them.
    pub fn has(self, news: News) -> bool {
        self.0 & news as u8 != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Facts about one peer's traffic. Times are 0 for "none".
#[derive(Debug, Default)]
pub struct Activity {
    rx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    /// The first data message sent that nothing has answered.
    unanswered_since: AtomicU64,
    /// The first data message received after which we sent nothing.
    owed_since: AtomicU64,
    /// The newest data message received.
    data_received_at: AtomicU64,
    /// The newest authenticated message in either direction.
    traversed_at: AtomicU64,
    /// When a worker last asked to renew the session.
    rekey_asked_at: AtomicU64,
    news: AtomicU8,
    /// Whether the protocol thread has a timer running that makes it look here.
    watched: AtomicBool,
    /// By reason; made with the first, since most peers never have any.
    drops: OnceLock<Box<[AtomicU64; DROP_REASONS]>>,
}

impl Activity {
    /// So many data messages, of `bytes` in all, are on their way to the peer. True if the protocol thread must be told to
    /// look.
    #[must_use]
    pub fn data_sent(&self, messages: u64, bytes: u64, now: Time) -> bool {
        self.tx_bytes.fetch_add(bytes, Relaxed);
        self.tx_packets.fetch_add(messages, Relaxed);
        if self.unanswered_since.load(Relaxed) == 0 {
            self.unanswered_since.store(stamp(now), Relaxed);
        }
        self.owed_since.store(0, Relaxed);
        self.traversed_at.store(stamp(now), Relaxed);
        self.watch()
    }

    /// So many authenticated data messages, of `bytes` in all, came from the peer; `data` if any was more than a keepalive.
    /// True if the protocol thread must be told to look.
    #[must_use]
    pub fn received(&self, messages: u64, bytes: u64, data: bool, now: Time) -> bool {
        self.rx_bytes.fetch_add(bytes, Relaxed);
        self.rx_packets.fetch_add(messages, Relaxed);
        self.unanswered_since.store(0, Relaxed);
        self.traversed_at.store(stamp(now), Relaxed);
        if data {
            self.data_received_at.store(stamp(now), Relaxed);
            if self.owed_since.load(Relaxed) == 0 {
                self.owed_since.store(stamp(now), Relaxed);
            }
        }
        data && self.watch()
    }

    /// A handshake message or keepalive of `bytes` is on its way to the peer.
    pub fn control_sent(&self, bytes: u64, now: Time) {
        self.tx_bytes.fetch_add(bytes, Relaxed);
        self.tx_packets.fetch_add(1, Relaxed);
        self.owed_since.store(0, Relaxed);
        self.traversed_at.store(stamp(now), Relaxed);
    }

    /// An authenticated handshake message of `bytes` came from the peer.
    pub fn control_received(&self, bytes: u64, now: Time) {
        self.rx_bytes.fetch_add(bytes, Relaxed);
        self.rx_packets.fetch_add(1, Relaxed);
        self.unanswered_since.store(0, Relaxed);
        self.traversed_at.store(stamp(now), Relaxed);
    }

    fn watch(&self) -> bool {
        !self.watched.load(Relaxed) && !self.watched.swap(true, Relaxed) && self.tell(News::Active)
    }

    /// Leaves `news` for the protocol thread. True if its thread must be told to look: then nothing was pending, so at most
    /// one note per peer is on its way at any time.
    #[must_use]
    pub fn tell(&self, news: News) -> bool {
        // Release pairs with the Acquire in `take_news`. It must be a write even if the same news are pending: a mere look
        // would not order what we did before it.
        NewsSet(self.news.fetch_or(news as u8, Release)).is_empty()
    }

    /// The session should be renewed: leaves that as news, though not with every train. True as for [`Activity::tell`].
    #[must_use]
    pub fn ask_to_rekey(&self, now: Time) -> bool {
        if time(&self.rekey_asked_at).is_some_and(|asked| now.since(asked) < ASK_AGAIN) {
            return false;
        }
        self.rekey_asked_at.store(stamp(now), Relaxed);
        self.tell(News::RekeyDue)
    }

    /// Takes what is pending.
    pub fn take_news(&self) -> NewsSet {
        // Pairs with the Release in `tell`.
        NewsSet(self.news.swap(0, Acquire))
    }

    /// A timer now watches the peer (or none does any more).
    pub fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Relaxed);
    }

    /// Counts packets to or from the peer that went no further. Only the first of a peer allocates.
    pub fn count_drop(&self, reason: DropReason, packets: u64) {
        let drops = self.drops.get_or_init(|| Box::new([const { AtomicU64::new(0) }; DROP_REASONS]));
        drops[reason as usize].fetch_add(packets, Relaxed);
    }

    /// The reasons for which anything of the peer was dropped, with how many packets.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = self.drops.get().into_iter().flat_map(|drops| drops.iter());
        let counts = DropReason::ALL.iter().zip(counts);
        counts.map(|(reason, count)| (*reason, count.load(Relaxed))).filter(|(_, packets)| *packets > 0)
    }

    /// Forgets the facts that timers wait for, not what was counted: the peer's sessions are gone.
    pub fn forget(&self) {
        let facts = [&self.unanswered_since, &self.owed_since, &self.data_received_at, &self.rekey_asked_at];
        for fact in facts {
            fact.store(0, Relaxed);
        }
    }

    /// The silence of the peer was acted upon; it counts anew from the next data message.
    pub fn silence_noted(&self) {
        self.unanswered_since.store(0, Relaxed);
    }

    /// What we owe the peer from `since` on is an answer, or with `None` nothing.
    pub fn set_owed(&self, since: Option<Time>) {
        self.owed_since.store(since.map_or(0, stamp), Relaxed);
    }

    /// UDP payload bytes received from the peer, authenticated.
    pub fn rx_bytes(&self) -> u64 {
        self.rx_bytes.load(Relaxed)
    }

    /// The datagrams they came in.
    pub fn rx_packets(&self) -> u64 {
        self.rx_packets.load(Relaxed)
    }

    /// UDP payload bytes sent to the peer.
    pub fn tx_bytes(&self) -> u64 {
        self.tx_bytes.load(Relaxed)
    }

    /// The datagrams they went in.
    pub fn tx_packets(&self) -> u64 {
        self.tx_packets.load(Relaxed)
    }

    /// When the first data message was sent that nothing has answered.
    pub fn unanswered_since(&self) -> Option<Time> {
        time(&self.unanswered_since)
    }

    /// When the first data message was received after which we sent nothing.
    pub fn owed_since(&self) -> Option<Time> {
        time(&self.owed_since)
    }

    /// When the newest data message was received.
    pub fn data_received_at(&self) -> Option<Time> {
        time(&self.data_received_at)
    }

    /// When the newest authenticated message passed, in either direction.
    pub fn traversed_at(&self) -> Option<Time> {
        time(&self.traversed_at)
    }
}

fn stamp(now: Time) -> u64 {
    now.as_nanos().max(1)
}

fn time(fact: &AtomicU64) -> Option<Time> {
    match fact.load(Relaxed) {
        0 => None,
        nanos => Some(Time::from_nanos(nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_nanos(1000);

    #[test]
    fn a_note_is_sent_only_when_none_is_on_its_way() {
        let activity = Activity::default();
        assert!(activity.tell(News::SessionWanted));
        assert!(!activity.tell(News::SessionWanted));
        assert!(!activity.tell(News::RekeyDue));
        let news = activity.take_news();
        assert!(news.has(News::SessionWanted) && news.has(News::RekeyDue) && !news.has(News::Confirmed));
        assert!(activity.take_news().is_empty());
        assert!(activity.tell(News::SessionWanted));
    }

    #[test]
    fn a_renewal_is_asked_for_once_a_second_at_most() {
        let activity = Activity::default();
        let second = Span::from_secs(1);
        assert!(activity.ask_to_rekey(NOW));
        assert!(activity.take_news().has(News::RekeyDue));
        assert!(!activity.ask_to_rekey(NOW + Span::from_millis(999)) && activity.take_news().is_empty());
        assert!(activity.ask_to_rekey(NOW + second));
        assert!(!activity.ask_to_rekey(NOW + second + second), "the note is still on its way");
        activity.forget();
        activity.take_news();
        assert!(activity.ask_to_rekey(NOW + second + second), "the next session asks for itself");
    }

    #[test]
    fn traffic_is_reported_once_until_nobody_watches_any_more() {
        let activity = Activity::default();
        assert!(activity.data_sent(1, 100, NOW));
        assert!(!activity.data_sent(1, 100, NOW));
        activity.take_news();
        assert!(!activity.received(1, 100, true, NOW));
        activity.set_watched(false);
        assert!(activity.received(1, 100, true, NOW));
    }

    #[test]
    fn datagrams_are_counted_with_their_bytes_whatever_they_hold() {
        let activity = Activity::default();
        let _ = activity.data_sent(45, 65_340, NOW);
        activity.control_sent(148, NOW);
        let _ = activity.received(7, 700, true, NOW);
        activity.control_received(92, NOW);
        assert_eq!((activity.tx_packets(), activity.tx_bytes()), (46, 65_488));
        assert_eq!((activity.rx_packets(), activity.rx_bytes()), (8, 792));
    }

    #[test]
    fn drops_are_told_by_reason_and_take_no_room_before_the_first() {
        let activity = Activity::default();
        assert!(activity.drops.get().is_none() && activity.drops().next().is_none());
        activity.count_drop(DropReason::Replayed, 2);
        activity.count_drop(DropReason::StageFull, 1);
        activity.count_drop(DropReason::Replayed, 3);
        activity.forget();
        let drops: Vec<_> = activity.drops().collect();
        assert_eq!(drops, [(DropReason::StageFull, 1), (DropReason::Replayed, 5)]);
    }

    #[test]
    fn a_keepalive_answers_but_is_owed_nothing() {
        let activity = Activity::default();
        let _ = activity.data_sent(1, 100, NOW);
        assert_eq!(activity.unanswered_since(), Some(NOW));
        assert!(!activity.received(1, 32, false, NOW));
        assert_eq!((activity.unanswered_since(), activity.owed_since()), (None, None));
    }
}
