//! A load client that never retries: every request counts.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use linux::netns::NetNs;

/// Where the load comes from and where it goes.
pub struct Target {
    pub label: String,
    pub address: SocketAddr,
    /// The network namespace to send from; none is the host's.
    pub namespace: Option<PathBuf>,
}

/// Running load: for every target one thread with a kept connection and one with new ones.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    fresh: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// What the load saw.
pub struct Outcome {
    pub answered: u64,
    pub failed: u64,
    /// How many of the requests had a connection of their own.
    pub fresh: u64,
    /// The first few failures, in words.
    pub failures: Vec<String>,
}

impl Load {
    pub fn start(targets: Vec<Target>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let mut threads = Vec::new();
        for target in targets {
            let target = Arc::new(target);
            for fresh in [true, false] {
                let namespace = match &target.namespace {
                    Some(path) => Some(NetNs::open(path).context("cannot open a namespace")?),
                    None => None,
                };
                let (stop, counts, target) = (stop.clone(), counts.clone(), target.clone());
                threads.push(std::thread::spawn(move || {
                    if let Some(namespace) = namespace {
                        if let Err(error) = namespace.enter() {
                            return counts.fail(&target, &error.to_string());
                        }
                    }
                    send(&target, fresh, &stop, &counts);
                }));
            }
        }
        Ok(Self { stop, counts, threads })
    }

    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    pub fn stop(mut self) -> Outcome {
        self.end();
        let failures = self.counts.failures.lock().map(|list| list.clone()).unwrap_or_default();
        Outcome {
            answered: self.counts.answered.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            fresh: self.counts.fresh.load(Ordering::Relaxed),
            failures,
        }
    }
}

impl Load {
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A scenario that fails midway leaves no load behind.
impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Counts {
    fn fail(&self, target: &Target, what: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut list) = self.failures.lock() {
            if list.len() < 5 {
                list.push(format!("{}: {what}", target.label));
            }
        }
    }
}

/// Each thread leaves this much between its requests, so that two cores hold load and cluster.
const PACE: Duration = Duration::from_millis(5);

fn send(target: &Target, fresh: bool, stop: &AtomicBool, counts: &Counts) {
    let mut kept: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PACE);
        let stream = match kept.take() {
            Some(stream) => Ok(stream),
            None => connect(target.address),
        };
        match stream.and_then(|stream| exchange(stream, fresh)) {
            Ok(left) => {
                counts.answered.fetch_add(1, Ordering::Relaxed);
                counts.fresh.fetch_add(u64::from(fresh), Ordering::Relaxed);
                kept = left;
            }
            Err(error) => counts.fail(target, &error.to_string()),
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request. Gives back the connection when it may be used again: the server has not said
/// `connection: close`.
fn exchange(mut stream: TcpStream, fresh: bool) -> std::io::Result<Option<TcpStream>> {
    let header = if fresh { "connection: close\r\n" } else { "" };
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: hello\r\n{header}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(std::io::Error::other("connection ended before the answer"));
        }
        answer.extend_from_slice(&buffer[..length]);
        if let Some(whole) = complete(&answer) {
            if !whole.starts_with("HTTP/1.1 200") {
                let line = whole.lines().next().unwrap_or_default().to_owned();
                return Err(std::io::Error::other(line));
            }
            let closes = whole.to_ascii_lowercase().contains("connection: close");
            return Ok((!closes).then_some(stream));
        }
    }
}

/// The whole answer, once its body has the announced length.
fn complete(answer: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0usize);
    (body.len() >= length).then_some(text)
}
