//! Threads: where the data plane meets the kernel.

use crate::control::config::DeviceConfig;

/// Placeholder, to be replaced by the data plane's own: refuses every configuration.
///
/// # Errors
/// Always.
pub fn run(config: DeviceConfig, ready: impl FnOnce()) -> anyhow::Result<()> {
    let _ = ready;
    anyhow::bail!("tun \"{}\": this build has no data plane", config.tun)
}
