//! What other userspace WireGuards take from the environment, so that we can stand in for them.
//!
//! [`super::cli`] reads our own variables, `URINGVPN_…`, with the options they stand for; they win.
//!
//! Source: wireguard-go main.go.

use std::ffi::OsString;
use std::os::fd::RawFd;

use tracing::level_filters::LevelFilter;

use super::config_error::ConfigError;
use super::secret::quote;

/// The variables, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgEnvironment {
    /// WG_TUN_FD: a TUN queue, by its descriptor's number.
    pub tun_fd: Option<RawFd>,
    /// WG_UAPI_FD: a listening configuration socket, likewise.
    pub uapi_fd: Option<RawFd>,
    /// WG_PROCESS_FOREGROUND is 1.
    pub foreground: bool,
    /// LOG_LEVEL, or info.
    pub log_level: LevelFilter,
}

impl WgEnvironment {
    /// Understands what `variable` has.
    ///
    /// LOG_LEVEL is everybody's, so a word that we do not know there is not ours to complain about.
    ///
    /// # Errors
    /// [`ConfigError::Descriptor`].
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<WgEnvironment, ConfigError> {
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let descriptor = |name| text(name).map(|value| descriptor(name, &value)).transpose();
        Ok(WgEnvironment {
            tun_fd: descriptor("WG_TUN_FD")?,
            uapi_fd: descriptor("WG_UAPI_FD")?,
            foreground: text("WG_PROCESS_FOREGROUND").as_deref() == Some("1"),
            log_level: match text("LOG_LEVEL").as_deref() {
                Some("verbose" | "debug") => LevelFilter::DEBUG,
                Some("error") => LevelFilter::ERROR,
                Some("silent") => LevelFilter::OFF,
                _ => LevelFilter::INFO,
            },
        })
    }
}

/// 0 to 2 are the standard streams, for which we have other uses.
fn descriptor(variable: &'static str, value: &str) -> Result<RawFd, ConfigError> {
    let number = value.parse().ok().filter(|&fd: &RawFd| fd > 2 && !value.starts_with('+'));
    number.ok_or_else(|| ConfigError::Descriptor { variable, given: quote(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<WgEnvironment, ConfigError> {
        let value =
            |name: &str| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| value.into());
        WgEnvironment::read(value)
    }

    #[test]
    fn nothing_given_is_nothing_wanted() {
        let (tun_fd, uapi_fd, foreground, log_level) = (None, None, false, LevelFilter::INFO);
        assert_eq!(read(&[]), Ok(WgEnvironment { tun_fd, uapi_fd, foreground, log_level }));
    }

    #[test]
    fn descriptors_are_numbers_beyond_the_standard_streams() {
        let given = read(&[("WG_TUN_FD", "3"), ("WG_UAPI_FD", "1023")]).unwrap();
        assert_eq!((given.tun_fd, given.uapi_fd), (Some(3), Some(1023)));
        for wrong in ["", "2", "-1", "+3", "3.0", "99999999999", "three"] {
            for variable in ["WG_TUN_FD", "WG_UAPI_FD"] {
                let error = read(&[(variable, wrong)]).unwrap_err().to_string();
                assert!(error.starts_with(&format!("{variable} {wrong:?}: must be")), "{error}");
            }
        }
    }

    #[test]
    fn only_a_one_keeps_the_process_in_the_foreground() {
        for (value, foreground) in [("1", true), ("0", false), ("", false), ("yes", false)] {
            assert_eq!(read(&[("WG_PROCESS_FOREGROUND", value)]).unwrap().foreground, foreground, "{value}");
        }
    }

    #[test]
    fn log_levels_are_those_of_wireguard_go_and_others_are_nobodys_mistake() {
        for (value, level) in [
            ("verbose", LevelFilter::DEBUG),
            ("debug", LevelFilter::DEBUG),
            ("error", LevelFilter::ERROR),
            ("silent", LevelFilter::OFF),
            ("warn", LevelFilter::INFO),
        ] {
            assert_eq!(read(&[("LOG_LEVEL", value)]).unwrap().log_level, level, "{value}");
        }
    }
}
