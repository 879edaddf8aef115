//! A small line and two datasets of noise.
