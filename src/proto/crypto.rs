//! The primitives, behind one seam: ChaCha20-Poly1305 and X25519 from aws-lc-rs, BLAKE2s from the blake2 crate, what
//! ChaCha20 is needed for besides from the chacha20 crate.
//!
//! Nothing else in the program names those crates. Source: WireGuard whitepaper §5.4; RFC 8439, 7748, 7693;
//! draft-irtf-cfrg-xchacha.

use std::fmt;
use std::ops::{Deref, DerefMut};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20::{ChaCha20, R20, hchacha};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::keys::{KEY_BYTES, PrivateKey, PublicKey};

/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a BLAKE2s hash.
pub const HASH_BYTES: usize = 32;
/// Bytes of a message authentication code (mac1, mac2, cookies).
pub const MAC_BYTES: usize = 16;
/// Bytes of a nonce of XChaCha20-Poly1305.
pub const XNONCE_BYTES: usize = 24;

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

/// The cipher and the 12-byte nonce that XChaCha20-Poly1305 makes of a key and 24 bytes. draft-irtf-cfrg-xchacha §2.3.
fn extended(key: &[u8; KEY_BYTES], nonce: &[u8; XNONCE_BYTES]) -> (AeadKey, [u8; 12]) {
    let (front, back) = nonce.split_at(16);
    let front: [u8; 16] = *front.first_chunk().expect("it was split there");
    let mut derived = hchacha::<R20>(key.into(), &front.into());
    let cipher = AeadKey::new(&derived.0);
    derived.0.zeroize();
    let mut short = [0; 12];
    short[4..].copy_from_slice(back);
    (cipher, short)
}

/// XChaCha20-Poly1305: encrypts `text` in place and returns its tag. Nonces may be random: with 24 bytes they do not meet.
pub fn xseal(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; XNONCE_BYTES],
    aad: &[u8],
    text: &mut [u8],
) -> [u8; TAG_BYTES] {
    let (cipher, nonce) = extended(key, nonce);
    cipher.seal_with_nonce(nonce, aad, text)
}

/// XChaCha20-Poly1305: verifies and decrypts `text | tag` in place; returns the length of the text.
///
/// # Errors
/// [`BadTag`]; the bytes are then undefined.
pub fn xopen(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; XNONCE_BYTES],
    aad: &[u8],
    text_and_tag: &mut [u8],
) -> Result<usize, BadTag> {
    let (cipher, nonce) = extended(key, nonce);
    cipher.open_with_nonce(nonce, aad, text_and_tag)
}

/// Overwrites `out` with the keystream of ChaCha20 under `key` and a nonce of zeros. A key is used once.
pub fn keystream(key: &[u8; KEY_BYTES], out: &mut [u8]) {
    out.fill(0);
    ChaCha20::new(key.into(), &[0; 12].into()).apply_keystream(out);
}

/// A secret that a computation gave: wiped when dropped, never printed.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; KEY_BYTES]);

impl Secret {
    /// These bytes as a secret.
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Secret {
        Secret(bytes)
    }
}

impl Deref for Secret {
    type Target = [u8; KEY_BYTES];

    fn deref(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        &mut self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// A private key made ready for X25519, which costs a multiplication of its own: keep it if the key is used again.
/// aws-lc wipes its copy when it is dropped.
pub struct DhKey(agreement::PrivateKey);

impl DhKey {
    /// `private` made ready.
    pub fn new(private: &PrivateKey) -> DhKey {
        // Fails only for a key of another length.
        let key = agreement::PrivateKey::from_private_key(&X25519, private.expose());
        DhKey(key.expect("32 bytes are a key"))
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        let public = self.0.compute_public_key().expect("every clamped scalar has one");
        PublicKey::from_bytes(*public.as_ref().first_chunk().expect("a public key has 32 bytes"))
    }

    /// X25519. `None` for a point of low order, whose product is zero whatever the private key (RFC 7748 §6.1).
    pub fn shared_secret(&self, public: &PublicKey) -> Option<Secret> {
        let public = UnparsedPublicKey::new(&X25519, public.as_bytes());
        agreement::agree(&self.0, public, (), |product| {
            let mut secret = Secret::default();
            secret.copy_from_slice(product);
            Ok(secret)
        })
        .ok()
    }
}

impl fmt::Debug for DhKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhKey(hidden)")
    }
}

/// Whether two MACs are the same, in a time that does not tell where they differ.
pub fn same_mac(left: &[u8; MAC_BYTES], right: &[u8; MAC_BYTES]) -> bool {
    left.ct_eq(right).into()
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
    let mut inner: Hash = inner.finalize().into();
    let outer = hash(&[&outer_pad, &inner]);
    inner.zeroize();
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
