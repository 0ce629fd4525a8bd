//! The TCP and UDP fields that segmentation and coalescing need.
//!
//! Source: RFC 9293 §3.1; RFC 768.
