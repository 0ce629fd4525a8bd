//! The Internet checksum.
//!
//! Source: RFC 1071; RFC 8200 §8.1 for the IPv6 pseudo-header.
