//! How a tunnel is set up: what those who watch it want to know beside what it counts.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use super::snapshot::SettingsSnapshot;

/// Shared by those who set a tunnel up, those who change it while it runs, and those who show it.
#[derive(Debug, Default)]
pub struct Settings {
    at_start: SettingsSnapshot,
    // Relaxed throughout: each publishes nothing but itself.
    mtu: AtomicU16,
    listen_port: AtomicU16,
    /// Those that workers use.
    drivers: Mutex<BTreeSet<&'static str>>,
}

impl Settings {
    /// As they are `at_start`, before any worker has a driver.
    pub fn new(at_start: SettingsSnapshot) -> Settings {
        let (mtu, listen_port) = (at_start.mtu.into(), at_start.listen_port.into());
        Settings { at_start, mtu, listen_port, drivers: Mutex::default() }
    }

    /// The interface's MTU is `bytes` now.
    pub fn set_mtu(&self, bytes: u16) {
        self.mtu.store(bytes, Ordering::Relaxed);
    }

    /// Datagrams arrive at this port now.
    pub fn set_listen_port(&self, port: u16) {
        self.listen_port.store(port, Ordering::Relaxed);
    }

    /// A worker uses the driver that `--io` calls `name`.
    pub fn add_driver(&self, name: &'static str) {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    /// How they are now.
    pub fn snapshot(&self) -> SettingsSnapshot {
        let drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        SettingsSnapshot {
            drivers: drivers.iter().map(|driver| (*driver).to_owned()).collect(),
            mtu: self.mtu.load(Ordering::Relaxed),
            listen_port: self.listen_port.load(Ordering::Relaxed),
            ..self.at_start.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_as_they_are_now() {
        let at_start = SettingsSnapshot { mtu: 1420, listen_port: 51820, queues: 3, ..Default::default() };
        let settings = Settings::new(at_start.clone());
        assert_eq!(settings.snapshot(), at_start);
        settings.set_mtu(1280);
        settings.set_listen_port(7);
        ["uring", "syscall", "uring"].into_iter().for_each(|driver| settings.add_driver(driver));
        let drivers = vec!["syscall".to_owned(), "uring".to_owned()];
        assert_eq!(settings.snapshot(), SettingsSnapshot { mtu: 1280, listen_port: 7, drivers, ..at_start });
    }
}
