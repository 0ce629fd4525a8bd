//! The primitives, behind one seam: ChaCha20-Poly1305 and X25519 from aws-lc-rs, BLAKE2s from the blake2 crate.
//!
//! Nothing else in the program names those crates. Source: WireGuard whitepaper §5.4; RFC 8439, 7748, 7693.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use zeroize::{Zeroize, Zeroizing};

use super::keys::{KEY_BYTES, PrivateKey, PublicKey};

/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a BLAKE2s hash.
pub const HASH_BYTES: usize = 32;
/// Bytes of a message authentication code (mac1, mac2, cookies).
pub const MAC_BYTES: usize = 16;

/// A hash or chaining key.
pub type Hash = [u8; HASH_BYTES];

/// The tag did not fit: forged, damaged, or not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTag;

/// One key of ChaCha20-Poly1305. aws-lc wipes its copy when it is dropped.
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// The cipher keyed with `key`.
    pub fn new(key: &[u8; KEY_BYTES]) -> AeadKey {
        // Fails only for a key of another length.
        AeadKey(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key")))
    }

    /// Encrypts `text` in place and returns its tag. `counter` is the nonce: four zero bytes, then the counter in little
    /// endian (whitepaper §5.4.6). A counter must never be used twice with one key.
    pub fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_BYTES] {
        self.seal_with_nonce(nonce(counter), aad, text)
    }

    /// Verifies and decrypts `text | tag` in place; returns the length of the text.
    ///
    /// # Errors
    /// [`BadTag`]; the bytes are then undefined.
    pub fn open(&self, counter: u64, aad: &[u8], text_and_tag: &mut [u8]) -> Result<usize, BadTag> {
        self.open_with_nonce(nonce(counter), aad, text_and_tag)
    }

    /// As [`AeadKey::seal`], with all 12 nonce bytes given.
    pub fn seal_with_nonce(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), text);
        // Fails only for texts of 256 GiB.
        let tag = tag.expect("datagrams are short");
        *tag.as_ref().first_chunk().expect("a tag has 16 bytes")
    }

    /// As [`AeadKey::open`], with all 12 nonce bytes given.
    ///
    /// # Errors
    /// [`BadTag`]; the bytes are then undefined.
    pub fn open_with_nonce(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text_and_tag: &mut [u8],
    ) -> Result<usize, BadTag> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let text = self.0.open_in_place(nonce, Aad::from(aad), text_and_tag).map_err(|_| BadTag)?;
        Ok(text.len())
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// A shared secret, wiped when dropped.
pub type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// X25519. `None` for a point of low order, whose product is zero whatever the private key (RFC 7748 §6.1).
pub fn shared_secret(private: &PrivateKey, public: &PublicKey) -> Option<Secret> {
    let private = agreement_key(private);
    let public = UnparsedPublicKey::new(&X25519, public.as_bytes());
    agreement::agree(&private, public, (), |secret| {
        let mut copy = Zeroizing::new([0; KEY_BYTES]);
        copy.copy_from_slice(secret);
        Ok(copy)
    })
    .ok()
}

/// The public key of a private one.
pub fn public_key(private: &PrivateKey) -> PublicKey {
    let public = agreement_key(private).compute_public_key().expect("every clamped scalar has one");
    PublicKey::from_bytes(*public.as_ref().first_chunk().expect("32 bytes"))
}

fn agreement_key(private: &PrivateKey) -> agreement::PrivateKey {
    agreement::PrivateKey::from_private_key(&X25519, private.expose()).expect("32 bytes are a key")
}

/// BLAKE2s of the concatenated `parts`.
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Blake2s256::new();
    parts.iter().for_each(|part| Digest::update(&mut hasher, part));
    hasher.finalize().into()
}

/// Keyed BLAKE2s of 16 bytes: Mac in the whitepaper. `key` has at most 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("keys have at most 32 bytes");
    parts.iter().for_each(|part| Mac::update(&mut mac, part));
    mac.finalize_fixed().into()
}

/// HMAC-BLAKE2s: Hmac in the whitepaper. RFC 2104 with the 64-byte block of BLAKE2s.
pub fn hmac(key: &Hash, parts: &[&[u8]]) -> Hash {
    let mut inner_pad = [0x36; 64];
    let mut outer_pad = [0x5c; 64];
    for (index, byte) in key.iter().enumerate() {
        inner_pad[index] ^= byte;
        outer_pad[index] ^= byte;
    }
    let mut inner = Blake2s256::new();
    Digest::update(&mut inner, inner_pad);
    parts.iter().for_each(|part| Digest::update(&mut inner, part));
    let inner: Hash = inner.finalize().into();
    let outer = hash(&[&outer_pad, &inner]);
    inner_pad.zeroize();
    outer_pad.zeroize();
    outer
}

/// The first `N` outputs of the key derivation, N from 1 to 3. Whitepaper §5.4: Kdf.
pub fn kdf<const N: usize>(key: &Hash, input: &[u8]) -> Zeroizing<[Hash; N]> {
    let mut outputs = Zeroizing::new([[0; HASH_BYTES]; N]);
    let secret = Zeroizing::new(hmac(key, &[input]));
    for index in 0..N {
        let previous: &[u8] = if index == 0 { &[] } else { &outputs[index - 1] };
        outputs[index] = hmac(&secret, &[previous, &[index as u8 + 1]]);
    }
    outputs
}
