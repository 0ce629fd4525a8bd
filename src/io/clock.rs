//! The only clock reads of the program.
