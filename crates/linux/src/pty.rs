//! Terminals.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::pty::OpenptFlags;

use crate::check;

/// A new terminal of the devpts instance that this process sees at /dev/pts: its two ends, the
/// one that we keep and the one for the program.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let ours = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/ptmx", flags, Mode::empty()))?;
    rustix::pty::unlockpt(&ours)?;
    let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let program = rustix::pty::ioctl_tiocgptpeer(&ours, peer_flags)?;
    Ok((ours, program))
}

/// Sets the size of a terminal, in characters.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Makes `terminal` the controlling terminal of this process, which must lead its session.
pub fn take_control(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: the argument is an integer.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Makes `fd` standard input (0), output (1) or error (2) of this process.
pub fn set_standard(fd: impl AsFd, number: i32) -> io::Result<()> {
    let source = fd.as_fd().as_raw_fd();
    // SAFETY: both are integers; descriptors 0 to 2 are owned by no object of ours.
    if source == number {
        check(unsafe { libc::fcntl(source, libc::F_SETFD, 0) })?;
    } else {
        check(unsafe { libc::dup2(source, number) })?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on when this process executes another program.
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: the descriptors stay open in this process.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    Ok(())
}
