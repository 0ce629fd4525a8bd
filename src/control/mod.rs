//! Everything that decides what the tunnel should be: command line, configuration file, netlink, `wg`.

pub mod capture;
pub mod cli;
pub mod config;
pub mod config_error;
pub mod config_file;
pub mod door;
pub mod endpoint;
pub mod environment;
mod examples;
pub mod expose;
pub mod exposed;
pub mod file;
pub mod http;
pub mod key_commands;
pub mod logging;
pub mod name;
pub mod netlink;
pub mod observer;
pub mod peer;
pub mod report;
pub mod resolve;
pub mod secret;
pub mod show;
pub mod top;
pub mod uapi;
mod uapi_client;
pub mod uapi_socket;
pub mod unix_socket;
pub mod watched;
pub mod watcher;

/// For error messages: the first 100 characters.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
