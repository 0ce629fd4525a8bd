//! Threads: where the data plane meets the kernel.
