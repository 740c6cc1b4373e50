//! Scenarios of a whole server, in process.
