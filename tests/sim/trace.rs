//! What happened in a run: its hash, so that two runs can be compared, and with `URINGVPN_SIM_TRACE=1` its text.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use uringvpn::time::Time;

pub struct Trace {
    hasher: DefaultHasher,
    loud: bool,
}

impl Trace {
    pub fn new() -> Trace {
        Trace { hasher: DefaultHasher::new(), loud: std::env::var_os("URINGVPN_SIM_TRACE").is_some() }
    }

    /// `host` did something, to be told from all else by `mark`.
    pub fn note(&mut self, now: Time, host: usize, mark: impl Hash, what: impl Debug) {
        (now, host, mark).hash(&mut self.hasher);
        if self.loud {
            let millis = now.as_nanos() / 1_000_000;
            eprintln!("{:>9}.{:03} host {host} {what:?}", millis / 1000, millis % 1000);
        }
    }

    pub fn finish(&self) -> u64 {
        self.hasher.finish()
    }
}
