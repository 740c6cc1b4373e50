//! `kubectl uncordon` is the reverse of `cordon`.

pub use super::cordon::Uncordon;
