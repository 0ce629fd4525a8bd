//! Trains under construction.
