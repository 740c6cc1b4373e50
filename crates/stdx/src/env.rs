//! The environment: clock, timers, entropy, tasks and files, real or simulated.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use tokio::time::Instant;

use crate::{
    files::{FileSystem, RealFiles},
    time::Timestamp,
};

/// The only door to clock, timers, entropy, tasks and files. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<Inner>);

struct Inner {
    mode: Mode,
    files: Arc<dyn FileSystem>,
    panics: AtomicU64,
}

enum Mode {
    Real,
    Sim { epoch: Timestamp, start: Instant, random: Mutex<SplitMix> },
}

impl Env {
    /// The environment of a process: the machine's clock, entropy, threads and file system.
    pub fn real() -> Self {
        Self::with(Mode::Real, Arc::new(RealFiles))
    }

    /// The environment of a simulated run. Must be made inside a `current_thread` runtime with a
    /// paused clock; [`simulate`] does so.
    pub fn simulated(seed: u64, files: Arc<dyn FileSystem>) -> Self {
        let random = Mutex::new(SplitMix(seed));
        let epoch = Timestamp::from_secs(1_790_000_000);
        Self::with(Mode::Sim { epoch, start: Instant::now(), random }, files)
    }

    fn with(mode: Mode, files: Arc<dyn FileSystem>) -> Self {
        Self(Arc::new(Inner { mode, files, panics: AtomicU64::new(0) }))
    }

    /// Wall-clock time.
    #[allow(clippy::disallowed_methods)] // The one place that reads the machine's clock.
    pub fn now(&self) -> Timestamp {
        match &self.0.mode {
            Mode::Real => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                Timestamp::from_nanos(since.unwrap_or_default().as_nanos() as i128)
            }
            Mode::Sim { epoch, start, .. } => *epoch + start.elapsed(),
        }
    }

    /// Monotonic time, for durations and deadlines.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    #[allow(clippy::disallowed_methods)]
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    #[allow(clippy::disallowed_methods)]
    pub async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
    }

    /// The future's output, or `None` when `limit` passes first.
    #[allow(clippy::disallowed_methods)]
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }

    /// Fills `bytes` with entropy fit for keys and tokens (in simulation: from the seed).
    pub fn fill_random(&self, bytes: &mut [u8]) {
        match &self.0.mode {
            Mode::Real => {
                use ring::rand::SecureRandom;
                let random = ring::rand::SystemRandom::new();
                random.fill(bytes).expect("the kernel's entropy source answers");
            }
            Mode::Sim { random, .. } => {
                let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
                for chunk in bytes.chunks_mut(8) {
                    chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
                }
            }
        }
    }

    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A random (version 4) UUID in its usual text form, as in `metadata.uid`.
    pub fn uuid(&self) -> String {
        let mut b = [0u8; 16];
        self.fill_random(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// `length` characters of the alphabet that Kubernetes uses for generated names.
    pub fn name_suffix(&self, length: usize) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..length)
            .map(|_| ALPHABET[(self.random_u64() % ALPHABET.len() as u64) as usize] as char)
            .collect()
    }

    /// Runs `future` as a task. A panic in it is caught, logged with `name` and counted.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let env = self.clone();
        Task(tokio::spawn(async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                Ok(output) => Some(output),
                Err(panic) => {
                    env.0.panics.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(task = name, panic = panic_text(&*panic), "task panicked");
                    None
                }
            }
        }))
    }

    /// Runs blocking work off the async threads; in simulation, inline. `None` if it panicked.
    #[allow(clippy::disallowed_methods)]
    pub async fn blocking<T, F>(&self, work: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match &self.0.mode {
            Mode::Real => tokio::task::spawn_blocking(work).await.ok(),
            Mode::Sim { .. } => Some(work()),
        }
    }

    pub fn files(&self) -> &Arc<dyn FileSystem> {
        &self.0.files
    }

    /// How many tasks have panicked so far.
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// Counts a panic that its catcher has already logged.
    pub fn count_panic(&self) {
        self.0.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub fn is_simulated(&self) -> bool {
        matches!(self.0.mode, Mode::Sim { .. })
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_simulated() { "Env(simulated)" } else { "Env(real)" })
    }
}

/// Runs `scenario` on one thread with a virtual clock: time stands still while any task can run
/// and jumps to the next timer when none can.
pub fn simulate<F, Fut, T>(seed: u64, files: Arc<dyn FileSystem>, scenario: F) -> T
where
    F: FnOnce(Env) -> Fut,
    Fut: Future<Output = T>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs no resources");
    runtime.block_on(async { scenario(Env::simulated(seed, files)).await })
}

/// The text of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic")
}

/// A running task. Dropping it lets the task go on; [`Task::abort`] ends it.
#[derive(Debug)]
pub struct Task<T>(tokio::task::JoinHandle<Option<T>>);

impl<T> Task<T> {
    pub fn abort(&self) {
        self.0.abort();
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Ends the task when the guard is dropped.
    pub fn abort_on_drop(self) -> AbortOnDrop<T> {
        AbortOnDrop(self)
    }
}

/// `None` when the task panicked or was aborted.
impl<T> Future for Task<T> {
    type Output = Option<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|joined| joined.ok().flatten())
    }
}

#[derive(Debug)]
pub struct AbortOnDrop<T>(Task<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014): one word of state, full period.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealFiles;

    fn run(seed: u64) -> (String, String, Timestamp) {
        simulate(seed, Arc::new(RealFiles), |env| async move {
            env.sleep(Duration::from_secs(3600)).await;
            (env.uuid(), env.name_suffix(5), env.now())
        })
    }

    #[test]
    fn one_seed_gives_one_run() {
        assert_eq!(run(7), run(7));
        assert_ne!(run(7).0, run(8).0);
    }

    #[test]
    fn a_panic_is_caught_and_counted() {
        simulate(1, Arc::new(RealFiles), |env| async move {
            let task = env.spawn("doomed", async { panic!("expected by the test") });
            let joined: Option<()> = task.await;
            assert!(joined.is_none());
            assert_eq!(env.panics(), 1);
        });
    }
}
