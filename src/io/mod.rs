//! The kernel. The only folder where `unsafe` is allowed.
#![allow(unsafe_code)]

pub mod clock;
pub mod steer;
pub mod sys;
pub mod tun;
pub mod udp;
