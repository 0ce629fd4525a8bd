//! mac1 and mac2, and the cookie reply: how a responder under load refuses work to whoever has not shown that it owns its
//! address.
//!
//! ```text
//! initiator                                   responder under load
//!   initiation, mac2 zero ───────────────────▶ mac1 fits, mac2 does not
//!   MacWriter keeps the cookie ◀── 64 bytes ── cookie: a MAC of the address and port it saw
//!   initiation, mac2 made with it ───────────▶ mac2 fits: goes on
//! ```
//!
//! Both messages that carry MACs end with them: mac1 16 | mac2 16. The responder keeps nothing per initiator, and its reply
//! is shorter than what it answers.
//!
//! Source: WireGuard whitepaper §5.3, §5.4.4, §5.4.7; drivers/net/wireguard/cookie.c.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use zeroize::Zeroizing;

use super::crypto::{Hash, MAC_BYTES, TAG_BYTES, XNONCE_BYTES, hash, mac, same_mac, xopen, xseal};
use super::keys::{KEY_BYTES, PublicKey};
use super::rng::Rng;
use super::timers::{COOKIE_LATENCY, COOKIE_LIFETIME};
use crate::time::Time;
use crate::wire::message::{COOKIE_BYTES, INITIATION_BYTES, RESPONSE_BYTES, TYPE_COOKIE, cookie};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// mac1 and mac2.
const MACS_BYTES: usize = 2 * MAC_BYTES;
/// How long after its arrival a cookie is used.
const COOKIE_USE: u64 = COOKIE_LIFETIME.as_nanos() - COOKIE_LATENCY.as_nanos();

const _: () =
    assert!(COOKIE_BYTES < RESPONSE_BYTES && RESPONSE_BYTES < INITIATION_BYTES, "no answer is longer");

type Mac = [u8; MAC_BYTES];
type Cookie = Zeroizing<Mac>;

/// The two keys that everybody can derive from a public key.
struct LabelKeys {
    mac1: Hash,
    cookie: Hash,
}

impl LabelKeys {
    fn new(public: &PublicKey) -> LabelKeys {
        let derive = |label| hash(&[label, public.as_bytes()]);
        LabelKeys { mac1: derive(LABEL_MAC1), cookie: derive(LABEL_COOKIE) }
    }
}

/// Writes the MACs of messages to one peer, and keeps the cookie it gave us.
pub struct MacWriter {
    keys: LabelKeys,
    /// Of the message sent last; a reply that answers another is not for us. `None` when a reply to it has come.
    last_mac1: Option<Mac>,
    /// The newest, and when it came.
    cookie: Option<(Cookie, Time)>,
}

impl MacWriter {
    /// For messages to the peer with this public key.
    pub fn new(peer: &PublicKey) -> MacWriter {
        MacWriter { keys: LabelKeys::new(peer), last_mac1: None, cookie: None }
    }

    /// Writes both MACs into the last 32 bytes of `message`, whose other bytes are final. Without a cookie that is young
    /// enough, mac2 is zero.
    ///
    /// # Panics
    /// When `message` is shorter than the MACs.
    pub fn write_macs(&mut self, message: &mut [u8], now: Time) {
        let (text, macs) = message.split_at_mut(message.len() - MACS_BYTES);
        let mac1 = mac(&self.keys.mac1, &[text]);
        let mac2 = match &self.cookie {
            Some((cookie, came)) if now.since(*came).as_nanos() < COOKIE_USE => {
                mac(&**cookie, &[text, &mac1])
            }
            _ => [0; MAC_BYTES],
        };
        macs[..MAC_BYTES].copy_from_slice(&mac1);
        macs[MAC_BYTES..].copy_from_slice(&mac2);
        self.last_mac1 = Some(mac1);
    }

    /// Takes the cookie out of `reply` if it answers the message sent last; says whether it does. Each message is answered
    /// once; on failure nothing changes.
    pub fn consume_reply(&mut self, reply: &[u8; COOKIE_BYTES], now: Time) -> bool {
        let Some(mac1) = &self.last_mac1 else { return false };
        let mut nonce = [0; XNONCE_BYTES];
        nonce.copy_from_slice(&reply[cookie::NONCE]);
        let mut sealed = Zeroizing::new([0; MAC_BYTES + TAG_BYTES]);
        sealed.copy_from_slice(&reply[cookie::COOKIE]);
        if xopen(&self.keys.cookie, &nonce, mac1, &mut *sealed).is_err() {
            return false;
        }
        let mut cookie = Cookie::default();
        cookie.copy_from_slice(&sealed[..MAC_BYTES]);
        self.cookie = Some((cookie, now));
        self.last_mac1 = None;
        true
    }
}

impl fmt::Debug for MacWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let came = self.cookie.as_ref().map(|(_, came)| came);
        f.debug_struct("MacWriter").field("cookie_came", &came).finish_non_exhaustive()
    }
}

/// Checks mac1 of messages to one device. Anybody can who knows its public key, so nothing here is secret.
#[derive(Clone, Debug)]
pub struct Mac1Checker {
    key: Hash,
}

impl Mac1Checker {
    /// For messages to the device with this public key.
    pub fn new(local: &PublicKey) -> Mac1Checker {
        Mac1Checker { key: LabelKeys::new(local).mac1 }
    }

    /// Whether the sender of `message` knows the device's public key.
    pub fn fits(&self, message: &[u8]) -> bool {
        let Some((text, mac1, _)) = parts(message) else { return false };
        same_mac(mac1, &mac(&self.key, &[text]))
    }
}

/// Checks the MACs of messages to us, and makes cookies.
pub struct MacChecker {
    mac1: Mac1Checker,
    /// What cookies are sealed with.
    cookie_key: Hash,
    /// What cookies are made with, and since when. Renewed every [`COOKIE_LIFETIME`]; all cookies end with it.
    secret: Option<(Zeroizing<[u8; KEY_BYTES]>, Time)>,
}

impl MacChecker {
    /// For messages to the device with this public key.
    pub fn new(local: &PublicKey) -> MacChecker {
        let LabelKeys { mac1, cookie } = LabelKeys::new(local);
        MacChecker { mac1: Mac1Checker { key: mac1 }, cookie_key: cookie, secret: None }
    }

    /// Whether the sender of `message` knows our public key. Everything else about a message is looked at after this.
    pub fn mac1_fits(&self, message: &[u8]) -> bool {
        self.mac1.fits(message)
    }

    /// Whether the sender of `message` has the cookie that we gave to this address and port.
    pub fn mac2_fits(&mut self, message: &[u8], from: SocketAddr, now: Time, rng: &mut Rng) -> bool {
        let Some((text, mac1, mac2)) = parts(message) else { return false };
        let cookie = self.cookie(from, now, rng);
        same_mac(mac2, &mac(&*cookie, &[text, mac1]))
    }

    /// Creates the reply that gives the sender of `message` its cookie; only it can read it. `sender` is the index in that
    /// message, which comes back as the receiver. To be called for messages whose mac1 fits.
    ///
    /// # Panics
    /// When `message` is shorter than the MACs.
    pub fn create_reply(
        &mut self,
        message: &[u8],
        sender: u32,
        from: SocketAddr,
        now: Time,
        rng: &mut Rng,
    ) -> [u8; COOKIE_BYTES] {
        let (_, mac1, _) = parts(message).expect("what is answered has a mac1 that fits");
        let mut reply = [0; COOKIE_BYTES];
        reply[0] = TYPE_COOKIE;
        reply[cookie::RECEIVER].copy_from_slice(&sender.to_le_bytes());
        let mut nonce = [0; XNONCE_BYTES];
        rng.fill(&mut nonce);
        reply[cookie::NONCE].copy_from_slice(&nonce);
        let (text, tag) = reply[cookie::COOKIE].split_at_mut(MAC_BYTES);
        text.copy_from_slice(&*self.cookie(from, now, rng));
        tag.copy_from_slice(&xseal(&self.cookie_key, &nonce, mac1, text));
        reply
    }

    /// The cookie of an address and port: both as the kernel takes them, in network byte order.
    fn cookie(&mut self, from: SocketAddr, now: Time, rng: &mut Rng) -> Cookie {
        let secret = self.secret(now, rng);
        let port = from.port().to_be_bytes();
        Cookie::new(match from.ip() {
            IpAddr::V4(address) => mac(secret, &[&address.octets(), &port]),
            IpAddr::V6(address) => mac(secret, &[&address.octets(), &port]),
        })
    }

    fn secret(&mut self, now: Time, rng: &mut Rng) -> &[u8; KEY_BYTES] {
        let young = |(_, since): &(_, Time)| now.since(*since) < COOKIE_LIFETIME;
        self.secret = self.secret.take().filter(young);
        let (secret, _) = self.secret.get_or_insert_with(|| {
            let mut secret = Zeroizing::new([0; KEY_BYTES]);
            rng.fill(&mut *secret);
            (secret, now)
        });
        secret
    }
}

impl fmt::Debug for MacChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.secret.as_ref().map(|(_, since)| since);
        f.debug_struct("MacChecker").field("secret_since", &since).finish_non_exhaustive()
    }
}

/// What mac1 covers, mac1 and mac2; `None` for a message that is too short.
fn parts(message: &[u8]) -> Option<(&[u8], &Mac, &Mac)> {
    let (rest, mac2) = message.split_last_chunk()?;
    let (text, mac1) = rest.split_last_chunk()?;
    Some((text, mac1, mac2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::rng::Rng;
    use crate::time::Span;

    const SENDER: u32 = 0x0403_0201;

    /// A peer that sends to us, and us.
    struct Pair {
        writer: MacWriter,
        checker: MacChecker,
        rng: Rng,
        now: Time,
    }

    impl Pair {
        fn new() -> Pair {
            let mut rng = Rng::from_seed([9; 32]);
            let public = rng.private_key().public_key();
            let (writer, checker) = (MacWriter::new(&public), MacChecker::new(&public));
            Pair { writer, checker, rng, now: Time::from_nanos(5) }
        }

        fn message(&mut self) -> [u8; INITIATION_BYTES] {
            let mut message = [0; INITIATION_BYTES];
            self.rng.fill(&mut message[..INITIATION_BYTES - MACS_BYTES]);
            self.writer.write_macs(&mut message, self.now);
            message
        }

        fn reply(&mut self, message: &[u8], from: SocketAddr) -> [u8; COOKIE_BYTES] {
            self.checker.create_reply(message, SENDER, from, self.now, &mut self.rng)
        }

        fn mac2_fits(&mut self, message: &[u8], from: SocketAddr) -> bool {
            self.checker.mac2_fits(message, from, self.now, &mut self.rng)
        }

        /// Gives the writer the cookie of `from`.
        fn exchange(&mut self, from: SocketAddr) {
            let message = self.message();
            let reply = self.reply(&message, from);
            assert!(self.writer.consume_reply(&reply, self.now));
        }

        fn wait(&mut self, span: Span) {
            self.now = self.now + span;
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mac1_fits_only_the_untouched_message_and_the_right_receiver() {
        let mut pair = Pair::new();
        let message = pair.message();
        assert!(pair.checker.mac1_fits(&message));
        for bit in 0..8 * (INITIATION_BYTES - MAC_BYTES) {
            let mut damaged = message;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!pair.checker.mac1_fits(&damaged), "bit {bit}");
        }
        let other = MacChecker::new(&pair.rng.private_key().public_key());
        assert!(!other.mac1_fits(&message));
    }

    #[test]
    fn mac2_is_zero_without_a_cookie_and_fits_with_one() {
        let from = address("192.0.2.1:51820");
        let mut pair = Pair::new();
        let before = pair.message();
        assert_eq!(before[INITIATION_BYTES - MAC_BYTES..], [0; MAC_BYTES]);
        assert!(!pair.mac2_fits(&before, from));
        pair.exchange(from);
        let message = pair.message();
        assert!(pair.checker.mac1_fits(&message) && pair.mac2_fits(&message, from));
        for bit in 0..8 * INITIATION_BYTES {
            let mut damaged = message;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!pair.mac2_fits(&damaged, from), "bit {bit}");
        }
    }

    #[test]
    fn a_cookie_is_good_for_one_address_and_port() {
        for (from, others) in [
            ("192.0.2.1:51820", ["192.0.2.2:51820", "192.0.2.1:51821", "[::ffff:192.0.2.1]:51820"]),
            ("[2001:db8::1]:7", ["[2001:db8::2]:7", "[2001:db8::1]:8", "[2001:db8:0:1::1]:7"]),
        ] {
            let mut pair = Pair::new();
            pair.exchange(address(from));
            let message = pair.message();
            assert!(pair.mac2_fits(&message, address(from)));
            others.iter().for_each(|other| assert!(!pair.mac2_fits(&message, address(other)), "{other}"));
        }
    }

    #[test]
    fn a_reply_is_a_cookie_message_for_the_answered_index_and_no_longer_than_it() {
        let mut pair = Pair::new();
        let message = pair.message();
        let reply = pair.reply(&message, address("192.0.2.1:1"));
        assert_eq!(reply[..8], [3, 0, 0, 0, 1, 2, 3, 4]);
        let again = pair.reply(&message, address("192.0.2.1:1"));
        assert_ne!(reply[cookie::NONCE], again[cookie::NONCE]);
        assert_ne!(reply[cookie::COOKIE], again[cookie::COOKIE]);
    }

    #[test]
    fn only_a_reply_to_the_message_sent_last_is_taken_and_only_once() {
        let from = address("192.0.2.1:51820");
        let mut pair = Pair::new();
        let first = pair.message();
        let to_first = pair.reply(&first, from);
        let second = pair.message();
        let to_second = pair.reply(&second, from);
        assert!(!pair.writer.consume_reply(&to_first, pair.now), "the first is not the last any more");
        assert!(pair.writer.consume_reply(&to_second, pair.now));
        assert!(!pair.writer.consume_reply(&to_second, pair.now), "it was taken before");
    }

    #[test]
    fn a_reply_that_came_unasked_or_damaged_changes_nothing() {
        let from = address("192.0.2.1:51820");
        let mut pair = Pair::new();
        assert!(!pair.writer.consume_reply(&[0; COOKIE_BYTES], pair.now));
        let message = pair.message();
        let reply = pair.reply(&message, from);
        // The type and the receiver are for the caller to see.
        for bit in 8 * cookie::NONCE.start..8 * COOKIE_BYTES {
            let mut damaged = reply;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!pair.writer.consume_reply(&damaged, pair.now), "bit {bit}");
        }
        assert!(pair.writer.consume_reply(&reply, pair.now), "the true one is still taken");
    }

    #[test]
    fn a_cookie_is_used_for_115_seconds() {
        let from = address("192.0.2.1:51820");
        let mut pair = Pair::new();
        pair.exchange(from);
        pair.wait(Span::from_nanos(Span::from_secs(115).as_nanos() - 1));
        let message = pair.message();
        assert!(pair.mac2_fits(&message, from));
        pair.wait(Span::from_nanos(1));
        assert_eq!(pair.message()[INITIATION_BYTES - MAC_BYTES..], [0; MAC_BYTES]);
    }

    #[test]
    fn the_secret_of_all_cookies_is_renewed_after_two_minutes() {
        let from = address("192.0.2.1:51820");
        let mut pair = Pair::new();
        pair.exchange(from);
        let message = pair.message();
        pair.wait(Span::from_nanos(Span::from_secs(120).as_nanos() - 1));
        assert!(pair.mac2_fits(&message, from));
        pair.wait(Span::from_nanos(1));
        assert!(!pair.mac2_fits(&message, from));
        pair.exchange(from);
        let message = pair.message();
        assert!(pair.mac2_fits(&message, from));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let mut pair = Pair::new();
        pair.exchange(address("192.0.2.1:51820"));
        let text = format!("{:?} {:?}", pair.writer, pair.checker);
        assert_eq!(
            text,
            "MacWriter { cookie_came: Some(Time(5)), .. } MacChecker { secret_since: Some(Time(5)), .. }"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked_without_panic_and_refused(
            message in prop::collection::vec(any::<u8>(), 0..200), reply: [u8; 32], more: [u8; 32],
        ) {
            let mut pair = Pair::new();
            prop_assert!(!pair.checker.mac1_fits(&message));
            prop_assert!(!pair.mac2_fits(&message, address("192.0.2.1:51820")));
            pair.message();
            let reply = *[reply, more].concat().first_chunk().unwrap();
            prop_assert!(!pair.writer.consume_reply(&reply, pair.now));
        }
    }
}
