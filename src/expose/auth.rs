//! The proof that the other end knows the secret.
//!
//! The server sends a random [`Uuid`]; the client answers HMAC-SHA256 of its 16 bytes, with the SHA-256 of the secret as the
//! key. A new one for every connection, so that an answer that was overheard is worth nothing.
//!
//! Source: bore 0.6.0, src/auth.rs.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use zeroize::Zeroizing;

use super::message::Uuid;

/// Gives proofs and checks them.
#[derive(Clone)]
pub struct Authenticator {
    key: hmac::Key,
}

impl Authenticator {
    /// For those who know `secret`; an empty one is a secret too.
    pub fn new(secret: &[u8]) -> Authenticator {
        Authenticator { key: hmac::Key::new(HMAC_SHA256, digest(&SHA256, secret).as_ref()) }
    }

    /// For those who know `secret`, if there is one, and were given `lease`.
    pub fn for_lease(secret: Option<&[u8]>, lease: Uuid) -> Authenticator {
        let known = Zeroizing::new([secret.unwrap_or_default(), lease.as_bytes()].concat());
        Authenticator::new(&known)
    }

    /// The answer to `challenge`, in hexadecimal.
    pub fn answer(&self, challenge: Uuid) -> String {
        base16ct::lower::encode_string(hmac::sign(&self.key, challenge.as_bytes()).as_ref())
    }

    /// Whether `answer` is that to `challenge`; takes the same time for every wrong one of the right length.
    pub fn accepts(&self, challenge: Uuid, answer: &str) -> bool {
        let mut bytes = [0; 32];
        match base16ct::mixed::decode(answer, &mut bytes) {
            Ok(tag) => hmac::verify(&self.key, challenge.as_bytes(), tag).is_ok(),
            Err(_) => false,
        }
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authenticator(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rng::Rng;

    #[test]
    fn an_answer_fits_its_own_challenge_and_secret_only() {
        let rng = &mut Rng::from_seed([3; 32]);
        let (one, other) = (Uuid::random(rng), Uuid::random(rng));
        let ours = Authenticator::new(b"secret");
        let answer = ours.answer(one);
        assert!(ours.accepts(one, &answer) && ours.accepts(one, &answer.to_uppercase()));
        assert!(!ours.accepts(other, &answer), "an answer cannot be used again");
        for secret in [&b""[..], b"Secret", &vec![b'x'; 1 << 20]] {
            assert!(!Authenticator::new(secret).accepts(one, &answer));
        }
        assert!(Authenticator::new(b"").accepts(one, &Authenticator::new(b"").answer(one)));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let (ours, challenge) = (Authenticator::new(b"secret"), Uuid::random(&mut Rng::from_seed([4; 32])));
        let answer = ours.answer(challenge);
        for wrong in ["", "0", "zz", &answer[2..], &format!("{answer}00"), &"ab".repeat(1000)] {
            assert!(!ours.accepts(challenge, wrong), "{wrong}");
        }
    }

    #[test]
    fn a_lease_is_proven_by_the_secret_and_its_name_together() {
        let rng = &mut Rng::from_seed([5; 32]);
        let (lease, challenge) = (Uuid::random(rng), Uuid::random(rng));
        let answer = Authenticator::for_lease(Some(b"secret"), lease).answer(challenge);
        assert!(Authenticator::for_lease(Some(b"secret"), lease).accepts(challenge, &answer));
        assert!(!Authenticator::for_lease(None, lease).accepts(challenge, &answer));
        assert!(!Authenticator::for_lease(Some(b"secret"), challenge).accepts(challenge, &answer));
        assert!(!Authenticator::new(b"secret").accepts(challenge, &answer));
    }
}
