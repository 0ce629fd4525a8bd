//! Known answers of the primitives, and the handshake byte for byte against a second implementation.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use proptest::prelude::*;
use uringvpn::proto::cookie::{MacChecker, MacWriter};
use uringvpn::proto::crypto::{AeadKey, BadTag, DhKey, hash, hmac, kdf, mac, xopen, xseal};
use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use uringvpn::proto::noise::{
    LocalKeys, RemoteKeys, consume_initiation, consume_response, create_initiation, create_response,
    open_initiation,
};
use uringvpn::proto::rng::Rng;
use uringvpn::proto::tai64n::Tai64n;
use uringvpn::time::Time;
use uringvpn::wire::message::{INITIATION_BYTES, RESPONSE_BYTES, classify, cookie};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// What the handshake has of each message: without type and indices in front, and mac1 and mac2 behind.
const INITIATION_NOISE: std::ops::Range<usize> = 8..116;
const RESPONSE_NOISE: std::ops::Range<usize> = 12..60;

/// Bytes written as hexadecimal digits.
fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    base16ct::mixed::decode_vec(hex).unwrap().try_into().unwrap()
}

fn private(hex: &str) -> PrivateKey {
    PrivateKey::from_hex(hex).unwrap()
}

fn public(hex: &str) -> PublicKey {
    PublicKey::from_hex(hex).unwrap()
}

// ChaCha20-Poly1305

const SUNSCREEN: &[u8; 114] =
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
    future, sunscreen would be it.";
const AEAD_KEY: &str = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f";
const AEAD_AAD: &str = "50515253c0c1c2c3c4c5c6c7";

#[test]
fn chacha20_poly1305_gives_the_answer_of_rfc_8439_section_2_8_2() {
    let (key, nonce) = (AeadKey::new(&bytes(AEAD_KEY)), bytes("070000004041424344454647"));
    let sealed: [u8; 130] = bytes(concat!(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e06",
        "0b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d265",
        "86cec64b6116",
        "1ae10b594f09e26a7e902ecbd0600691",
    ));
    let mut text = *SUNSCREEN;
    let tag = key.seal_with_nonce(nonce, &bytes::<12>(AEAD_AAD), &mut text);
    assert_eq!([&text[..], &tag].concat(), sealed);
    let mut opened = sealed;
    assert_eq!(key.open_with_nonce(nonce, &bytes::<12>(AEAD_AAD), &mut opened), Ok(114));
    assert_eq!(opened[..114], *SUNSCREEN);
    assert_eq!(key.open_with_nonce(nonce, &[], &mut sealed.clone()), Err(BadTag));
}

#[test]
fn a_counter_is_a_nonce_of_four_zero_bytes_and_the_counter_in_little_endian() {
    let key = AeadKey::new(&bytes(AEAD_KEY));
    let (mut by_counter, mut by_nonce) = (*SUNSCREEN, *SUNSCREEN);
    let counted = key.seal(0x0807_0605_0403_0201, &[], &mut by_counter);
    assert_eq!(counted, key.seal_with_nonce(bytes("000000000102030405060708"), &[], &mut by_nonce));
    assert_eq!(by_counter, by_nonce);
}

#[test]
fn xchacha20_poly1305_gives_the_answer_of_draft_irtf_cfrg_xchacha_appendix_a_3_1() {
    let (key, aad) = (bytes(AEAD_KEY), bytes::<12>(AEAD_AAD));
    let nonce = bytes("404142434445464748494a4b4c4d4e4f5051525354555657");
    let sealed: [u8; 130] = bytes(concat!(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54",
        "c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f6",
        "15c68b13b52e",
        "c0875924c1c7987947deafd8780acf49",
    ));
    let mut text = *SUNSCREEN;
    let tag = xseal(&key, &nonce, &aad, &mut text);
    assert_eq!([&text[..], &tag].concat(), sealed);
    let mut opened = sealed;
    assert_eq!(xopen(&key, &nonce, &aad, &mut opened), Ok(114));
    assert_eq!(opened[..114], *SUNSCREEN);
    assert_eq!(xopen(&key, &nonce, &[], &mut sealed.clone()), Err(BadTag));
}

// X25519

#[test]
fn x25519_gives_the_answers_of_rfc_7748_section_5_2() {
    for (scalar, point, product) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        let secret = DhKey::new(&private(scalar)).shared_secret(&public(point)).unwrap();
        assert_eq!(*secret, bytes(product));
    }
}

#[test]
fn x25519_iterated_gives_the_answers_of_rfc_7748_section_5_2() {
    let (mut scalar, mut point) = ([0; 32], [0; 32]);
    (scalar[0], point[0]) = (9, 9);
    for turn in 1..=1000 {
        let key = DhKey::new(&PrivateKey::from_bytes(scalar));
        let product = *key.shared_secret(&PublicKey::from_bytes(point)).unwrap();
        (point, scalar) = (scalar, product);
        if turn == 1 {
            assert_eq!(scalar, bytes("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(scalar, bytes("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

#[test]
fn the_public_key_is_the_product_with_the_base_point() {
    let key = private("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
    let mut nine = [0; 32];
    nine[0] = 9;
    let product = DhKey::new(&key).shared_secret(&PublicKey::from_bytes(nine)).unwrap();
    assert_eq!(key.public_key().as_bytes(), &*product);
}

/// Of order 1, 2, 4 and 8, with all their encodings; from cr.yp.to/ecdh.html. The highest bit is ignored.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn no_point_of_low_order_gives_a_secret_or_a_handshake() {
    let local = LocalKeys::new(PrivateKey::from_bytes([7; 32]));
    for point in LOW_ORDER {
        for highest_bit in [0, 0x80] {
            let mut point: [u8; 32] = bytes(point);
            point[31] |= highest_bit;
            let key = DhKey::new(local.private());
            assert!(key.shared_secret(&PublicKey::from_bytes(point)).is_none(), "{point:x?}");
            let remote = RemoteKeys::new(Some(&local), PublicKey::from_bytes(point), PresharedKey::NONE);
            let ephemeral = PrivateKey::from_bytes([8; 32]);
            assert!(create_initiation(&local, &remote, ephemeral, Tai64n::default(), 1).is_none());
        }
    }
}

// BLAKE2s. Answers from Python's hashlib and hmac.

fn counting() -> [u8; 32] {
    std::array::from_fn(|index| index as u8)
}

#[test]
fn blake2s_gives_the_answer_of_rfc_7693_however_the_input_is_cut() {
    let expected = bytes("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
    assert_eq!(hash(&[b"abc"]), expected);
    assert_eq!(hash(&[b"a", b"", b"bc"]), expected);
}

#[test]
fn keyed_blake2s_takes_keys_of_16_and_of_32_bytes() {
    assert_eq!(mac(&counting(), &[b"abc"]), bytes("61ba5f165c194692e09d12520cc4c74a"));
    assert_eq!(mac(&counting()[..16], &[b"ab", b"c"]), bytes("75296c2d2c0f51210b383f386bc8b1ff"));
}

#[test]
fn hmac_and_key_derivation_are_those_of_rfc_2104_and_rfc_5869_on_blake2s() {
    let expected = bytes("82623be5bc0a391b24dce53e67d028eff92d586de0485ac37822e597d049c74f");
    assert_eq!(hmac(&counting(), &[b"a", b"bc"]), expected);
    let derived = [
        bytes("87b7f70b24183c6db5dc4f6d9f4c47cdb203321aa2a0bef714896adb3107a040"),
        bytes("538a02e1eb2e31b7e4d4b82476d1fe2acf50085d3fb584537279195f5d1f5824"),
        bytes("9ad858025593be88de0f9442a589cfe84a88dc19e4753d93684d1c5efc4837f9"),
    ];
    assert_eq!(kdf::<1>(&counting(), b"input")[..], derived[..1]);
    assert_eq!(kdf::<2>(&counting(), b"input")[..], derived[..2]);
    assert_eq!(kdf::<3>(&counting(), b"input")[..], derived);
    let of_nothing = bytes("7a38c34bf2b8738d7374ca77c44ecb309a11d2b2528304fa86052c365e722624");
    assert_eq!(kdf::<1>(&counting(), &[])[0], of_nothing);
}

// mac1, mac2 and cookies, computed here once more from the whitepaper's formulas

fn labelled(label: &[u8], public: &PublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(public.as_bytes()).finalize().into()
}

fn keyed(key: &[u8], text: &[u8]) -> [u8; 16] {
    Mac::chain_update(Blake2sMac::<U16>::new_from_slice(key).unwrap(), text).finalize_fixed().into()
}

#[test]
fn mac1_mac2_and_the_cookie_are_those_of_the_whitepaper() {
    for from in ["192.0.2.1:51820", "[2001:db8::1]:51820"] {
        let mut rng = Rng::from_seed([1; 32]);
        let from: SocketAddr = from.parse().unwrap();
        let responder = rng.private_key().public_key();
        let (mut writer, mut checker) = (MacWriter::new(&responder), MacChecker::new(&responder));
        let now = Time::from_nanos(1);

        let mut message: [u8; RESPONSE_BYTES] = std::array::from_fn(|index| index as u8);
        writer.write_macs(&mut message, now);
        let mac1 = keyed(&labelled(b"mac1----", &responder), &message[..60]);
        assert_eq!(message[60..76], mac1);
        assert_eq!(message[76..], [0; 16]);

        // The secret is what the generator gives first, after the nonce of the reply.
        let mut same = Rng::from_seed([1; 32]);
        same.private_key();
        let (mut nonce, mut secret) = ([0; 24], [0; 32]);
        same.fill(&mut nonce);
        same.fill(&mut secret);
        let address = match from {
            SocketAddr::V4(from) => from.ip().octets().to_vec(),
            SocketAddr::V6(from) => from.ip().octets().to_vec(),
        };
        let expected = keyed(&secret, &[&address[..], &51820u16.to_be_bytes()].concat());
        let reply = checker.create_reply(&message, 0x0403_0201, from, now, &mut rng);
        assert_eq!(reply[..8], [3, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(reply[cookie::NONCE], nonce);
        let mut opened = reply[cookie::COOKIE].to_vec();
        assert_eq!(xopen(&labelled(b"cookie--", &responder), &nonce, &mac1, &mut opened), Ok(16));
        assert_eq!(opened[..16], expected);

        assert!(writer.consume_reply(&reply, now));
        writer.write_macs(&mut message, now);
        assert_eq!(message[76..], keyed(&expected, &message[..76]));
        assert!(checker.mac2_fits(&message, from, now, &mut rng));
    }
}

// The handshake

/// All that both sides bring to a handshake.
#[derive(Clone, Debug)]
struct Inputs {
    initiator: [u8; 32],
    responder: [u8; 32],
    initiator_ephemeral: [u8; 32],
    responder_ephemeral: [u8; 32],
    psk: [u8; 32],
    timestamp: [u8; 12],
    indices: (u32, u32),
}

fn inputs() -> impl Strategy<Value = Inputs> {
    let psk = prop_oneof![Just([0; 32]), any::<[u8; 32]>()];
    (any::<[[u8; 32]; 4]>(), psk, any::<[u8; 12]>(), any::<(u32, u32)>()).prop_map(
        |(keys, psk, timestamp, indices)| {
            let [initiator, responder, initiator_ephemeral, responder_ephemeral] = keys;
            Inputs { initiator, responder, initiator_ephemeral, responder_ephemeral, psk, timestamp, indices }
        },
    )
}

impl Inputs {
    fn initiator(&self) -> LocalKeys {
        LocalKeys::new(PrivateKey::from_bytes(self.initiator))
    }

    fn responder(&self) -> LocalKeys {
        LocalKeys::new(PrivateKey::from_bytes(self.responder))
    }

    /// The same side in the second implementation.
    fn other(&self, initiates: bool) -> snow::HandshakeState {
        let (local, remote, ephemeral) = match initiates {
            true => (&self.initiator, self.responder(), &self.initiator_ephemeral),
            false => (&self.responder, self.initiator(), &self.responder_ephemeral),
        };
        let builder = snow::Builder::new(PATTERN.parse().unwrap()).prologue(PROLOGUE).unwrap();
        let builder = builder.local_private_key(local).unwrap().psk(2, &self.psk).unwrap();
        let builder = builder.fixed_ephemeral_key_for_testing_only(ephemeral);
        if initiates {
            builder.remote_public_key(remote.public().as_bytes()).unwrap().build_initiator().unwrap()
        } else {
            builder.build_responder().unwrap()
        }
    }
}

/// What `state` writes next.
fn write(state: &mut snow::HandshakeState, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 256];
    let length = state.write_message(payload, &mut message).unwrap();
    message.truncate(length);
    message
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn we_initiate_byte_for_byte_as_the_other_implementation_and_take_its_response(inputs in inputs()) {
        let (local, mut other) = (inputs.initiator(), inputs.other(true));
        let psk = PresharedKey::from_bytes(inputs.psk);
        let remote = RemoteKeys::new(Some(&local), *inputs.responder().public(), psk);
        let ephemeral = PrivateKey::from_bytes(inputs.initiator_ephemeral);
        let timestamp = Tai64n::from_bytes(inputs.timestamp);
        let (message, initiated) = create_initiation(&local, &remote, ephemeral, timestamp, inputs.indices.0).unwrap();
        prop_assert_eq!(&message[..4], &[1, 0, 0, 0]);
        prop_assert_eq!(&message[4..8], &inputs.indices.0.to_le_bytes());
        prop_assert_eq!(&message[INITIATION_NOISE], &write(&mut other, &inputs.timestamp)[..]);

        let (mut responder, mut payload) = (inputs.other(false), [0; 256]);
        responder.read_message(&message[INITIATION_NOISE], &mut payload).unwrap();
        let mut response = [0; RESPONSE_BYTES];
        response[0] = 2;
        response[4..8].copy_from_slice(&inputs.indices.1.to_le_bytes());
        response[RESPONSE_NOISE].copy_from_slice(&write(&mut responder, &[]));
        let keys = consume_response(&local, &remote, &initiated, &response).unwrap();
        prop_assert_eq!((*keys.sealing, *keys.opening), responder.dangerously_get_raw_split());
        prop_assert_eq!(keys.remote_index, inputs.indices.1);
    }

    #[test]
    fn we_take_the_other_implementation_s_initiation_and_respond_byte_for_byte_as_it(inputs in inputs()) {
        let (local, mut other, mut initiator) = (inputs.responder(), inputs.other(false), inputs.other(true));
        let mut message = [0; INITIATION_BYTES];
        message[0] = 1;
        message[4..8].copy_from_slice(&inputs.indices.0.to_le_bytes());
        message[INITIATION_NOISE].copy_from_slice(&write(&mut initiator, &inputs.timestamp));
        let arrived = open_initiation(&local, &message).unwrap();
        prop_assert_eq!(arrived.initiator, *inputs.initiator().public());
        let remote = RemoteKeys::new(Some(&local), arrived.initiator, PresharedKey::from_bytes(inputs.psk));
        let consumed = consume_initiation(arrived, &remote).unwrap();
        prop_assert_eq!(consumed.timestamp, Tai64n::from_bytes(inputs.timestamp));

        let ephemeral = PrivateKey::from_bytes(inputs.responder_ephemeral);
        let (response, keys) = create_response(&consumed, &remote, ephemeral, inputs.indices.1).unwrap();
        other.read_message(&message[INITIATION_NOISE], &mut [0; 256]).unwrap();
        prop_assert_eq!(&response[RESPONSE_NOISE], &write(&mut other, &[])[..]);
        prop_assert_eq!(&response[..4], &[2, 0, 0, 0]);
        prop_assert_eq!(&response[4..8], &inputs.indices.1.to_le_bytes());
        prop_assert_eq!(&response[8..12], &inputs.indices.0.to_le_bytes());
        prop_assert_eq!((*keys.opening, *keys.sealing), other.dangerously_get_raw_split());
        initiator.read_message(&response[RESPONSE_NOISE], &mut [0; 256]).unwrap();
        prop_assert_eq!((*keys.opening, *keys.sealing), initiator.dangerously_get_raw_split());
    }

    /// mac2, the last 16 bytes, is only looked at under load.
    #[test]
    fn a_flipped_bit_before_mac2_makes_mac1_wrong(
        inputs in inputs(), initiation_bit in 0usize..8 * 132,
    ) {
        let (initiator, responder) = (inputs.initiator(), inputs.responder());
        let psk = PresharedKey::from_bytes(inputs.psk);
        let remote = RemoteKeys::new(Some(&initiator), *responder.public(), psk);
        let ephemeral = PrivateKey::from_bytes(inputs.initiator_ephemeral);
        let timestamp = Tai64n::from_bytes(inputs.timestamp);
        let (mut message, _) = create_initiation(&initiator, &remote, ephemeral, timestamp, 1).unwrap();
        MacWriter::new(responder.public()).write_macs(&mut message, Time::default());
        let checker = MacChecker::new(responder.public());
        prop_assert!(classify(&message).is_some() && checker.mac1_fits(&message));
        message[initiation_bit / 8] ^= 1 << (initiation_bit % 8);
        prop_assert!(!checker.mac1_fits(&message));
    }
}
