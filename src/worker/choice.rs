//! Which driver the workers use: what the operator wants, as far as the kernel has it.

use std::io;

use anyhow::bail;
use nix::errno::Errno;

use crate::control::config::{DeviceConfig, IoChoice};
use crate::io::features::io_uring_refusal;
use crate::io::ring::{self, Features};
use crate::stats::offloads::{Found, Offload, SelfCheck};

/// Which driver the workers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// A ring for each, or system calls for those that get none.
    Uring {
        /// Being refused is an error.
        demanded: bool,
        /// What it may have.
        features: Features,
    },
    /// Plain system calls.
    Syscall,
}

/// Tries a ring once, so that all workers use the same driver and the reason is said once.
///
/// # Errors
/// io_uring is refused and was demanded.
pub fn choose_driver(config: &DeviceConfig, self_check: &SelfCheck) -> anyhow::Result<DriverKind> {
    let features = Features {
        defer_taskrun: config.allows(Offload::DeferTaskrun),
        multishot_read: config.allows(Offload::MultishotRead),
    };
    let demanded = config.io == IoChoice::Uring;
    if config.io == IoChoice::Syscall {
        return Ok(without_ring(Found::SwitchedOff, self_check));
    }
    match ring::available(features) {
        Ok(there) => {
            note_features(config, there, self_check);
            Ok(DriverKind::Uring { demanded, features })
        }
        Err(error) if demanded => bail!("{}", refusal(&error)),
        Err(error) => Ok(without_ring(Found::Refused(refusal(&error)), self_check)),
    }
}

fn without_ring(found: Found, self_check: &SelfCheck) -> DriverKind {
    self_check.found(Offload::Uring, found);
    for part in [Offload::DeferTaskrun, Offload::MultishotRead] {
        self_check.found(part, Found::Unneeded("there is no io_uring"));
    }
    DriverKind::Syscall
}

fn note_features(config: &DeviceConfig, there: Features, self_check: &SelfCheck) {
    let features =
        [(Offload::DeferTaskrun, there.defer_taskrun), (Offload::MultishotRead, there.multishot_read)];
    for (feature, there) in features {
        let found = match there {
            true => Found::On,
            false if config.allows(feature) => Found::Refused("this kernel is older".to_owned()),
            false => Found::SwitchedOff,
        };
        self_check.found(feature, found);
    }
}

/// Why there is no ring, and what to do.
pub fn refusal(error: &io::Error) -> String {
    io_uring_refusal(errno(error))
}

/// The number behind `error`.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
