//! Everything that decides what the tunnel should be: command line, configuration, netlink.

pub mod netlink;
