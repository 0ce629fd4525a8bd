//! `uringvpn genkey`, `genpsk` and `pubkey`: what `wg` prints for them, from the same input.
//!
//! Source: wireguard-tools src/genkey.c and pubkey.c.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use nix::sys::stat::{SFlag, fstat};
use zeroize::{Zeroize, Zeroizing};

use crate::proto::keys::{KEY_BYTES, PresharedKey, PrivateKey};

/// Characters of a key in base64.
const KEY_CHARS: usize = 44;

/// Why no key came out.
#[derive(Debug, thiserror::Error)]
pub enum KeyCommandError {
    /// The kernel has no random bytes for us.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// Standard input is no key.
    #[error("standard input: not a key: 44 characters of base64, the last one '=', and nothing behind them")]
    NotAKey,
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// Writes a new private key and a newline.
///
/// # Errors
/// [`KeyCommandError::Random`], [`KeyCommandError::Output`].
pub fn generate_private(out: &mut dyn Write) -> Result<(), KeyCommandError> {
    let mut bytes = random()?;
    let key = PrivateKey::from_bytes(bytes);
    bytes.zeroize();
    print(out, &Zeroizing::new(key.to_base64()))
}

/// Writes a new preshared key and a newline.
///
/// # Errors
/// [`KeyCommandError::Random`], [`KeyCommandError::Output`].
pub fn generate_preshared(out: &mut dyn Write) -> Result<(), KeyCommandError> {
    let mut bytes = random()?;
    let key = PresharedKey::from_bytes(bytes);
    bytes.zeroize();
    print(out, &Zeroizing::new(key.to_base64()))
}

/// Reads a private key and writes the public key that belongs to it and a newline.
///
/// Behind the key only white space may follow, as with `wg pubkey`.
///
/// # Errors
/// [`KeyCommandError`]; no message repeats the input.
pub fn derive_public(input: &mut dyn Read, out: &mut dyn Write) -> Result<(), KeyCommandError> {
    // Read into one place: a buffer that grows would leave copies behind.
    let mut text = Zeroizing::new([0; KEY_CHARS]);
    input.read_exact(text.as_mut_slice()).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => KeyCommandError::NotAKey,
        _ => KeyCommandError::Input(error),
    })?;
    expect_blank(input)?;
    let text = std::str::from_utf8(text.as_slice()).map_err(|_| KeyCommandError::NotAKey)?;
    let key: PrivateKey = text.parse().map_err(|_| KeyCommandError::NotAKey)?;
    print(out, &key.public_key().to_base64())
}

fn expect_blank(input: &mut dyn Read) -> Result<(), KeyCommandError> {
    let mut rest = [0; 64];
    loop {
        match input.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(count) if rest[..count].iter().all(u8::is_ascii_whitespace) => {}
            Ok(_) => return Err(KeyCommandError::NotAKey),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyCommandError::Input(error)),
        }
    }
}

fn random() -> Result<[u8; KEY_BYTES], KeyCommandError> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(KeyCommandError::Random)?;
    Ok(bytes)
}

fn print(out: &mut dyn Write, key: &str) -> Result<(), KeyCommandError> {
    writeln!(out, "{key}").and_then(|()| out.flush()).map_err(KeyCommandError::Output)
}

/// What to say before a secret goes to `out`, if everybody can read the file behind it.
pub fn exposure(out: &impl AsFd) -> Option<&'static str> {
    let status = fstat(out).ok()?;
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    (kind == SFlag::S_IFREG && status.st_mode & 0o007 != 0)
        .then_some("writing to a world accessible file; consider setting the umask to 077 and trying again")
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7748 §6.1, Alice.
    const PRIVATE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf,
        0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];
    const PUBLIC_HEX: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    fn derived(input: &str) -> Result<String, KeyCommandError> {
        let mut out = Vec::new();
        derive_public(&mut input.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_public_key_is_that_of_rfc_7748() {
        let private = PresharedKey::from_bytes(PRIVATE).to_base64();
        let public = crate::proto::keys::PublicKey::from_hex(PUBLIC_HEX).unwrap();
        for end in ["", "\n", " \r\n\n"] {
            assert_eq!(derived(&format!("{private}{end}")).unwrap(), format!("{public}\n"));
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let private = PresharedKey::from_bytes(PRIVATE).to_base64();
        for wrong in [String::new(), private[1..].to_owned(), format!("{private}x"), format!(" {private}")] {
            let error = derived(&wrong).unwrap_err();
            assert!(matches!(error, KeyCommandError::NotAKey), "{error}");
            assert!(!error.to_string().contains(&private[4..12]));
        }
    }

    #[test]
    fn generated_keys_differ_and_private_ones_are_clamped() {
        let generated = || {
            let mut out = Vec::new();
            generate_private(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let (one, other) = (generated(), generated());
        assert_ne!(one, other);
        let bytes = PresharedKey::expose(&one.trim_end().parse().unwrap()).to_owned();
        assert_eq!(PrivateKey::from_bytes(bytes).expose(), &bytes, "clamping changes nothing any more");
        assert!(one.len() == KEY_CHARS + 1 && one.ends_with("=\n"));
    }
}
