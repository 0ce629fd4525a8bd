//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, two messages, then keys.
//!
//! Pure functions: keys, an ephemeral key and bytes go in; a message or keys come out, and nothing is changed if the other
//! side's message is wrong. The responder takes an initiation in two steps, [`open_initiation`] and
//! [`consume_initiation`], because only the first one tells who the peer is. mac1 and mac2 are not written here but in
//! [`super::cookie`], replayed and stale initiations are found out by who keeps the timestamps.
//!
//! Names as in the whitepaper: es is the secret of the initiator's ephemeral and the responder's static key, and so on.
//!
//! Source: WireGuard whitepaper §5.4.1 to §5.4.5; noiseprotocol.org/noise.html, revision 34.

use std::fmt;
use std::sync::LazyLock;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::crypto::{AeadKey, DhKey, Hash, Secret, TAG_BYTES, hash, kdf};
use super::keys::{KEY_BYTES, PresharedKey, PrivateKey, PublicKey};
use super::tai64n::{TIMESTAMP_BYTES, Tai64n};
use crate::wire::message::{
    INITIATION_BYTES, RESPONSE_BYTES, TYPE_INITIATION, TYPE_RESPONSE, initiation, response,
};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// Our static key pair, ready for use.
#[derive(Debug)]
pub struct LocalKeys {
    private: PrivateKey,
    dh: DhKey,
    public: PublicKey,
}

impl LocalKeys {
    /// The pair of `private`.
    pub fn new(private: PrivateKey) -> LocalKeys {
        let dh = DhKey::new(&private);
        LocalKeys { public: dh.public_key(), private, dh }
    }

    /// The private key.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

/// What we know of a peer: its static public key, the secret of both static keys, the preshared key.
#[derive(Debug)]
pub struct RemoteKeys {
    public: PublicKey,
    /// Computed once per pair of keys. Absent while we have no key, and for a point of low order: then there is no
    /// handshake with this peer.
    static_static: Option<Secret>,
    psk: PresharedKey,
}

impl RemoteKeys {
    /// The peer with this public key. `local` is `None` while we have no key ourselves.
    pub fn new(local: Option<&LocalKeys>, public: PublicKey, psk: PresharedKey) -> RemoteKeys {
        let mut keys = RemoteKeys { public, static_static: None, psk };
        keys.set_local(local);
        keys
    }

    /// Follows a change of our own key.
    pub fn set_local(&mut self, local: Option<&LocalKeys>) {
        self.static_static = local.and_then(|local| local.dh.shared_secret(&self.public));
    }

    /// The peer's public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The preshared key.
    pub fn psk(&self) -> &PresharedKey {
        &self.psk
    }

    /// Changes the preshared key, from the next message that we create or consume on.
    pub fn set_psk(&mut self, psk: PresharedKey) {
        self.psk = psk;
    }
}

/// What the initiator keeps until the response comes. The preshared key is not in it: one that changes in between counts.
#[derive(Debug)]
pub struct Initiated {
    transcript: Transcript,
    ephemeral: DhKey,
}

/// An initiation of which the static key is known, and whose sender has not yet shown that it owns it.
#[derive(Debug)]
pub struct Arrived {
    /// The peer it claims to come from.
    pub initiator: PublicKey,
    transcript: Transcript,
    ephemeral: PublicKey,
    sender: u32,
    timestamp: [u8; TIMESTAMP_BYTES + TAG_BYTES],
}

/// An initiation that is wholly verified. It may still be a replay: see its timestamp.
#[derive(Debug)]
pub struct Consumed {
    /// The index that the initiator chose.
    pub sender: u32,
    /// When it was made. Must be later than all others of the peer.
    pub timestamp: Tai64n,
    transcript: Transcript,
    ephemeral: PublicKey,
}

/// What both sides have when the handshake is done.
#[derive(Debug)]
pub struct TransportKeys {
    /// Seals what we send.
    pub sealing: Secret,
    /// Opens what we receive.
    pub opening: Secret,
    /// What outgoing messages carry as receiver.
    pub remote_index: u32,
}

/// Creates an initiation; `ephemeral` is a fresh key, used for nothing else, and `sender` the index that the response shall
/// carry. mac1 and mac2 are left zero.
///
/// `None` when we have no static key or the peer's is a point of low order.
///
/// Source: whitepaper §5.4.2.
pub fn create_initiation(
    local: &LocalKeys,
    remote: &RemoteKeys,
    ephemeral: PrivateKey,
    timestamp: Tai64n,
    sender: u32,
) -> Option<([u8; INITIATION_BYTES], Initiated)> {
    let static_static = remote.static_static.as_ref()?;
    let ephemeral = DhKey::new(&ephemeral);
    let ephemeral_public = ephemeral.public_key();
    let mut message = [0; INITIATION_BYTES];
    message[0] = TYPE_INITIATION;
    message[initiation::SENDER].copy_from_slice(&sender.to_le_bytes());
    message[initiation::EPHEMERAL].copy_from_slice(ephemeral_public.as_bytes());

    let mut transcript = Transcript::begin(&remote.public);
    transcript.mix_ephemeral(&ephemeral_public);
    let key = transcript.mix_secret_for_key(&*ephemeral.shared_secret(&remote.public)?); // es
    transcript.seal(&key, local.public.as_bytes(), &mut message[initiation::STATIC]);
    let key = transcript.mix_secret_for_key(&**static_static); // ss
    transcript.seal(&key, timestamp.as_bytes(), &mut message[initiation::TIMESTAMP]);
    Some((message, Initiated { transcript, ephemeral }))
}

/// Opens the static part of an initiation, to learn whose it is. Costs one multiplication, so mac1 is checked before.
///
/// `None` when it was not made for us, was damaged, or its ephemeral key is a point of low order.
///
/// Source: whitepaper §5.4.2.
pub fn open_initiation(local: &LocalKeys, message: &[u8; INITIATION_BYTES]) -> Option<Arrived> {
    let ephemeral = public_key(&message[initiation::EPHEMERAL]);
    let mut transcript = Transcript::begin(&local.public);
    transcript.mix_ephemeral(&ephemeral);
    let key = transcript.mix_secret_for_key(&*local.dh.shared_secret(&ephemeral)?); // es
    let mut initiator = [0; KEY_BYTES + TAG_BYTES];
    transcript.open(&key, &message[initiation::STATIC], &mut initiator)?;
    let mut timestamp = [0; TIMESTAMP_BYTES + TAG_BYTES];
    timestamp.copy_from_slice(&message[initiation::TIMESTAMP]);
    let sender = index(&message[initiation::SENDER]);
    Some(Arrived { initiator: public_key(&initiator[..KEY_BYTES]), transcript, ephemeral, sender, timestamp })
}

/// Verifies the rest of an initiation: only the owner of the static private key can have made it. `remote` are the keys of
/// [`Arrived::initiator`].
///
/// `None` when it was not made by that peer, or the peer's key is a point of low order.
///
/// Source: whitepaper §5.4.2.
pub fn consume_initiation(arrived: Arrived, remote: &RemoteKeys) -> Option<Consumed> {
    let Arrived { initiator, mut transcript, ephemeral, sender, timestamp: sealed } = arrived;
    if initiator != remote.public {
        return None;
    }
    let key = transcript.mix_secret_for_key(&**remote.static_static.as_ref()?); // ss
    let mut timestamp = [0; TIMESTAMP_BYTES + TAG_BYTES];
    transcript.open(&key, &sealed, &mut timestamp)?;
    let timestamp = Tai64n::from_bytes(*timestamp.first_chunk()?);
    Some(Consumed { sender, timestamp, transcript, ephemeral })
}

/// Creates the response to an initiation, and our keys; `ephemeral` is a fresh key, used for nothing else, and `sender` the
/// index that messages to us shall carry. mac1 and mac2 are left zero.
///
/// `None` when one of the initiator's keys is a point of low order.
///
/// Source: whitepaper §5.4.3, §5.4.5.
pub fn create_response(
    consumed: &Consumed,
    remote: &RemoteKeys,
    ephemeral: PrivateKey,
    sender: u32,
) -> Option<([u8; RESPONSE_BYTES], TransportKeys)> {
    let ephemeral = DhKey::new(&ephemeral);
    let ephemeral_public = ephemeral.public_key();
    let mut message = [0; RESPONSE_BYTES];
    message[0] = TYPE_RESPONSE;
    message[response::SENDER].copy_from_slice(&sender.to_le_bytes());
    message[response::RECEIVER].copy_from_slice(&consumed.sender.to_le_bytes());
    message[response::EPHEMERAL].copy_from_slice(ephemeral_public.as_bytes());

    let mut transcript = consumed.transcript.clone();
    transcript.mix_ephemeral(&ephemeral_public);
    transcript.mix_secret(&*ephemeral.shared_secret(&consumed.ephemeral)?); // ee
    transcript.mix_secret(&*ephemeral.shared_secret(&remote.public)?); // se
    let key = transcript.mix_psk(&remote.psk);
    transcript.seal(&key, &[], &mut message[response::NOTHING]);
    let [opening, sealing] = transcript.split();
    Some((message, TransportKeys { sealing, opening, remote_index: consumed.sender }))
}

/// Consumes the response to `initiated`. That the message carries the index of that initiation is for the caller to see.
///
/// `None` when it was not made by `remote` for this initiation, or its ephemeral key is a point of low order. Nothing has
/// changed then: the true response may still come.
///
/// Source: whitepaper §5.4.3, §5.4.5.
pub fn consume_response(
    local: &LocalKeys,
    remote: &RemoteKeys,
    initiated: &Initiated,
    message: &[u8; RESPONSE_BYTES],
) -> Option<TransportKeys> {
    let ephemeral = public_key(&message[response::EPHEMERAL]);
    let mut transcript = initiated.transcript.clone();
    transcript.mix_ephemeral(&ephemeral);
    transcript.mix_secret(&*initiated.ephemeral.shared_secret(&ephemeral)?); // ee
    transcript.mix_secret(&*local.dh.shared_secret(&ephemeral)?); // se
    let key = transcript.mix_psk(&remote.psk);
    transcript.open(&key, &message[response::NOTHING], &mut [0; TAG_BYTES])?;
    let [sealing, opening] = transcript.split();
    Some(TransportKeys { sealing, opening, remote_index: index(&message[response::SENDER]) })
}

fn public_key(bytes: &[u8]) -> PublicKey {
    PublicKey::from_bytes(*bytes.first_chunk().expect("the fields of public keys have 32 bytes"))
}

fn index(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("the fields of indices have 4 bytes"))
}

/// What both sides have said and know so far: C and H of the whitepaper.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Transcript {
    chaining_key: Hash,
    hash: Hash,
}

impl Transcript {
    /// All that is known before the first message: the protocol and the responder's static key.
    fn begin(responder: &PublicKey) -> Transcript {
        static BEGINNING: LazyLock<(Hash, Hash)> = LazyLock::new(|| {
            let chaining_key = hash(&[CONSTRUCTION]);
            (chaining_key, hash(&[&chaining_key, IDENTIFIER]))
        });
        let mut transcript = Transcript { chaining_key: BEGINNING.0, hash: BEGINNING.1 };
        transcript.mix_said(responder.as_bytes());
        transcript
    }

    /// Mixes in what is on the wire.
    fn mix_said(&mut self, said: &[u8]) {
        self.hash = hash(&[&self.hash, said]);
    }

    /// Mixes in what both sides know.
    fn mix_secret(&mut self, secret: &[u8]) {
        self.chaining_key = kdf::<1>(&self.chaining_key, secret)[0];
    }

    /// As [`Transcript::mix_secret`], and derives the key of one field. It is used with one nonce, zero.
    fn mix_secret_for_key(&mut self, secret: &[u8]) -> AeadKey {
        let derived = kdf::<2>(&self.chaining_key, secret);
        self.chaining_key = derived[0];
        AeadKey::new(&derived[1])
    }

    /// An ephemeral public key is mixed in twice: because of the preshared key, the chaining key needs it too.
    fn mix_ephemeral(&mut self, public: &PublicKey) {
        self.mix_secret(public.as_bytes());
        self.mix_said(public.as_bytes());
    }

    fn mix_psk(&mut self, psk: &PresharedKey) -> AeadKey {
        let derived = kdf::<3>(&self.chaining_key, psk.expose());
        self.chaining_key = derived[0];
        self.mix_said(&derived[1]);
        AeadKey::new(&derived[2])
    }

    /// Writes `text` sealed into `field`, which is as long as text and tag.
    fn seal(&mut self, key: &AeadKey, text: &[u8], field: &mut [u8]) {
        let (sealed, tag) = field.split_at_mut(text.len());
        sealed.copy_from_slice(text);
        tag.copy_from_slice(&key.seal(0, &self.hash, sealed));
        self.mix_said(field);
    }

    /// Opens `field` into the front of `text`, which is as long as `field`.
    fn open(&mut self, key: &AeadKey, field: &[u8], text: &mut [u8]) -> Option<()> {
        text.copy_from_slice(field);
        key.open(0, &self.hash, text).ok()?;
        self.mix_said(field);
        Some(())
    }

    /// The transport keys: the initiator's sealing key, then the responder's. Whitepaper §5.4.5.
    fn split(self) -> [Secret; 2] {
        let derived = kdf::<2>(&self.chaining_key, &[]);
        [Secret::new(derived[0]), Secret::new(derived[1])]
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transcript(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::WallTime;

    /// Of low order: their product with any private key is zero.
    const LOW_ORDER: [[u8; KEY_BYTES]; 2] = [[0; KEY_BYTES], {
        let mut one = [0; KEY_BYTES];
        one[0] = 1;
        one
    }];

    /// Two sides that know each other.
    struct Pair {
        initiator: LocalKeys,
        responder: LocalKeys,
        to_responder: RemoteKeys,
        to_initiator: RemoteKeys,
    }

    impl Pair {
        fn new(psk: PresharedKey) -> Pair {
            let (initiator, responder) = (LocalKeys::new(private(1)), LocalKeys::new(private(2)));
            let to_responder = RemoteKeys::new(Some(&initiator), responder.public, psk.clone());
            let to_initiator = RemoteKeys::new(Some(&responder), initiator.public, psk);
            Pair { initiator, responder, to_responder, to_initiator }
        }

        fn initiate(&self) -> ([u8; INITIATION_BYTES], Initiated) {
            create_initiation(&self.initiator, &self.to_responder, private(3), stamp(), 7).unwrap()
        }

        fn consume(&self, message: &[u8; INITIATION_BYTES]) -> Option<Consumed> {
            consume_initiation(open_initiation(&self.responder, message)?, &self.to_initiator)
        }

        fn respond(&self, message: &[u8; INITIATION_BYTES]) -> ([u8; RESPONSE_BYTES], TransportKeys) {
            let consumed = self.consume(message).unwrap();
            create_response(&consumed, &self.to_initiator, private(4), 9).unwrap()
        }

        fn finish(&self, initiated: &Initiated, message: &[u8; RESPONSE_BYTES]) -> Option<TransportKeys> {
            consume_response(&self.initiator, &self.to_responder, initiated, message)
        }
    }

    fn private(seed: u8) -> PrivateKey {
        PrivateKey::from_bytes([seed; KEY_BYTES])
    }

    fn psk() -> PresharedKey {
        PresharedKey::from_bytes([5; KEY_BYTES])
    }

    fn stamp() -> Tai64n {
        Tai64n::from_wall(WallTime::from_parts(1_700_000_000, 0))
    }

    #[test]
    fn both_sides_end_with_the_same_keys_crossed() {
        for psk in [PresharedKey::NONE, psk()] {
            let pair = Pair::new(psk);
            let (initiation, initiated) = pair.initiate();
            let consumed = pair.consume(&initiation).unwrap();
            assert_eq!((consumed.sender, consumed.timestamp), (7, stamp()));
            let (response, responder) = pair.respond(&initiation);
            let initiator = pair.finish(&initiated, &response).unwrap();
            assert_eq!((*initiator.sealing, *initiator.opening), (*responder.opening, *responder.sealing));
            assert_ne!(*initiator.sealing, *initiator.opening);
            assert_eq!((initiator.remote_index, responder.remote_index), (9, 7));
        }
    }

    #[test]
    fn an_initiation_tells_whose_it_is_to_the_responder_alone() {
        let pair = Pair::new(psk());
        let (initiation, _) = pair.initiate();
        assert_eq!(open_initiation(&pair.responder, &initiation).unwrap().initiator, pair.initiator.public);
        assert!(open_initiation(&pair.initiator, &initiation).is_none());
    }

    #[test]
    fn an_initiation_is_not_consumed_as_another_peers() {
        let pair = Pair::new(psk());
        let (initiation, _) = pair.initiate();
        let other = RemoteKeys::new(Some(&pair.responder), private(8).public_key(), psk());
        assert!(consume_initiation(open_initiation(&pair.responder, &initiation).unwrap(), &other).is_none());
    }

    #[test]
    fn whoever_lacks_the_static_private_key_makes_no_initiation() {
        // As the peer, but with another key than the one that the static-static secret is made with.
        let mut pair = Pair::new(psk());
        pair.to_responder.set_local(Some(&LocalKeys::new(private(8))));
        let (initiation, _) = pair.initiate();
        assert!(open_initiation(&pair.responder, &initiation).is_some());
        assert!(pair.consume(&initiation).is_none());
    }

    #[test]
    fn every_flipped_bit_of_an_initiation_is_refused() {
        let pair = Pair::new(PresharedKey::NONE);
        let (initiation, _) = pair.initiate();
        // mac1 guards the fields in front.
        for bit in 8 * initiation::EPHEMERAL.start..8 * initiation::TIMESTAMP.end {
            let mut damaged = initiation;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(pair.consume(&damaged).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_wrong_response_is_refused_and_the_right_one_still_taken() {
        let pair = Pair::new(psk());
        let (initiation, initiated) = pair.initiate();
        let (response, _) = pair.respond(&initiation);
        for bit in 8 * response::EPHEMERAL.start..8 * response::NOTHING.end {
            let mut damaged = response;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(pair.finish(&initiated, &damaged).is_none(), "bit {bit}");
        }
        assert!(pair.finish(&initiated, &response).is_some());
    }

    #[test]
    fn a_response_to_another_initiation_is_refused() {
        let pair = Pair::new(psk());
        let (initiation, _) = pair.initiate();
        let (response, _) = pair.respond(&initiation);
        let second = create_initiation(&pair.initiator, &pair.to_responder, private(6), stamp(), 7);
        assert!(pair.finish(&second.unwrap().1, &response).is_none());
    }

    #[test]
    fn the_preshared_key_at_the_time_of_the_response_counts() {
        let mut pair = Pair::new(PresharedKey::NONE);
        let (initiation, initiated) = pair.initiate();
        pair.to_initiator.set_psk(psk());
        let (response, _) = pair.respond(&initiation);
        assert!(pair.finish(&initiated, &response).is_none());
        pair.to_responder.set_psk(psk());
        assert!(pair.finish(&initiated, &response).is_some());
    }

    #[test]
    fn no_handshake_with_a_static_key_of_low_order_or_without_our_own() {
        let local = LocalKeys::new(private(1));
        for point in LOW_ORDER {
            let remote = RemoteKeys::new(Some(&local), PublicKey::from_bytes(point), PresharedKey::NONE);
            assert!(create_initiation(&local, &remote, private(3), stamp(), 7).is_none());
        }
        let mut pair = Pair::new(PresharedKey::NONE);
        let (initiation, _) = pair.initiate();
        pair.to_initiator.set_local(None);
        assert!(pair.consume(&initiation).is_none());
        pair.to_initiator.set_local(Some(&pair.responder));
        assert!(pair.consume(&initiation).is_some());
    }

    /// Everything about it is right for somebody who takes zero for a secret.
    #[test]
    fn an_initiation_with_an_ephemeral_key_of_low_order_is_refused() {
        let pair = Pair::new(PresharedKey::NONE);
        for point in LOW_ORDER {
            let mut message = [0; INITIATION_BYTES];
            message[initiation::EPHEMERAL].copy_from_slice(&point);
            let mut transcript = Transcript::begin(&pair.responder.public);
            transcript.mix_ephemeral(&PublicKey::from_bytes(point));
            let key = transcript.mix_secret_for_key(&[0; KEY_BYTES]);
            transcript.seal(&key, pair.initiator.public.as_bytes(), &mut message[initiation::STATIC]);
            assert!(open_initiation(&pair.responder, &message).is_none());
        }
    }

    /// As above, and made by the true responder.
    #[test]
    fn a_response_with_an_ephemeral_key_of_low_order_is_refused() {
        let pair = Pair::new(PresharedKey::NONE);
        let (initiation, initiated) = pair.initiate();
        for point in LOW_ORDER {
            let mut message = [0; RESPONSE_BYTES];
            message[response::EPHEMERAL].copy_from_slice(&point);
            let mut transcript = pair.consume(&initiation).unwrap().transcript.clone();
            transcript.mix_ephemeral(&PublicKey::from_bytes(point));
            transcript.mix_secret(&[0; KEY_BYTES]);
            transcript.mix_secret(&[0; KEY_BYTES]);
            let key = transcript.mix_psk(&PresharedKey::NONE);
            transcript.seal(&key, &[], &mut message[response::NOTHING]);
            assert!(pair.finish(&initiated, &message).is_none());
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let pair = Pair::new(psk());
        let (initiation, initiated) = pair.initiate();
        let (_, keys) = pair.respond(&initiation);
        assert_eq!(
            format!("{initiated:?}"),
            "Initiated { transcript: Transcript(hidden), ephemeral: DhKey(hidden) }"
        );
        assert_eq!(
            format!("{keys:?}"),
            "TransportKeys { sealing: Secret(hidden), opening: Secret(hidden), remote_index: 7 }"
        );
        let remote = format!("{:?}", pair.to_responder);
        assert!(
            remote.ends_with("static_static: Some(Secret(hidden)), psk: PresharedKey(hidden) }"),
            "{remote}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), INITIATION_BYTES)) {
            let pair = Pair::new(psk());
            prop_assert!(pair.consume(bytes.first_chunk().unwrap()).is_none());
            let (_, initiated) = pair.initiate();
            prop_assert!(pair.finish(&initiated, bytes.first_chunk().unwrap()).is_none());
        }
    }
}
