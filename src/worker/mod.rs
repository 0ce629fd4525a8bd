//! Threads: where the data plane meets the kernel.
//!
//! ```text
//! run (main thread)
//!  ├─ device::open        TUN queues, sockets, interface: everything that can fail for the operator's reasons
//!  ├─ crew::start         stats thread; worker 0..N-1, each with driver, TUN queue, sockets, counters of its own
//!  ├─ supervisor::watch   sleeps in poll(2): signals, link changes, a worker that ended
//!  └─ crew.stop           stop flag, doorbells, join; then the stats thread prints its summary
//! ```
//!
//! Workers own their descriptors. When the last one has ended they are closed, and the interface we made is gone.

pub mod crew;
pub mod data;
pub mod device;
pub mod handoff;
pub mod interface;
pub mod outer;
pub mod protocol;
pub mod refusals;
pub mod stage;
pub mod supervisor;
pub mod tunnel;

use anyhow::Context;

use crate::control::config::DeviceConfig;

/// Runs a tunnel until a signal or the end of its interface; calls `ready` once packets can flow.
///
/// # Errors
/// What the operator can help: devices, addresses, names. Also a worker that failed: then all stop.
pub fn run(config: DeviceConfig, ready: impl FnOnce()) -> anyhow::Result<()> {
    if !config.plaintext {
        anyhow::bail!("the encrypted data path is not connected yet; nothing was sent");
    }
    device::raise_limits();
    let device = device::open(&config)?;
    // Until here a signal ends us, also while a name is resolved. Before any thread exists, so that all inherit the mask.
    let signals = supervisor::block_signals().context("cannot take signals")?;
    let interface = device.interface.clone();
    let crew = crew::start(device, &config)?;
    ready();
    let ended = supervisor::watch(&interface, &signals, &crew);
    let joined = crew.stop();
    ended.and(joined)
}
