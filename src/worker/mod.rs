//! Threads: where the data plane meets the kernel.
//!
//! ```text
//! run (main thread)
//!  ├─ device::open        TUN queues, sockets, interface: everything that can fail for the operator's reasons
//!  ├─ crew::start         stats thread; worker 0..N-1, each with driver, TUN queue, sockets, counters of its own; the
//!  │                      protocol thread, in encrypted mode; the capture thread
//!  ├─ serve, observe      the configuration socket; those who watch
//!  ├─ supervisor::watch   sleeps in poll(2): signals, link changes, a thread that ended; SIGHUP goes to reload
//!  └─ crew.stop           stop flag, doorbells, join; then the stats thread prints its summary
//! ```
//!
//! Workers own their descriptors. When the last one has ended they are closed, and the interface we made is gone.

pub mod capture;
pub mod choice;
pub mod crew;
pub mod data;
pub mod device;
pub mod exchange;
pub mod handoff;
mod handshake_log;
pub mod interface;
pub mod names;
pub mod outer;
pub mod protocol;
pub mod refusals;
pub mod reload;
pub mod stage;
mod start;
pub mod supervisor;
pub mod tap;
pub mod tunnel;
pub mod unreachable;

use std::path::Path;

use anyhow::Context;

use self::crew::Crew;
use self::reload::Reload;
use crate::control::config::DeviceConfig;
use crate::control::config_file::ConfigFile;
use crate::control::door::{self, Entrance};
use crate::control::observer::{self, Observer, Sources};
use crate::control::uapi_socket::{self, Server};
use crate::control::unix_socket::{self, Listener, SocketError};
use crate::io::descriptor;
use crate::io::wake::Waker;

/// Runs a tunnel until a signal or the end of its interface; calls `ready` once packets can flow. `file` is where `config`
/// comes from, to be read again on SIGHUP.
///
/// # Errors
/// What the operator can help: devices, addresses, names. Also a worker that failed: then all stop.
pub fn run(config: DeviceConfig, file: Option<Box<ConfigFile>>, ready: impl FnOnce()) -> anyhow::Result<()> {
    device::raise_limits();
    let device = device::open(&config)?;
    // Until here a signal ends us, also while a name is resolved; the sockets' files would stay. Before any thread exists, so
    // that all inherit the mask.
    let signals = supervisor::block_signals().context("cannot take signals")?;
    let metrics = config.metrics.as_ref().map(door::listen_metrics).transpose()?;
    let metrics_peers = config.metrics_peers;
    let listener = configuration_socket(&config, &device.interface.name)?;
    let unwanted = Waker::new().context("no doorbell for the configuration socket")?;
    let interface = device.interface.clone();
    let summary = device.summary.clone();
    let crew = crew::start(device, &config)?;
    let reload = Reload::new(file, &config);
    // Its keys are the protocol thread's now, who wipes those that are replaced.
    drop(config);
    let served = serve(listener, &crew, &unwanted).and_then(|server| {
        // Both end before those who answer their questions.
        let _observer = observe(metrics, metrics_peers, &interface.name, &crew)?;
        // Only now: whoever waits for this line goes on to use the tunnel.
        tracing::info!("{summary}");
        ready();
        let ended = supervisor::watch(interface, &signals, &unwanted, &crew, &reload);
        server.into_iter().for_each(Server::stop);
        ended
    });
    let joined = crew.stop();
    served.and(joined)
}

/// Lets `uringvpn show` and Prometheus look. A tunnel that cannot be looked at is still a tunnel, unless metrics were asked for.
fn observe(
    metrics: Option<Entrance>,
    peer_series: bool,
    name: &str,
    crew: &Crew,
) -> anyhow::Result<Option<Observer>> {
    let show = unix_socket::bind_in(Path::new(observer::DIRECTORY), name);
    let show =
        show.inspect_err(|error| tracing::info!("`uringvpn show` cannot look at this tunnel: {error}")).ok();
    let sources = Sources {
        questions: crew.questions(),
        commands: crew.commands(),
        captures: crew.captures(),
        peer_series,
    };
    let demanded = metrics.is_some();
    match observer::serve(show, metrics, sources) {
        Ok(observer) => Ok(Some(observer)),
        Err(error) if demanded => Err(error).context("cannot serve metrics"),
        Err(error) => {
            tracing::warn!("nobody can watch this tunnel: {error}");
            Ok(None)
        }
    }
}

/// The socket that `wg` talks to. A tunnel that has all its settings can do without.
fn configuration_socket(config: &DeviceConfig, name: &str) -> anyhow::Result<Option<Listener>> {
    if config.plaintext || !config.uapi {
        return Ok(None);
    }
    if let Some(number) = config.uapi_fd {
        let socket = descriptor::take(number).context("the configuration socket that was handed in")?;
        return Ok(Some(unix_socket::from_fd(socket)?));
    }
    match uapi_socket::bind(name) {
        Ok(listener) => Ok(Some(listener)),
        Err(error @ SocketError::Permission(_)) if config.set_up => {
            tracing::warn!("{error}; `wg` cannot show or change this tunnel");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn serve(listener: Option<Listener>, crew: &Crew, unwanted: &Waker) -> anyhow::Result<Option<Server>> {
    let (Some(listener), Some(commands)) = (listener, crew.commands()) else { return Ok(None) };
    let unwanted = unwanted.clone();
    Ok(Some(uapi_socket::serve(listener, commands, move || unwanted.wake())?))
}
