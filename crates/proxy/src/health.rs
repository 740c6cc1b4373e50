//! The small HTTP servers that load balancers ask: `healthCheckNodePort`s and the proxy's own
//! `/healthz`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use stdx::{CancellationToken, Env};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{Error, model::ServiceKey};

/// The servers of this node, one per Service that has a `healthCheckNodePort`.
pub struct HealthChecks {
    env: Env,
    healthy: Arc<AtomicBool>,
    servers: BTreeMap<ServiceKey, Server>,
}

struct Server {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// What one question is answered with.
struct Answer {
    status: &'static str,
    headers: String,
    body: String,
}

impl HealthChecks {
    /// `healthy` says whether the proxy's last transaction succeeded.
    pub fn new(env: &Env, healthy: Arc<AtomicBool>) -> Self {
        Self { env: env.clone(), healthy, servers: BTreeMap::new() }
    }

    /// Starts, moves, stops or updates the server of one Service.
    pub async fn set(&mut self, key: &ServiceKey, port: Option<u16>, local_endpoints: usize) {
        if let Some(server) = self.servers.get(key)
            && port == Some(server.port)
        {
            return server.local_endpoints.store(local_endpoints, Ordering::Relaxed);
        }
        if let Some(server) = self.servers.remove(key) {
            server.stop.cancel();
        }
        let Some(port) = port else { return };
        match self.start(key, port, local_endpoints).await {
            Ok(server) => drop(self.servers.insert(key.clone(), server)),
            Err(error) => {
                tracing::warn!(service = %key, error = %stdx::chain(&error), "no health check");
            }
        }
    }

    async fn start(&self, key: &ServiceKey, port: u16, count: usize) -> Result<Server, Error> {
        let listener = listen(SocketAddr::from(([0, 0, 0, 0], port))).await?;
        let local_endpoints = Arc::new(AtomicUsize::new(count));
        let stop = CancellationToken::new();
        let (key, counter, healthy) = (key.clone(), local_endpoints.clone(), self.healthy.clone());
        let answer = move |_: &str| {
            let count = counter.load(Ordering::Relaxed);
            service_answer(&key, count, healthy.load(Ordering::Relaxed))
        };
        let serving = serve(self.env.clone(), listener, Arc::new(answer));
        let until = stop.clone();
        self.env.spawn("health check node port", async move {
            until.run_until_cancelled(serving).await;
        });
        Ok(Server { port, local_endpoints, stop })
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.servers.values().for_each(|server| server.stop.cancel());
    }
}

/// Serves `/healthz` and `/livez` of the proxy itself until dropped.
pub async fn serve_healthz(
    env: Env,
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
) -> Result<(), Error> {
    let listener = listen(address).await?;
    let answer = move |path: &str| {
        let known = matches!(path, "/healthz" | "/livez");
        let status = match (known, healthy.load(Ordering::Relaxed)) {
            (false, _) => "404 Not Found",
            (true, true) => "200 OK",
            (true, false) => "503 Service Unavailable",
        };
        Answer { status, headers: String::new(), body: "{}".to_owned() }
    };
    serve(env, listener, Arc::new(answer)).await;
    Ok(())
}

fn service_answer(key: &ServiceKey, count: usize, healthy: bool) -> Answer {
    let status = if count > 0 && healthy { "200 OK" } else { "503 Service Unavailable" };
    let body = serde_json::json!({
        "service": { "namespace": key.namespace, "name": key.name },
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    });
    let headers = format!("X-Load-Balancing-Endpoint-Weight: {count}\r\n");
    Answer { status, headers, body: body.to_string() }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

async fn serve(env: Env, listener: TcpListener, answer: Arc<dyn Fn(&str) -> Answer + Send + Sync>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (timer, answer) = (env.clone(), answer.clone());
                env.spawn("health check answer", async move {
                    let reply = reply(stream, &*answer);
                    timer.timeout(Duration::from_secs(5), reply).await;
                });
            }
            // Out of descriptors: wait for some to come back.
            Err(_) => env.sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers one request and closes. A client that goes away is its own business.
async fn reply(mut stream: TcpStream, answer: &(dyn Fn(&str) -> Answer + Send + Sync)) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < 8192 {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&chunk[..count]),
        }
    }
    let line = String::from_utf8_lossy(&request);
    let path = line.split_ascii_whitespace().nth(1).unwrap_or("/");
    let Answer { status, headers, body } = answer(path);
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_node_without_endpoints_says_so() {
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let key = ServiceKey { namespace: "ns".into(), name: "web".into() };
        let mut checks = HealthChecks::new(&Env::real(), Arc::new(AtomicBool::new(true)));
        checks.set(&key, Some(port), 0).await;
        assert!(ask(port).await.starts_with("HTTP/1.1 503"));
        checks.set(&key, Some(port), 2).await;
        let text = ask(port).await;
        assert!(text.starts_with("HTTP/1.1 200"));
        assert!(text.contains("X-Load-Balancing-Endpoint-Weight: 2"));
        assert!(text.contains("\"localEndpoints\":2"));
    }
}
