//! When one peer's timers fire, and what they do then.
//!
//! | timer | started by | does |
//! |---|---|---|
//! | initiation | an initiation sent, or one that had to wait | sends it again; gives up after [`INITIATIONS_MAX`] |
//! | traffic | a worker that told of traffic | looks at [`Activity`](super::activity::Activity): sends a keepalive that is owed, begins a handshake if the peer is silent |
//! | persistent keepalive | configuration | sends a keepalive if nothing has passed for so long |
//! | wipe | a session made, a handshake given up | drops sessions and keys of no more use |
//!
//! Source: drivers/net/wireguard/timers.c; WireGuard whitepaper §6.

use super::output::Reason;
use super::peer::Peer;
use super::rng::Rng;
use super::shared::{Moment, Shared};
use super::timers::{
    DEAF_TIMEOUT, INITIATIONS_MAX, KEEPALIVE_TIMEOUT, REKEY_JITTER_MAX, REKEY_TIMEOUT, WIPE_AFTER_TIME,
};
use crate::time::{Span, Time};

/// After nobody watches a peer any more, we look once again: a worker that was noting a fact just then may have seen us
/// watching.
const LAST_LOOK: Span = Span::from_secs(1);

/// The deadlines of one peer, and what they count. See the module.
#[derive(Debug, Default)]
pub(super) struct Timers {
    initiation: Option<Time>,
    /// Initiations sent since something new asked for one.
    attempts: u32,
    traffic: Option<Time>,
    /// Whether workers were told that a timer looks at the traffic.
    watched: bool,
    /// What is added to [`DEAF_TIMEOUT`], drawn when traffic begins.
    deaf_jitter: Span,
    persistent: Option<Time>,
    /// Whether the next persistent keepalive is the first.
    persistent_begins: bool,
    pub(super) wipe_at: Option<Time>,
}

impl Timers {
    /// Whether an initiation is to be sent or sent again.
    pub(super) fn initiating(&self) -> bool {
        self.initiation.is_some()
    }

    /// Begins a handshake at `time`, unless one is under way.
    pub(super) fn initiate_if_idle(&mut self, time: Time) {
        self.initiation.get_or_insert(time);
    }

    /// The attempts count from the one under way, if there is one.
    pub(super) fn count_attempts_anew(&mut self) {
        self.attempts = self.attempts.min(u32::from(self.initiating()));
    }

    pub(super) fn initiation_sent(&mut self, now: Time, rng: &mut Rng) {
        self.attempts += 1;
        self.initiation = Some(now + REKEY_TIMEOUT + jitter(rng));
    }

    pub(super) fn handshake_completed(&mut self) {
        self.initiation = None;
        self.attempts = 0;
    }

    /// The one that fires first.
    pub(super) fn next(&self) -> Option<(Time, Reason)> {
        let deadlines = [
            (self.initiation, Reason::Initiation),
            (self.traffic, Reason::Traffic),
            (self.persistent, Reason::PersistentKeepalive),
            (self.wipe_at, Reason::Wipe),
        ];
        let set = deadlines.into_iter().filter_map(|(time, reason)| Some((time?, reason)));
        set.min_by_key(|(time, _)| *time)
    }
}

impl Peer {
    /// Does what the timers ask for that are due. All that are set afterwards lie in the future.
    pub(super) fn fire(&mut self, shared: &mut Shared, at: Moment) {
        let due = |timer: &mut Option<Time>| timer.take_if(|time| *time <= at.now).is_some();
        if due(&mut self.timers.wipe_at) {
            self.wipe_old(shared, at.now);
        }
        if due(&mut self.timers.initiation) {
            self.retry(shared, at);
        }
        if due(&mut self.timers.traffic) {
            self.look(shared, at);
        }
        if due(&mut self.timers.persistent) {
            self.persist(shared, at);
        }
    }

    /// kernel: `wg_expired_retransmit_handshake`.
    fn retry(&mut self, shared: &mut Shared, at: Moment) {
        if self.timers.attempts < INITIATIONS_MAX {
            if self.timers.attempts > 0 {
                self.forget_local_address(shared);
            }
            return self.initiate(shared, at);
        }
        self.timers.attempts = 0;
        self.timers.wipe_at.get_or_insert(at.now + WIPE_AFTER_TIME);
        self.give_up(shared);
    }

    /// A worker tells that there is traffic.
    pub(super) fn watch(&mut self, shared: &mut Shared, at: Moment) {
        self.timers.deaf_jitter = jitter(&mut shared.rng);
        self.look(shared, at);
    }

    /// Looks at what workers have noted, and when to look again.
    fn look(&mut self, shared: &mut Shared, at: Moment) {
        self.pay_what_is_owed(shared, at);
        self.judge_silence(shared, at);
        let owed = self.activity.owed_since().map(|since| since + KEEPALIVE_TIMEOUT);
        let silent = self.activity.unanswered_since().map(|since| since + self.deaf_timeout());
        let next = owed.into_iter().chain(silent).min();
        let was_watched = std::mem::replace(&mut self.timers.watched, next.is_some());
        self.activity.set_watched(next.is_some());
        self.timers.traffic = match next {
            // What is noted after this look falls due after this time at the soonest.
            Some(next) => Some(next.min(at.now + KEEPALIVE_TIMEOUT)),
            None => was_watched.then_some(at.now + LAST_LOOK),
        };
    }

    /// kernel: `wg_expired_send_keepalive`.
    fn pay_what_is_owed(&mut self, shared: &mut Shared, at: Moment) {
        let Some(since) = self.activity.owed_since() else {
            return;
        };
        if at.now.since(since) >= KEEPALIVE_TIMEOUT {
            // If data came after the first, the peer waits for another answer.
            let another = self.activity.data_received_at() > Some(since);
            // Not set again after the keepalive unless it must be: a worker may have noted new data by then.
            self.activity.set_owed(None);
            self.send_keepalive(shared, at);
            if another {
                self.activity.set_owed(Some(at.now));
            }
        }
    }

    /// kernel: `wg_expired_new_handshake`.
    fn judge_silence(&mut self, shared: &mut Shared, at: Moment) {
        let silent = self.activity.unanswered_since().map(|since| at.now.since(since));
        if silent >= Some(self.deaf_timeout()) {
            self.activity.silence_noted();
            self.forget_local_address(shared);
            self.want_handshake(shared, at);
        }
    }

    fn deaf_timeout(&self) -> Span {
        Span::from_nanos(DEAF_TIMEOUT.as_nanos() + self.timers.deaf_jitter.as_nanos())
    }

    /// A handshake begins at `time`.
    pub(super) fn begin_at(&mut self, time: Time) {
        self.timers.initiation = Some(time);
    }

    /// Persistent keepalives begin at `time`, whatever has passed before.
    pub(super) fn begin_persistent_at(&mut self, time: Time) {
        self.timers.persistent = Some(time);
        self.timers.persistent_begins = true;
    }

    /// Sends a persistent keepalive now, and whenever nothing has passed for so long.
    pub(super) fn start_persistent(&mut self, shared: &mut Shared, at: Moment) {
        self.send_keepalive(shared, at);
        self.restart_persistent(at.now);
    }

    /// Follows a change of the interval.
    pub(super) fn restart_persistent(&mut self, now: Time) {
        self.timers.persistent = (self.keepalive > 0).then(|| now + self.persistent_interval());
    }

    fn persist(&mut self, shared: &mut Shared, at: Moment) {
        let passed = self.activity.traversed_at().unwrap_or_default();
        let due = passed + self.persistent_interval();
        if due > at.now && !std::mem::take(&mut self.timers.persistent_begins) {
            self.timers.persistent = Some(due);
        } else {
            self.start_persistent(shared, at);
        }
    }

    fn persistent_interval(&self) -> Span {
        Span::from_secs(u64::from(self.keepalive))
    }
}

fn jitter(rng: &mut Rng) -> Span {
    Span::from_nanos(rng.below(REKEY_JITTER_MAX.as_nanos() + 1))
}
