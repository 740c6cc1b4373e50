//! Foundations that every other crate stands on and that depend on none of them.
//!
//! [`Env`] is the only door to the outside: clock, timers, entropy, tasks and files. A process
//! has one real `Env`; a simulation has one per run, made from a seed, on a single-threaded
//! runtime with a paused clock, so that two runs of one seed do the same to the byte.
//!
//! Invariants: nothing here knows Kubernetes; no code outside this crate reads the clock, draws
//! entropy or spawns a task by other means (`clippy.toml` holds it).

pub mod backoff;
pub mod env;
pub mod error;
pub mod files;
pub mod time;

pub use env::{Env, Task};
pub use error::chain;
pub use time::Timestamp;
pub use tokio::time::Instant;
pub use tokio_util::sync::CancellationToken;

/// A hash map whose iteration order depends on its contents and history alone.
pub type HashMap<K, V> = hashbrown::HashMap<K, V, foldhash::fast::FixedState>;
/// A hash set whose iteration order depends on its contents and history alone.
pub type HashSet<T> = hashbrown::HashSet<T, foldhash::fast::FixedState>;
