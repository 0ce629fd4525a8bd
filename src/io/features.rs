//! tmp
/// x
pub fn io_uring_refusal(e: nix::errno::Errno) -> String { format!("io_uring: {e}") }
