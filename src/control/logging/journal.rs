//! The journal of systemd, spoken to in its own protocol: a datagram per entry, its fields one after the other.
//!
//! Sent without waiting: of what the journal has no room for, the next entry that gets through says how many there were.
//!
//! Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>; systemd.journal-fields(7).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::record::Record;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Who writes to it.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Entries lost since the last one sent.
    lost: u64,
}

impl Journal {
    /// The journal of this system.
    ///
    /// # Errors
    /// There is none, or not for us.
    pub fn open() -> io::Result<Journal> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{SOCKET}: {error}"));
        Journal::at(Path::new(SOCKET)).map_err(named)
    }

    fn at(path: &Path) -> io::Result<Journal> {
        // Connecting shows that somebody listens. Entries are sent to the path: a journal that was started anew has it again.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Journal { socket, path: path.to_owned(), lost: 0 })
    }

    /// Sends `record` of this interface, or counts it as lost.
    pub fn write(&mut self, record: &Record, interface: Option<&str>) {
        if self.lost > 0 && self.send(&Record::lost(self.lost), interface).is_ok() {
            self.lost = 0;
        }
        if self.send(record, interface).is_err() {
            self.lost += 1;
        }
    }

    fn send(&self, record: &Record, interface: Option<&str>) -> io::Result<usize> {
        self.socket.send_to(&entry(record, interface), &self.path)
    }
}

/// The fields of an entry; ours begin with `URINGVPN_`.
fn entry(record: &Record, interface: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    field(&mut bytes, "MESSAGE", &record.message);
    field(&mut bytes, "PRIORITY", priority(record.level));
    field(&mut bytes, "SYSLOG_IDENTIFIER", "uringvpn");
    interface.inspect(|name| field(&mut bytes, "URINGVPN_INTERFACE", name));
    for (name, value) in &record.fields {
        field(&mut bytes, &format!("URINGVPN_{}", name.to_ascii_uppercase()), value);
    }
    bytes
}

/// As `NAME=value`, or with its length if there is a line feed in the value.
fn field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

/// syslog.h.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        Record { fields: vec![("peer", "KEY=".to_owned())], ..Record::new(Level::WARN, message) }
    }

    /// The next entry, which must be there.
    fn heard(journal: &UnixDatagram) -> String {
        journal.set_nonblocking(true).expect("a socket");
        let mut buffer = [0; 8192];
        let bytes = journal.recv(&mut buffer).expect("an entry");
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    #[test]
    fn an_entry_has_message_priority_interface_and_peer() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("socket");
        assert!(Journal::at(&path).is_err());
        let listener = UnixDatagram::bind(&path).expect("it can listen");
        let mut journal = Journal::at(&path).expect("somebody listens");
        journal.write(&record("hello"), Some("wg0"));
        assert_eq!(
            heard(&listener),
            "MESSAGE=hello\nPRIORITY=4\nSYSLOG_IDENTIFIER=uringvpn\nURINGVPN_INTERFACE=wg0\nURINGVPN_PEER=KEY=\n"
        );
    }

    #[test]
    fn no_value_is_taken_for_another_field() {
        let entry = entry(&record("two\nPRIORITY=0"), None);
        assert!(entry.starts_with(b"MESSAGE\n\x0e\0\0\0\0\0\0\0two\nPRIORITY=0\nPRIORITY=4\n"));
    }

    #[test]
    fn a_journal_that_does_not_read_or_starts_anew_is_not_waited_for_and_hears_what_was_lost() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("socket");
        let listener = UnixDatagram::bind(&path).expect("it can listen");
        let mut journal = Journal::at(&path).expect("somebody listens");
        while journal.lost < 3 {
            journal.write(&record("nobody reads this"), None);
        }
        drop(listener);
        std::fs::remove_file(&path).expect("it was there");
        journal.write(&record("nobody is there"), None);
        let listener = UnixDatagram::bind(&path).expect("it can listen again");
        journal.write(&record("at last"), None);
        assert!(heard(&listener).starts_with("MESSAGE=4 log lines were lost"));
        assert!(heard(&listener).starts_with("MESSAGE=at last\n"));
    }
}
