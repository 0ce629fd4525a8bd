//! What a raw peer has of keys: transport keys, and the MACs and ciphers of the whitepaper, written here once more.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20::{R20, hchacha};

/// A public or private key.
pub type Key = [u8; 32];
/// mac1, mac2 or a cookie.
pub type Tag = [u8; 16];

/// The number of a ping's answer.
pub fn echo_reply(packet: &[u8]) -> Option<u16> {
    let is_reply = packet.len() >= 28 && packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0;
    is_reply.then(|| u16::from_be_bytes([packet[26], packet[27]]))
}

/// Transport keys.
pub struct Session {
    pub local_index: u32,
    pub remote_index: u32,
    /// Of the next message.
    pub counter: u64,
    sealing: LessSafeKey,
    opening: LessSafeKey,
}

impl Session {
    pub fn new(local_index: u32, remote_index: u32, sealing: Key, opening: Key) -> Session {
        Session {
            local_index,
            remote_index,
            counter: 0,
            sealing: cipher(&sealing),
            opening: cipher(&opening),
        }
    }

    /// The next data message, padded as it should be.
    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        self.counter += 1;
        self.seal_at(self.counter - 1, packet)
    }

    pub fn seal_at(&self, counter: u64, packet: &[u8]) -> Vec<u8> {
        let mut text = packet.to_vec();
        text.resize(packet.len().next_multiple_of(16), 0);
        self.seal_exactly(counter, &text)
    }

    /// Without padding.
    pub fn seal_exactly(&self, counter: u64, text: &[u8]) -> Vec<u8> {
        let mut sealed = text.to_vec();
        self.sealing.seal_in_place_append_tag(nonce(counter), Aad::empty(), &mut sealed).unwrap();
        [&[4, 0, 0, 0], &self.remote_index.to_le_bytes(), &counter.to_le_bytes()[..], &sealed].concat()
    }

    /// Counter and text, padding included, of a data message of this session.
    pub fn open(&self, message: &[u8]) -> Option<(u64, Vec<u8>)> {
        let ours = message.len() >= 32 && message[..4] == [4, 0, 0, 0];
        if !ours || number(&message[4..8]) != self.local_index {
            return None;
        }
        let counter = u64::from_le_bytes(*message[8..].first_chunk().unwrap());
        let mut sealed = message[16..].to_vec();
        let text = self.opening.open_in_place(nonce(counter), Aad::empty(), &mut sealed).ok()?;
        Some((counter, text.to_vec()))
    }
}

pub fn number(field: &[u8]) -> u32 {
    u32::from_le_bytes(field.try_into().unwrap())
}

pub fn labelled(label: &[u8], public: &Key) -> Key {
    Blake2s256::new().chain_update(label).chain_update(public).finalize().into()
}

pub fn keyed(key: &[u8], parts: &[&[u8]]) -> Tag {
    let state = Blake2sMac::<U16>::new_from_slice(key).unwrap();
    let state = parts.iter().fold(state, Mac::chain_update);
    state.finalize_fixed().into()
}

fn cipher(key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap())
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// XChaCha20: the cipher and the short nonce.
pub fn extended(key: &Key, nonce: &[u8]) -> (LessSafeKey, Nonce) {
    let front: [u8; 16] = nonce[..16].try_into().unwrap();
    let mut short = [0; 12];
    short[4..].copy_from_slice(&nonce[16..]);
    (cipher(&hchacha::<R20>(key.into(), &front.into()).0), Nonce::assume_unique_for_key(short))
}
