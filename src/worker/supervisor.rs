//! The main thread while the tunnel runs: waits for signals, link changes and workers that ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::crew::Crew;
use super::data::End;
use super::interface::Interface;
use super::reload::Reload;
use crate::control::config::DeviceConfig;
use crate::control::netlink::{LinkEvent, LinkWatch, Netlink, NetlinkError};
use crate::io::tun::{self, Whereabouts};
use crate::io::wake::Waker;

/// Turns the signals we act on into a descriptor, for this thread and those it starts.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn block_signals() -> nix::Result<SignalFd> {
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Returns when the tunnel should end: told by a signal, its interface is gone, or `unwanted` rang.
///
/// # Errors
/// A worker failed.
pub fn watch(
    interface: Interface,
    signals: &SignalFd,
    unwanted: &Waker,
    crew: &Crew,
    reload: &Reload,
) -> anyhow::Result<()> {
    let mut link = Link::open(interface)?;
    // What happened before the watch was open.
    let mut news = link.query()?;
    loop {
        for event in std::mem::take(&mut news) {
            if link.take_in(event, crew) {
                return Ok(());
            }
        }
        wait(&[signals.as_fd(), link.watch.fd(), crew.bell().as_fd(), unwanted.as_fd()])?;
        let signalled = take_signals(signals);
        if let Some(signal) = signalled.stop {
            tracing::info!("{signal}: finishing");
            return Ok(());
        }
        if signalled.reload
            && let Some(config) = reload.run(crew)
        {
            link.reroute(&config);
        }
        if let Some(ended) = crew.ended() {
            return worker_ended(&link.interface.name, ended);
        }
        if unwanted.rang() {
            tracing::info!("the configuration socket was removed: finishing");
            return Ok(());
        }
        news = link.news()?;
    }
}

fn wait(sources: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
    let mut fds: Vec<_> = sources.iter().map(|source| PollFd::new(*source, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for signals"),
    }
}

/// What the signals that came want.
#[derive(Debug, Default)]
struct Signalled {
    stop: Option<Signal>,
    reload: bool,
}

fn take_signals(signals: &SignalFd) -> Signalled {
    let mut wanted = Signalled::default();
    while let Ok(Some(info)) = signals.read_signal() {
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGHUP) => wanted.reload = true,
            Ok(Signal::SIGCHLD) => reap(),
            Ok(signal) => wanted.stop = Some(signal),
            Err(_) => {}
        }
    }
    wanted
}

/// We start no processes, but process 1 of a container is given those whose parents have ended.
fn reap() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(ended) if ended != WaitStatus::StillAlive) {}
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

/// Our interface as netlink last described it, wherever it is.
struct Link {
    interface: Interface,
    watch: LinkWatch,
    /// The network namespace it was moved to.
    moved_to: Option<OwnedFd>,
    /// Its index there.
    index: u32,
    /// Up or not, and the MTU; `None` before the first news.
    state: Option<(bool, u16)>,
}

impl Link {
    fn open(interface: Interface) -> anyhow::Result<Link> {
        let watch = LinkWatch::open()?;
        let index = interface.index;
        Ok(Link { interface, watch, moved_to: None, index, state: None })
    }

    fn netlink(&self) -> Result<Netlink, NetlinkError> {
        match &self.moved_to {
            Some(netns) => Netlink::connect_in(netns.as_fd()),
            None => Netlink::connect(),
        }
    }

    /// Asks for the interface's state now.
    fn query(&self) -> anyhow::Result<Vec<LinkEvent>> {
        let link = self.netlink()?.link_by_index(self.index)?;
        Ok(vec![match link {
            Some(link) if link.up => LinkEvent::Up { mtu: link.mtu },
            Some(link) => LinkEvent::Down { mtu: link.mtu },
            None => LinkEvent::Deleted,
        }])
    }

    /// What happened since the last time.
    fn news(&mut self) -> anyhow::Result<Vec<LinkEvent>> {
        let news = self.watch.events(self.index)?;
        if news.contains(&LinkEvent::Deleted) && self.follow()? {
            return self.query();
        }
        if news.contains(&LinkEvent::Overrun) {
            // It may have been down and up again unseen.
            self.state = self.state.map(|(_, mtu)| (false, mtu));
            return self.query();
        }
        Ok(news)
    }

    /// A watch says "deleted" also of an interface that was moved to another network namespace: then it is watched there.
    /// False if it is really gone.
    fn follow(&mut self) -> anyhow::Result<bool> {
        let name = match tun::whereabouts(&self.interface.queue) {
            Ok(Whereabouts::Gone) => return Ok(false),
            Ok(Whereabouts::Here { name }) => {
                self.moved_to = None;
                self.watch = LinkWatch::open()?;
                name
            }
            Ok(Whereabouts::Elsewhere { name, netns }) => {
                self.watch = LinkWatch::open_in(netns.as_fd())?;
                self.moved_to = Some(netns);
                name
            }
            // An old kernel cannot tell; believe the watch.
            Err(_) => return Ok(false),
        };
        let Some(link) = self.netlink()?.link(&name)? else { return Ok(false) };
        tracing::info!("{} was moved to another network namespace; its sockets stay", self.interface.name);
        self.index = link.index;
        Ok(true)
    }

    /// Acts on news of the interface; says whether it was the last.
    fn take_in(&mut self, event: LinkEvent, crew: &Crew) -> bool {
        match event {
            LinkEvent::Up { mtu } => self.set_state(true, mtu, crew),
            LinkEvent::Down { mtu } => self.set_state(false, mtu, crew),
            // Asked for before events are taken in.
            LinkEvent::Overrun => {}
            LinkEvent::Deleted => {
                tracing::warn!("{} was deleted: ending", self.interface.name);
                return true;
            }
        }
        false
    }

    fn set_state(&mut self, up: bool, mtu: u32, crew: &Crew) {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let Some(before) = self.state.replace((up, mtu)) else {
            return crew.link_changed(up, mtu);
        };
        if before == (up, mtu) {
            return;
        }
        let name = &self.interface.name;
        if mtu != before.1 {
            tracing::debug!("{name} has an MTU of {mtu} bytes now");
            let index = self.index;
            self.netlink()
                .into_iter()
                .for_each(|mut netlink| self.interface.mtu_changed(&mut netlink, index, mtu));
        }
        if up && !before.0 {
            tracing::info!("{name} is up: resuming");
            self.restore();
        } else if !up && before.0 {
            tracing::info!("{name} is down: pausing");
        }
        crew.link_changed(up, mtu);
    }

    /// Follows a file that was read again. In another namespace routes are somebody else's.
    fn reroute(&mut self, config: &DeviceConfig) {
        let up = self.state.is_some_and(|(up, _)| up);
        if let Err(error) = self.interface.reroute(config, up && self.moved_to.is_none()) {
            tracing::warn!("{} is without some of its routes: {error:#}", self.interface.name);
        }
    }

    /// Gives the interface back what the kernel took when it was set down. In another namespace it is somebody else's.
    fn restore(&self) {
        if self.moved_to.is_some() {
            return;
        }
        if let Err(error) = self.interface.restore() {
            let name = &self.interface.name;
            tracing::warn!("{name} came up without all its addresses and routes: {error:#}");
        }
    }
}
