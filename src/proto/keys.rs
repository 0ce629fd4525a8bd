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
/// Characters of every key in base64.
const KEY_TEXT_BYTES: usize = 44;

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

/// The static private key of a device (X25519), clamped. Boxed: one that is moved would leave copies behind that nobody
/// wipes.
#[derive(Clone)]
pub struct PrivateKey(Box<[u8; KEY_BYTES]>);

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
        let key = PrivateKey(Box::new(bytes));
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
                base16ct::lower::encode_string(&self.0[..])
            }

            /// 44 characters of base64.
            pub fn to_base64(&self) -> String {
                Base64::encode_string(&self.0[..])
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
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for PrivateKey {}

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
        let mut text = [0; KEY_TEXT_BYTES];
        f.write_str(Base64::encode(&self.0, &mut text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7748 §6.1, Alice's public key.
    const HEX: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    const BASE64: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn both_text_forms_name_the_same_key() {
        let key = PublicKey::from_hex(HEX).unwrap();
        assert_eq!(PublicKey::from_hex(&HEX.to_uppercase()), Ok(key));
        assert_eq!(BASE64.parse(), Ok(key));
        assert_eq!(
            (key.to_hex(), key.to_base64(), key.to_string()),
            (HEX.into(), BASE64.into(), BASE64.into())
        );
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        let (last_digit, last_byte) = (HEX.replace("4e6a", "4e6"), HEX.replace("4e6a", "4e"));
        let longer = format!("{HEX}00");
        for text in ["", "0", &last_digit, &last_byte, &longer, &HEX.replace('f', "g"), &format!(" {HEX}")] {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::Hex), "{text}");
        }
        let (unpadded, shorter) =
            (BASE64.trim_end_matches('='), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTg==");
        // Its last character has bits that no byte takes.
        let loose = BASE64.replace("Tmo=", "Tmp=");
        let longer = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoA";
        for text in ["", unpadded, shorter, &loose, longer, &BASE64.replace('/', "_"), &format!("{BASE64}\n")]
        {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Base64), "{text}");
        }
    }

    #[test]
    fn a_private_key_is_clamped_however_it_is_made() {
        let text = "ff".repeat(32);
        let mut clamped = [0xff; KEY_BYTES];
        (clamped[0], clamped[31]) = (0xf8, 0x7f);
        for key in [PrivateKey::from_bytes([0xff; KEY_BYTES]), PrivateKey::from_hex(&text).unwrap()] {
            assert_eq!(key.expose(), &clamped);
        }
        assert_eq!(PrivateKey::from_bytes([0; KEY_BYTES]).expose()[31], 0x40);
    }

    #[test]
    fn private_and_preshared_keys_are_not_printed() {
        let (private, psk) = (PrivateKey::from_bytes([7; 32]), PresharedKey::from_bytes([7; 32]));
        let text = format!("{private:?} {psk:?} {:?}", PresharedKey::default());
        assert_eq!(text, "PrivateKey(hidden) PresharedKey(hidden) PresharedKey(none)");
    }

    #[test]
    fn a_preshared_key_of_zeros_is_none() {
        assert!(PresharedKey::NONE.is_none() && PresharedKey::from_hex(&"0".repeat(64)).unwrap().is_none());
        let mut bytes = [0; KEY_BYTES];
        bytes[31] = 1;
        assert!(!PresharedKey::from_bytes(bytes).is_none());
        assert_ne!(PresharedKey::from_bytes(bytes), PresharedKey::NONE);
    }

    proptest! {
        #[test]
        fn every_key_is_read_as_it_was_written(bytes: [u8; KEY_BYTES]) {
            let (public, psk) = (PublicKey::from_bytes(bytes), PresharedKey::from_bytes(bytes));
            prop_assert_eq!(PublicKey::from_hex(&public.to_hex()), Ok(public));
            prop_assert_eq!(public.to_base64().parse(), Ok(public));
            prop_assert_eq!(PresharedKey::from_hex(&psk.to_hex()), Ok(psk));
            let private = PrivateKey::from_bytes(bytes);
            prop_assert_eq!(private.to_base64().parse(), Ok(private));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "\\PC{0,80}") {
            let _ = (PublicKey::from_hex(&text), text.parse::<PublicKey>(), text.parse::<PrivateKey>());
        }
    }
}
