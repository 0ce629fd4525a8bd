//! One packet, one chain of calls; no syscalls, no waiting.
