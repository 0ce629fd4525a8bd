//! Everything that decides what the tunnel should be: command line, configuration, netlink.

pub mod cli;
pub mod config;
pub mod logging;
pub mod netlink;
