//! The constants of WireGuard's timers.
//!
//! Source: WireGuard whitepaper §6.1 to §6.5; drivers/net/wireguard/messages.h.

use crate::time::Span;

/// Age at which the initiator renews a session. Whitepaper §6.1, Rekey-After-Time.
pub const REKEY_AFTER_TIME: Span = Span::from_secs(120);
/// Age at which a session is of no more use. Whitepaper §6.1, Reject-After-Time.
pub const REJECT_AFTER_TIME: Span = Span::from_secs(180);
/// How long an initiation may stay unanswered before the next one. Whitepaper §6.1, Rekey-Timeout.
pub const REKEY_TIMEOUT: Span = Span::from_secs(5);
/// At most so much is added to [`REKEY_TIMEOUT`], at random, so that two peers do not keep meeting half-way. Whitepaper §6.1.
pub const REKEY_JITTER_MAX: Span = Span::from_millis(333);
/// Initiations after which we give up until there is new data: the first, and as many retries as fit into the 90 seconds of
/// Rekey-Attempt-Time, plus those that the kernel counts on top. drivers/net/wireguard/timers.c `MAX_TIMER_HANDSHAKES`.
pub const INITIATIONS_MAX: u32 = 20;
/// How long we may owe the peer an answer before a keepalive is sent. Whitepaper §6.5, Keepalive-Timeout.
pub const KEEPALIVE_TIMEOUT: Span = Span::from_secs(10);
/// Silence after data was sent that starts a new handshake: Keepalive-Timeout plus Rekey-Timeout. Whitepaper §6.5.
pub const DEAF_TIMEOUT: Span = Span::from_secs(15);
/// Time after the last session was made when all keys of a peer are wiped. Whitepaper §6.3.
pub const WIPE_AFTER_TIME: Span = Span::from_secs(540);
/// How long a cookie is good. Whitepaper §5.4.7.
pub const COOKIE_LIFETIME: Span = Span::from_secs(120);
/// A cookie is no longer used so long before it ends, for the time the message travels. drivers/net/wireguard/messages.h.
pub const COOKIE_LATENCY: Span = Span::from_secs(5);
/// Initiations of one peer closer together than this are ignored. drivers/net/wireguard/messages.h INITIATIONS_PER_SECOND.
pub const INITIATION_INTERVAL_MIN: Span = Span::from_millis(20);
/// How long we stay under load after the queue was last long. drivers/net/wireguard/receive.c.
pub const UNDER_LOAD_TIME: Span = Span::from_secs(1);
/// Handshake datagrams waiting from which on we are under load. drivers/net/wireguard/receive.c: an eighth of 4096. There junk
/// waits, too; with us what has a fitting mac1, which is what costs multiplications, and what tells that a peer has moved.
pub const UNDER_LOAD_QUEUED: usize = 512;
