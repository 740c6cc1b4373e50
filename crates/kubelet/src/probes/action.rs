//! One attempt of a probe.

use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::Probe;
use tokio::net::TcpStream;

use super::Attempt;
use crate::{
    context::Context,
    hooks::short_version,
    http_check,
    pod::{Container, Pod, go_duration},
};

pub struct Request<'a> {
    pub context: &'a Context,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub container_id: &'a str,
    pub pod_ips: &'a [String],
    pub limit: Duration,
}

pub async fn ask(request: &Request<'_>, probe: &Probe) -> Attempt {
    if let Some(exec) = &probe.exec {
        return run(request, exec.command.clone().unwrap_or_default()).await;
    }
    if probe.http_get.is_some() {
        return http(request, probe).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match http_check::resolve_port(&tcp.port, request.container) {
            Ok(port) => connect(request, tcp.host.as_ref(), port).await,
            Err(text) => Attempt::Errored(text),
        };
    }
    if let Some(grpc) = &probe.grpc {
        return health(request, grpc.port, grpc.service.as_deref().unwrap_or_default()).await;
    }
    Attempt::Errored("the probe names no action that this node knows".into())
}

async fn run(request: &Request<'_>, command: Vec<String>) -> Attempt {
    let seconds = request.limit.as_secs().max(1);
    let asked = v1::ExecSyncRequest {
        container_id: request.container_id.to_owned(),
        cmd: command,
        timeout: seconds as i64,
    };
    let mut runtime = request.context.runtime.clone();
    // The runtime keeps the time; a second more guards against one that does not.
    let guard = request.limit + Duration::from_secs(1);
    let Some(answer) = request.context.env.timeout(guard, runtime.exec_sync(asked)).await else {
        return timed_out(seconds);
    };
    match answer {
        Ok(answer) => {
            let answer = answer.into_inner();
            if answer.exit_code == 0 {
                return Attempt::Success;
            }
            let mut output = [answer.stdout, answer.stderr].concat();
            output.truncate(10 << 10);
            Attempt::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(status) if status.code() == tonic::Code::DeadlineExceeded => timed_out(seconds),
        Err(status) => Attempt::Errored(format!(
            "rpc error: code = {} desc = {}",
            crate::images::code_name(status.code()),
            status.message()
        )),
    }
}

fn timed_out(seconds: u64) -> Attempt {
    let limit = go_duration(Duration::from_secs(seconds));
    Attempt::Failure(format!("command timed out after {limit}"))
}

async fn http(request: &Request<'_>, probe: &Probe) -> Attempt {
    let Some(action) = &probe.http_get else { return Attempt::Success };
    let port = match http_check::resolve_port(&action.port, request.container) {
        Ok(port) => port,
        Err(text) => return Attempt::Errored(text),
    };
    let host = http_check::host_of(action.host.as_ref(), request.pod, request.pod_ips);
    let agent = format!("kube-probe/{}", short_version(&request.context.config.version));
    let env = &request.context.env;
    match http_check::get(env, action, &host, port, &agent, request.limit).await {
        Ok(answer) if (200..300).contains(&answer.code) => Attempt::Success,
        Ok(answer) if (300..400).contains(&answer.code) => Attempt::Warning(format!(
            "HTTP probe was answered with a redirect, status {}",
            answer.code
        )),
        Ok(answer) => {
            tracing::debug!(code = answer.code, body = answer.body, "HTTP probe failed");
            Attempt::Failure(format!("HTTP probe failed with statuscode: {}", answer.code))
        }
        Err(text) => Attempt::Failure(text),
    }
}

async fn connect(request: &Request<'_>, host: Option<&String>, port: u16) -> Attempt {
    let host = http_check::host_of(host, request.pod, request.pod_ips);
    let connecting = TcpStream::connect((host.as_str(), port));
    match request.context.env.timeout(request.limit, connecting).await {
        Some(Ok(_)) => Attempt::Success,
        Some(Err(error)) => Attempt::Failure(format!("dial tcp {host}:{port}: connect: {error}")),
        None => Attempt::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// `grpc.health.v1.Health/Check`, whose two messages are small enough to write by hand.
async fn health(request: &Request<'_>, port: i32, service: &str) -> Attempt {
    let host = http_check::host_of(None, request.pod, request.pod_ips);
    let shown = if host.contains(':') { format!("[{host}]") } else { host };
    let address = format!("http://{shown}:{port}");
    let asked = grpc::check(&address, service);
    match request.context.env.timeout(request.limit, asked).await {
        None => Attempt::Failure(format!(
            "timeout: failed to connect service {shown}:{port:?} within {}: context deadline exceeded",
            go_duration(request.limit)
        )),
        Some(Ok(true)) => Attempt::Success,
        Some(Ok(false)) => {
            Attempt::Failure("service unhealthy (responded with \"NOT_SERVING\")".into())
        }
        Some(Err(text)) => Attempt::Failure(text),
    }
}

mod grpc {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        pub service: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        pub status: i32,
    }

    const SERVING: i32 = 1;

    pub async fn check(address: &str, service: &str) -> Result<bool, String> {
        let words = |error: tonic::transport::Error| stdx::chain(&error).to_string();
        let endpoint =
            tonic::transport::Endpoint::from_shared(address.to_owned()).map_err(words)?;
        let channel = endpoint.connect().await.map_err(words)?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(words)?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        match client.unary(request, path, codec).await {
            Ok(answer) => Ok(answer.into_inner().status == SERVING),
            Err(status) if status.code() == tonic::Code::Unimplemented => Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .into(),
            ),
            Err(status) => Err(format!("service failed: {}", status.message())),
        }
    }
}
