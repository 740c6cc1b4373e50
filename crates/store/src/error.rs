//! From the operating system's errors to the store's.

use std::{io, path::Path};

use crate::Error;

pub fn from_io(path: &Path, error: io::Error) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path },
        io::ErrorKind::WouldBlock => Error::Locked { path },
        _ => Error::Unavailable(error.into()),
    }
}
