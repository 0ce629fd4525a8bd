//! Threads: where the data plane meets the kernel.
//!
//! ```text
//! run (main thread)
//!  ├─ device::open        TUN queues, sockets, interface: everything that can fail for the operator's reasons
//!  ├─ crew::start         stats thread; worker 0..N-1, each with driver, TUN queue, sockets, counters of its own; the
//!  │                      protocol thread, in encrypted mode
//!  ├─ serve, observe      the configuration socket; those who watch
//!  ├─ supervisor::watch   sleeps in poll(2): signals, link changes, a thread that ended; SIGHUP goes to reload
//!  └─ crew.stop           stop flag, doorbells, join; then the stats thread prints its summary
//! ```
//!
//! Workers own their descriptors. When the last one has ended they are closed, and the interface we made is gone.

pub mod crew;
pub mod data;
pub mod device;
pub mod exchange;
pub mod handoff;
pub mod interface;
pub mod names;
pub mod outer;
pub mod protocol;
pub mod refusals;
pub mod reload;
pub mod stage;
mod start;
pub mod supervisor;
pub mod tunnel;

use std::net::TcpListener;
use std::path::Path;

use anyhow::Context;

use self::crew::Crew;
use self::reload::Reload;
use crate::control::config::DeviceConfig;
use crate::control::config_file::ConfigFile;
use crate::control::observer::{self, Observer, Sources};
use crate::control::uapi_socket::{self, Listener, Server, UapiSocketError};
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
    let metrics = config.metrics.map(|address| {
        observer::listen_metrics(address).with_context(|| format!("cannot serve metrics at {address}"))
    });
    let metrics = metrics.transpose()?;
    // Until here a signal ends us, also while a name is resolved; the socket's file would stay. Before any thread exists, so
    // that all inherit the mask.
    let signals = supervisor::block_signals().context("cannot take signals")?;
    let listener = configuration_socket(&config, &device.interface.name)?;
    let unwanted = Waker::new().context("no doorbell for the configuration socket")?;
    let interface = device.interface.clone();
    let crew = crew::start(device, &config)?;
    let reload = Reload::new(file, &config);
    // Its keys are the protocol thread's now, who wipes those that are replaced.
    drop(config);
    let server = serve(listener, &crew, &unwanted);
    let observer = observe(metrics, &interface.name, &crew);
    let ended = server.as_ref().err().is_none().then(|| {
        ready();
        supervisor::watch(interface, &signals, &unwanted, &crew, &reload)
    });
    let served = server.map(|server| server.into_iter().for_each(Server::stop));
    drop(observer);
    let joined = crew.stop();
    served?;
    ended.unwrap_or(Ok(())).and(joined)
}

/// Lets `uringvpn show` and Prometheus look. A tunnel that cannot be looked at is still a tunnel.
fn observe(metrics: Option<TcpListener>, name: &str, crew: &Crew) -> Option<Observer> {
    let show = uapi_socket::bind_in(Path::new(observer::DIRECTORY), name);
    let show =
        show.inspect_err(|error| tracing::info!("`uringvpn show` cannot look at this tunnel: {error}")).ok();
    let sources = Sources { questions: crew.questions(), commands: crew.commands() };
    observer::serve(show, metrics, sources)
        .inspect_err(|error| tracing::warn!("nobody can watch this tunnel: {error}"))
        .ok()
}

/// The socket that `wg` talks to. A tunnel that has all its settings can do without.
fn configuration_socket(config: &DeviceConfig, name: &str) -> anyhow::Result<Option<Listener>> {
    if config.plaintext || !config.uapi {
        return Ok(None);
    }
    if let Some(number) = config.uapi_fd {
        let socket = descriptor::take(number).context("the configuration socket that was handed in")?;
        return Ok(Some(uapi_socket::from_fd(socket)?));
    }
    match uapi_socket::bind(name) {
        Ok(listener) => Ok(Some(listener)),
        Err(error @ UapiSocketError::Permission(_)) if config.set_up => {
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
