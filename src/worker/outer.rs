//! The outer sockets as a whole: which port, which mark, and changing both while the workers run.

use nix::errno::Errno;

use crate::io::udp::{self, Mailer, UdpError, UdpGroup, UdpRequest, WorkerSockets};
use crate::time::Span;

/// What the protocol thread holds of the sockets that the workers use.
#[derive(Debug)]
pub struct Outer {
    request: UdpRequest,
    port: u16,
    /// Clones of every worker's sockets: an option set here is set there.
    sockets: Vec<WorkerSockets>,
    mailer: Mailer,
}

impl Outer {
    /// For the sockets that `request` opened.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(request: UdpRequest, group: &UdpGroup) -> std::io::Result<Outer> {
        let clones = group.workers.iter().map(WorkerSockets::try_clone);
        let sockets: Vec<_> = clones.collect::<Result<_, _>>()?;
        let mailer = Mailer::new(&group.workers[0])?;
        Ok(Outer { request, port: group.port, sockets, mailer })
    }

    /// The listen port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The mark of what we send; 0 is none.
    pub fn fwmark(&self) -> u32 {
        self.request.fwmark
    }

    /// Sends what the protocol itself has to say.
    pub fn mailer(&self) -> &Mailer {
        &self.mailer
    }

    /// Goes to another port, 0 for any that is free, and to another mark; `None` for what stays. Returns each worker's
    /// sockets on the new port, and keeps nothing of the old ones; none if the port stays.
    ///
    /// # Errors
    /// EADDRINUSE and the like, EPERM for a mark without CAP_NET_ADMIN; then all stays as it was.
    pub fn change(&mut self, port: Option<u16>, fwmark: Option<u32>) -> Result<Vec<WorkerSockets>, Errno> {
        let fwmark = fwmark.unwrap_or(self.request.fwmark);
        match port.filter(|port| *port != self.port) {
            Some(port) => self.listen_on(port, fwmark),
            None => self.set_mark(fwmark).map(|()| Vec::new()),
        }
    }

    fn set_mark(&mut self, fwmark: u32) -> Result<(), Errno> {
        // Even saying the same again takes a right that we may not have.
        if fwmark == self.request.fwmark {
            return Ok(());
        }
        let all = |mark| self.sockets.iter().try_for_each(|sockets| sockets.set_mark(mark));
        if let Err(errno) = all(fwmark) {
            let _ = all(self.request.fwmark);
            return Err(errno);
        }
        self.request.fwmark = fwmark;
        Ok(())
    }

    fn listen_on(&mut self, port: u16, fwmark: u32) -> Result<Vec<WorkerSockets>, Errno> {
        // Who waits for a port is the caller's business: it has others to serve meanwhile.
        let request = UdpRequest { port, fwmark, patience: Span::ZERO, ..self.request.clone() };
        let group = udp::open(&request).map_err(|error| {
            tracing::debug!("listen port {port}: {error}");
            errno(&error)
        })?;
        *self = Outer::new(request, &group).map_err(|_| Errno::EMFILE)?;
        Ok(group.workers)
    }
}

/// What the configuration protocol says of `error`.
fn errno(error: &UdpError) -> Errno {
    match error {
        UdpError::PortInUse { .. } => Errno::EADDRINUSE,
        UdpError::AddressNotHere { .. } => Errno::EADDRNOTAVAIL,
        UdpError::NotPermitted { .. } => Errno::EACCES,
        UdpError::NoDescriptors { errno, .. }
        | UdpError::Mark { errno, .. }
        | UdpError::Call { errno, .. } => *errno,
        _ => Errno::EIO,
    }
}
