//! `--config FILE`: the file as a source of configurations, read at the start and again on SIGHUP.
//!
//! [`super::file`] understands the text, [`super::cli`] knows what else was typed. Nothing of the file is kept here.

use std::path::{Path, PathBuf};

use super::config::{ConfigError, DeviceConfig};
use super::endpoint::Listen;
use super::file;
use super::name::check_name;
use super::secret::{self, CONFIG_FILE_BYTES_MAX};

/// A configuration file, and what the command line said beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    path: PathBuf,
    how: DeviceConfig,
    tun: Option<String>,
}

impl ConfigFile {
    /// The file `path`. `how` is all that is not the file's business; `tun` names the interface, else the file's name does.
    pub fn new(path: &Path, how: DeviceConfig, tun: Option<String>) -> ConfigFile {
        // In the background the working directory is another one. Standard input stays what it is,
        // and a key is to be recognized as one.
        let as_it_is = path == Path::new("-") || secret::is_instead_of_file(path);
        let absolute = std::path::absolute(path).ok().filter(|_| !as_it_is);
        ConfigFile { path: absolute.unwrap_or_else(|| path.to_owned()), how, tun }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether it can be read more than once: a pipe cannot. A file that is missing just now can.
    pub fn is_lasting(&self) -> bool {
        self.path != Path::new("-") && self.path.metadata().map_or(true, |found| found.is_file())
    }

    /// Reads the file as `wg` and `wg-quick` mean it; also returns what the operator should know.
    ///
    /// # Errors
    /// [`ConfigError`], with file, line and column for what is wrong in the file.
    pub fn read(&self) -> Result<(DeviceConfig, Vec<String>), ConfigError> {
        let read = secret::read(&self.path, "--config", CONFIG_FILE_BYTES_MAX)?;
        let shown = self.name();
        let file = file::parse(&shown, &read.bytes)?;
        let mut warnings: Vec<_> =
            read.world_readable.then(|| world_readable(&self.path)).into_iter().collect();
        warnings.extend(file.warnings);
        let how = self.how.clone();
        let config = DeviceConfig {
            tun: self
                .tun
                .clone()
                .or_else(|| interface_of(&self.path))
                .ok_or_else(|| ConfigError::NameOfFile { path: self.path.clone() })?,
            addresses: file.addresses,
            listen: Listen { address: None, port: file.listen_port.unwrap_or(0) },
            private_key: file.private_key,
            fwmark: file.fwmark.unwrap_or(0),
            mtu: file.mtu.unwrap_or(how.mtu),
            routes: how.routes && !file.table_off,
            peers: file.peers,
            ..how
        };
        let config = config.check()?;
        warnings.extend(unserved(&shown, &config));
        Ok((config, warnings))
    }
}

/// What to say of a file with keys that everybody can read or change.
pub(super) fn world_readable(path: &Path) -> String {
    let path = path.display();
    format!("{path}: others on this machine can read or change the secret in it; `chmod 600 {path}`")
}

/// `wg0` for `/etc/wireguard/wg0.conf`.
fn interface_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".conf")?;
    check_name(name).is_ok().then(|| name.to_owned())
}

/// What a reader of the file `file` could expect of `config`, and is not so.
fn unserved(file: &str, config: &DeviceConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let prefixes = || config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    if config.routes
        && let Some(default) = prefixes().find(|prefix| prefix.prefix_len() == 0)
    {
        warnings.push(format!(
            "{file}: no route for {default} is added, it would catch the tunnel's own datagrams; wg-quick knows a way: \
             WG_QUICK_USERSPACE_IMPLEMENTATION=uringvpn wg-quick up {file}"
        ));
    }
    for peer in config.peers.iter().filter(|peer| peer.allowed_ips.is_empty()) {
        warnings.push(format!(
            "{file}: peer {peer} has no AllowedIPs: nothing is sent to it or accepted from it"
        ));
    }
    warnings
}
