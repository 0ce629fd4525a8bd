//! The main thread while the tunnel runs: waits for signals, link changes and workers that ended.

use std::os::fd::AsFd;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::crew::Crew;
use super::data::End;
use super::interface::Interface;
use crate::control::netlink::{LinkEvent, LinkWatch, Netlink};

/// Turns the signals we act on into a descriptor, for this thread and those it starts.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn block_signals() -> nix::Result<SignalFd> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Returns when the tunnel should end: told by a signal, or its interface is gone.
///
/// # Errors
/// A worker failed.
pub fn watch(interface: &Interface, signals: &SignalFd, crew: &Crew) -> anyhow::Result<()> {
    let mut links = LinkWatch::open()?;
    let mut link = Link { interface, up: true };
    // What happened before the watch was open.
    let mut news = link.query()?;
    loop {
        for event in std::mem::take(&mut news) {
            if link.take_in(event, crew) {
                return Ok(());
            }
        }
        wait(signals, &links, crew)?;
        if let Some(signal) = stop_signal(signals) {
            tracing::info!("{signal}: finishing");
            return Ok(());
        }
        if let Some(ended) = crew.ended() {
            return worker_ended(&interface.name, ended);
        }
        news = links.events(interface.index)?;
        if news.contains(&LinkEvent::Overrun) {
            // It may have been down and up again unseen.
            link.up = false;
            news = link.query()?;
        }
    }
}

fn wait(signals: &SignalFd, links: &LinkWatch, crew: &Crew) -> anyhow::Result<()> {
    let mut fds = [
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(links.fd(), PollFlags::POLLIN),
        PollFd::new(crew.bell().as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for signals"),
    }
}

/// The signal that ends us, if one came. SIGHUP is taken and means nothing yet: there is no file to read again.
fn stop_signal(signals: &SignalFd) -> Option<Signal> {
    while let Ok(Some(info)) = signals.read_signal() {
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGHUP) => tracing::info!("SIGHUP: nothing to reload"),
            Ok(signal) => return Some(signal),
            Err(_) => {}
        }
    }
    None
}

fn worker_ended(name: &str, ended: super::crew::Ended) -> anyhow::Result<()> {
    match ended {
        Ok(End::TunGone) => {
            tracing::warn!("{name} was deleted: ending");
            Ok(())
        }
        Ok(End::Stopped) => bail!("a worker stopped without being told to"),
        Err(reason) => bail!(reason),
    }
}

/// Our interface as netlink last described it.
struct Link<'a> {
    interface: &'a Interface,
    up: bool,
}

impl Link<'_> {
    /// Asks for the interface's state now.
    fn query(&self) -> anyhow::Result<Vec<LinkEvent>> {
        let link = Netlink::connect()?.link_by_index(self.interface.index)?;
        Ok(vec![match link {
            Some(link) if link.up => LinkEvent::Up { mtu: link.mtu },
            Some(link) => LinkEvent::Down { mtu: link.mtu },
            None => LinkEvent::Deleted,
        }])
    }

    /// Acts on news of the interface; says whether it was the last.
    fn take_in(&mut self, event: LinkEvent, crew: &Crew) -> bool {
        match event {
            LinkEvent::Up { .. } => self.set_up(true, crew),
            LinkEvent::Down { .. } => self.set_up(false, crew),
            // Asked for before events are taken in.
            LinkEvent::Overrun => {}
            LinkEvent::Deleted => {
                tracing::warn!("{} was deleted: ending", self.interface.name);
                return true;
            }
        }
        false
    }

    fn set_up(&mut self, up: bool, crew: &Crew) {
        if self.up == up {
            return;
        }
        self.up = up;
        let name = &self.interface.name;
        if up {
            tracing::info!("{name} is up: resuming");
            if let Err(error) = self.interface.restore() {
                tracing::warn!("{name} came up without all its addresses and routes: {error:#}");
            }
        } else {
            tracing::info!("{name} is down: pausing");
        }
        crew.set_paused(!up);
    }
}
