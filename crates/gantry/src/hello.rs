//! The sample: a small web server that names its pod and misbehaves on request.
//!
//! It runs from the image `gantry/hello`, which holds nothing but this binary.

use std::{
    convert::Infallible,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use stdx::Env;
use tokio::net::{TcpListener, TcpStream};

use crate::commands::{Outcome, block_on, cancelled_by_signals};

/// Serve the sample web page (what the image gantry/hello runs)
///
/// Paths: / names the pod; /healthz and /readyz answer probes; /burn?ms=N keeps a core busy;
/// /sleep?ms=N answers late; /crash?code=N ends the process; /unready and /ready switch /readyz;
/// /unhealthy switches /healthz.
#[derive(clap::Args)]
pub struct Hello {
    /// Where to listen
    #[arg(long, default_value = "0.0.0.0:8080", env = "HELLO_LISTEN")]
    listen: String,
    /// What to say
    #[arg(long, default_value = "Hello from Gantry", env = "HELLO_MESSAGE")]
    message: String,
    /// After SIGTERM, go on serving for so many milliseconds while proxies take note
    #[arg(long, default_value_t = 2000, env = "HELLO_DRAIN_MS")]
    drain_ms: u64,
}

struct State {
    env: Env,
    message: String,
    pod: String,
    node: String,
    ready: AtomicBool,
    healthy: AtomicBool,
    requests: AtomicU64,
    open: AtomicU64,
    draining: AtomicBool,
}

impl Hello {
    pub fn run(self) -> Outcome {
        block_on(|env| async move {
            let cancel = cancelled_by_signals(&env)?;
            let listener = TcpListener::bind(&self.listen).await?;
            let variable = |name: &str| std::env::var(name).unwrap_or_default();
            let pod = match variable("POD_NAME") {
                name if name.is_empty() => variable("HOSTNAME"),
                name => name,
            };
            let state = Arc::new(State {
                env: env.clone(),
                message: self.message,
                pod,
                node: variable("NODE_NAME"),
                ready: AtomicBool::new(true),
                healthy: AtomicBool::new(true),
                requests: AtomicU64::new(0),
                open: AtomicU64::new(0),
                draining: AtomicBool::new(false),
            });
            println!("{} listening on {}", state.pod, self.listen);
            let serving = env.spawn("serve", serve(state.clone(), listener));
            cancel.cancelled().await;
            println!("{} draining", state.pod);
            state.ready.store(false, Ordering::Release);
            state.draining.store(true, Ordering::Release);
            env.sleep(Duration::from_millis(self.drain_ms)).await;
            serving.abort();
            while state.open.load(Ordering::Acquire) > 0 {
                env.sleep(Duration::from_millis(5)).await;
            }
            println!(
                "{} done after {} requests",
                state.pod,
                state.requests.load(Ordering::Relaxed)
            );
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn serve(state: Arc<State>, listener: TcpListener) {
    loop {
        // Accepting fails for want of descriptors, which passes.
        let Ok((stream, _)) = listener.accept().await else {
            state.env.sleep(Duration::from_millis(10)).await;
            continue;
        };
        let state = state.clone();
        state.open.fetch_add(1, Ordering::AcqRel);
        state.env.clone().spawn("connection", async move {
            converse(&state, stream).await;
            state.open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

async fn converse(state: &Arc<State>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}

impl State {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let number = |name: &str| query(request, name).and_then(|text| text.parse::<u64>().ok());
        let duration = Duration::from_millis(number("ms").unwrap_or(100).min(600_000));
        let (code, text) = match request.uri().path() {
            "/healthz" => self.probe(&self.healthy),
            "/readyz" => self.probe(&self.ready),
            "/ready" => self.switch(&self.ready, true),
            "/unready" => self.switch(&self.ready, false),
            "/unhealthy" => self.switch(&self.healthy, false),
            "/sleep" => {
                self.env.sleep(duration).await;
                (StatusCode::OK, self.greeting())
            }
            "/burn" => {
                let env = self.env.clone();
                let turns = self.env.blocking(move || burn(&env, duration)).await.unwrap_or(0);
                (StatusCode::OK, format!("burnt {turns} turns\n"))
            }
            "/crash" => {
                eprintln!("{} was asked to crash", self.pod);
                std::process::exit(i32::try_from(number("code").unwrap_or(1)).unwrap_or(1));
            }
            _ => (StatusCode::OK, self.greeting()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        if self.draining.load(Ordering::Acquire) {
            // The client opens its next connection, which goes to another pod.
            let close = http::HeaderValue::from_static("close");
            response.headers_mut().insert(http::header::CONNECTION, close);
        }
        response
    }

    fn greeting(&self) -> String {
        format!("{} pod={} node={}\n", self.message, self.pod, self.node)
    }

    fn probe(&self, flag: &AtomicBool) -> (StatusCode, String) {
        if flag.load(Ordering::Acquire) {
            (StatusCode::OK, "ok\n".into())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "no\n".into())
        }
    }

    fn switch(&self, flag: &AtomicBool, on: bool) -> (StatusCode, String) {
        flag.store(on, Ordering::Release);
        (StatusCode::OK, format!("{on}\n"))
    }
}

fn query<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
}

/// Keeps one core busy for `duration`.
fn burn(env: &Env, duration: Duration) -> u64 {
    let end = env.instant() + duration;
    let mut turns = 0u64;
    while env.instant() < end {
        turns = (0..10_000).fold(turns, |t, n| std::hint::black_box(t.wrapping_add(n % 2)));
    }
    turns
}
