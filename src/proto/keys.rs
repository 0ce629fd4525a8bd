//! Keys: wiped when dropped, never printed, compared in constant time.
//!
//! Two text forms: base64 as `wg` prints them (44 characters), hexadecimal as the configuration protocol sends them (64
//! characters). Both are read and written in constant time.

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

/// Text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 characters of base64 for 32 bytes.
    #[error("not a key: 44 characters of base64, the last one '='")]
    Base64,
    /// Not 64 hexadecimal digits.
    #[error("not a key: 64 hexadecimal digits")]
    Hex,
}

/// The static private key of a device (X25519), clamped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_BYTES]);

/// A static public key: the name of a device or peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A preshared key; all zeros mean none.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

impl PrivateKey {
    /// The key made of these bytes, clamped (RFC 7748 §5): the low three bits and the highest are cleared, the second
    /// highest is set.
    pub fn from_bytes(mut bytes: [u8; KEY_BYTES]) -> PrivateKey {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = PrivateKey(bytes);
        bytes.zeroize();
        key
    }

    /// The bytes, for the one module that multiplies with them and for the configuration protocol.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The public key that belongs to it.
    pub fn public_key(&self) -> PublicKey {
        super::crypto::DhKey::new(self).public_key()
    }
}

impl PublicKey {
    /// These bytes as a public key. Any 32 bytes are one; low-order points are found out when they are used.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> PublicKey {
        PublicKey(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl PresharedKey {
    /// No preshared key: the handshake mixes in zeros.
    pub const NONE: PresharedKey = PresharedKey([0; KEY_BYTES]);

    /// These bytes as a preshared key.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> PresharedKey {
        PresharedKey(bytes)
    }

    /// The bytes, for the handshake and the configuration protocol.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether it is [`PresharedKey::NONE`].
    pub fn is_none(&self) -> bool {
        self.0.ct_eq(&[0; KEY_BYTES]).into()
    }
}

impl Default for PresharedKey {
    fn default() -> PresharedKey {
        PresharedKey::NONE
    }
}

macro_rules! text_forms {
    ($name:ident, $from:path) => {
        impl $name {
            /// Reads 64 hexadecimal digits of either case.
            ///
            /// # Errors
            /// [`KeyError::Hex`].
            pub fn from_hex(text: &str) -> Result<$name, KeyError> {
                let mut bytes = [0; KEY_BYTES];
                let read = base16ct::mixed::decode(text.as_bytes(), &mut bytes).map(<[u8]>::len);
                let key = (read == Ok(KEY_BYTES)).then(|| $from(bytes)).ok_or(KeyError::Hex);
                bytes.zeroize();
                key
            }

            /// 64 lower-case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                base16ct::lower::encode_string(&self.0)
            }

            /// 44 characters of base64.
            pub fn to_base64(&self) -> String {
                Base64::encode_string(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            /// Reads 44 characters of base64.
            fn from_str(text: &str) -> Result<$name, KeyError> {
                let mut bytes = [0; KEY_BYTES];
                let read = Base64::decode(text, &mut bytes).map(<[u8]>::len);
                let key = (read == Ok(KEY_BYTES)).then(|| $from(bytes)).ok_or(KeyError::Base64);
                bytes.zeroize();
                key
            }
        }
    };
}

text_forms!(PrivateKey, PrivateKey::from_bytes);
text_forms!(PublicKey, PublicKey);
text_forms!(PresharedKey, PresharedKey);

impl PartialEq for PrivateKey {
    fn eq(&self, other: &PrivateKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PrivateKey {}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &PresharedKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "PresharedKey(none)" } else { "PresharedKey(hidden)" })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Base64, as `wg` shows peers.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}
