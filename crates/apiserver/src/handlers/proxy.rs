//! Requests that a node answers: logs, exec, attach, port-forward, and the proxies to nodes, pods
//! and services. The server finds the place, connects through the dialler and passes bytes on.

use std::{net::IpAddr, sync::Arc};

use api::{Reason, Status};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use machinery::{Object, Value};
use registry::{GetOptions, Resource};

use super::no_such_method;
use crate::{
    authz,
    body::{self, Body},
    nodes::{DialError, NodeAddress, NodeStream},
    pipeline::Call,
    query::percent_encode,
    respond,
};

/// `pods/log`
pub async fn log(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let pod = read(call, resource).await?;
    let container = container_of(&pod, call.query.text("container"), true)?;
    check_log_options(call)?;
    let node = pod.str_at(&["spec", "nodeName"]).to_owned();
    if node.is_empty() {
        // Nothing has run yet, so there is nothing to show.
        return Ok(respond::bytes(200, "text/plain", ""));
    }
    let wanted = [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    let path = kubelet_path("containerLogs", &pod, &container);
    let query = query_of(call.query.iter().filter(|(key, _)| wanted.contains(key)));
    let uri = with_query(&path, &query);
    let stream = dial(call, &node).await?;
    let request = passed_on(Method::GET, &uri, &HeaderMap::new(), &node, body::empty())?;
    let answer = exchange(call, stream, request).await?;
    if answer.status() != StatusCode::OK {
        return Err(refused_by_node(answer).await);
    }
    let mut response = respond::bytes(200, "text/plain", "");
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = incoming(answer.into_body());
    Ok(response)
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    let mut causes = Vec::new();
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        let Some(text) = call.query.get(field) else { continue };
        let number: i64 = text.parse().map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
        })?;
        if number < least {
            let bound = if least == 0 { "greater than or equal to 0" } else { "greater than 0" };
            causes.push(api::Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {number}: must be {bound}"),
                field: field.into(),
            });
        }
    }
    if call.query.contains("sinceSeconds") && call.query.contains("sinceTime") {
        causes.push(api::Cause {
            reason: "FieldValueForbidden".into(),
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
                .into(),
            field: String::new(),
        });
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid("", "PodLogOptions", &call.info.name, causes))
    }
}

/// `pods/exec`, `pods/attach` and `pods/portforward`: the client's upgraded connection is joined
/// with the kubelet's, byte by byte. Both speak the same WebSocket (or SPDY) protocol.
pub async fn stream(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    may_create(call)?;
    let pod = read(call, resource).await?;
    let node = pod.str_at(&["spec", "nodeName"]).to_owned();
    if node.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            pod.name()
        )));
    }
    let uri = match call.info.subresource.as_str() {
        "portforward" => {
            let ports = call.query.all("ports").flat_map(|list| list.split(','));
            let query = query_of(ports.map(|port| ("port", port)));
            with_query(&format!("/portForward/{}/{}", pod.namespace(), pod.name()), &query)
        }
        verb => {
            let container = container_of(&pod, call.query.text("container"), false)?;
            with_query(&kubelet_path(verb, &pod, &container), &stream_query(call))
        }
    };
    if call.upgrade.is_none() || !wants_upgrade(&call.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let stream = dial(call, &node).await?;
    join(call, stream, &uri, &node).await
}

/// A WebSocket begins with a GET, which read-only roles allow; what it does takes more.
fn may_create(call: &Call) -> Result<(), Status> {
    if call.info.verb != "get" {
        return Ok(());
    }
    let mut query = authz::Query::of(&call.info, "");
    query.verb = "create";
    match call.server.authorizer.authorize(&call.user, &query) {
        authz::Decision::Allow(_) => Ok(()),
        authz::Decision::NoOpinion(why) => Err(authz::forbidden(&call.user, &query, &why)),
    }
}

fn stream_query(call: &Call) -> String {
    let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let set =
        flags.iter().filter(|(name, _)| call.query.flag(name)).map(|(_, kubelet)| (*kubelet, "1"));
    let command = call.query.all("command").map(|word| ("command", word));
    query_of(set.chain(command))
}

/// `proxy` of nodes, pods and services.
pub async fn proxy(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let (scheme, name, port) = split_target(&call.info.name)?;
    let rest = if call.info.rest.is_empty() { "/".to_owned() } else { call.info.rest.clone() };
    let uri = with_query(&rest, &call.raw_query);
    let (stream, host) = match call.info.resource.as_str() {
        "nodes" => {
            let node = resource.get("", &name, &GetOptions::default()).await?.object()?;
            let mut address = NodeAddress::of(&node).map_err(unavailable)?;
            let kubelet = address.port;
            let wanted = port.parse().unwrap_or(kubelet);
            if wanted == kubelet {
                (call.server.config.dialler.connect(&address).await.map_err(unavailable)?, name)
            } else {
                address.port = wanted;
                let ip = ip_of(&address.host)?;
                (
                    call.server
                        .config
                        .dialler
                        .connect_pod(ip, wanted)
                        .await
                        .map_err(unavailable)?,
                    name,
                )
            }
        }
        _ if scheme == "https" => {
            let text = "proxying to pods and services over https is not supported by this version";
            return Err(Status::new(501, Reason::Unknown, text));
        }
        kind => {
            let found = resource.get(&call.info.namespace, &name, &GetOptions::default()).await;
            let object = match found {
                Err(status) if status.is_not_found() && kind == "services" => {
                    return Err(no_endpoints(&name));
                }
                found => found?.object()?,
            };
            let (ip, port) = match kind {
                "pods" => pod_address(&object, &port)?,
                _ => service_address(call, &object, &port).await?,
            };
            let stream =
                call.server.config.dialler.connect_pod(ip, port).await.map_err(unavailable)?;
            (stream, format!("{ip}:{port}"))
        }
    };
    if wants_upgrade(&call.headers) && call.upgrade.is_some() {
        return join(call, stream, &uri, &host).await;
    }
    let body = call.take_body();
    let request = passed_on(call.method.clone(), &uri, &call.headers, &host, body)?;
    let answer = exchange(call, stream, request).await?;
    let (mut parts, body) = answer.into_parts();
    strip_hop_headers(&mut parts.headers);
    Ok(Response::from_parts(parts, incoming(body)))
}

/// `[http:|https:]NAME[:PORT]`
fn split_target(text: &str) -> Result<(String, String, String), Status> {
    let parts: Vec<&str> = text.split(':').collect();
    let own = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
    match parts.as_slice() {
        [name] => own("", name, ""),
        [name, port] if !matches!(*name, "http" | "https") => own("", name, port),
        [scheme @ ("http" | "https"), name] => own(scheme, name, ""),
        [scheme @ ("http" | "https" | ""), name, port] => own(scheme, name, port),
        _ => Err(Status::bad_request(format!("invalid proxy target {text:?}"))),
    }
}

fn pod_address(pod: &Object, port: &str) -> Result<(IpAddr, u16), Status> {
    let ip = pod.str_at(&["status", "podIP"]);
    if ip.is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    let declared = || {
        let containers = pod.list_at(&["spec", "containers"]).iter();
        let mut ports = containers.filter_map(|c| c.get("ports")?.as_list()).flatten();
        let by_name =
            |p: &&Value| port.is_empty() || p.get("name").and_then(Value::as_str) == Some(port);
        ports.find(by_name).and_then(|p| p.get("containerPort")?.as_i64())
    };
    let number = port.parse().ok().or_else(|| declared().and_then(|n| u16::try_from(n).ok()));
    let number = number.or_else(|| port.is_empty().then_some(80));
    Ok((ip_of(ip)?, number.ok_or_else(|| Status::bad_request(format!("no port {port:?} in pod")))?))
}

/// A ready endpoint of a service's port.
async fn service_address(
    call: &Call,
    service: &Object,
    port: &str,
) -> Result<(IpAddr, u16), Status> {
    let ports = service.list_at(&["spec", "ports"]);
    let text = |value: &Value, field: &str| {
        value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let chosen = ports.iter().find(|p| match port {
        "" => ports.len() == 1,
        _ => text(p, "name") == port || p.get("port").and_then(Value::as_i64) == port.parse().ok(),
    });
    let none = || no_endpoints(service.name());
    let name = text(chosen.ok_or_else(none)?, "name");
    let slices = call
        .server
        .data
        .list_cached("discovery.k8s.io", "v1", "endpointslices", service.namespace())
        .await?;
    let mut found = Vec::new();
    for slice in
        slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service.name()))
    {
        let slice_port = slice.list_at(&["ports"]).iter().find(|p| text(p, "name") == name);
        let Some(number) = slice_port.and_then(|p| p.get("port")?.as_i64()) else { continue };
        for endpoint in slice.list_at(&["endpoints"]) {
            let ready =
                endpoint.at(&["conditions", "ready"]).and_then(Value::as_bool).unwrap_or(true);
            let address = endpoint
                .get("addresses")
                .and_then(Value::as_list)
                .and_then(|list| list.first()?.as_str());
            if let (true, Some(ip), Ok(number)) = (ready, address, u16::try_from(number)) {
                found.push((ip_of(ip)?, number));
            }
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    let at = call.server.env.random_u64() as usize % found.len();
    Ok(found[at])
}

fn no_endpoints(service: &str) -> Status {
    let text = format!("no endpoints available for service {service:?}");
    Status::new(503, Reason::ServiceUnavailable, text)
}

fn ip_of(text: &str) -> Result<IpAddr, Status> {
    text.parse().map_err(|_| Status::internal(format!("{text:?} is no address")))
}

async fn read(call: &Call, resource: &Arc<Resource>) -> Result<Object, Status> {
    resource.get(&call.info.namespace, &call.info.name, &GetOptions::default()).await?.object()
}

/// The container that is meant: the named one, else the default one, else the only one.
fn container_of(pod: &Object, named: &str, for_log: bool) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        let containers = pod.list_at(&["spec", list]);
        containers.iter().filter_map(|c| c.get("name")?.as_str()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !named.is_empty() {
        let known = main.contains(&named) || init.contains(&named) || ephemeral.contains(&named);
        return match known {
            true => Ok(named.to_owned()),
            false => Err(Status::bad_request(format!(
                "container {named} is not valid for pod {}",
                pod.name()
            ))),
        };
    }
    let default = pod
        .annotation("kubectl.kubernetes.io/default-container")
        .filter(|name| main.contains(name));
    match (main.as_slice(), default) {
        (_, Some(name)) if !for_log => Ok(name.to_owned()),
        ([one], _) => Ok((*one).to_owned()),
        ([], _) => Err(Status::bad_request(format!(
            "a container name must be specified for pod {}",
            pod.name()
        ))),
        (many, _) => {
            let mut text = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

fn kubelet_path(verb: &str, pod: &Object, container: &str) -> String {
    format!("/{verb}/{}/{}/{container}", pod.namespace(), pod.name())
}

fn query_of<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let parts: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", percent_encode(value))).collect();
    parts.join("&")
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

async fn dial(call: &Call, node: &str) -> Result<Box<dyn NodeStream>, Status> {
    let found = call.server.data.get("", "v1", "nodes", "", node).await;
    // Upstream says it of the pod, whose node it is.
    let node = found
        .map_err(|s| if s.is_not_found() { Status::not_found("", "pods", node) } else { s })?;
    let address = NodeAddress::of(&node).map_err(unavailable)?;
    call.server.config.dialler.connect(&address).await.map_err(unavailable)
}

fn unavailable(error: DialError) -> Status {
    Status::internal(format!("error dialing backend: {}", stdx::chain(&error)))
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection =
        headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    headers.contains_key(header::UPGRADE)
        && connection.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// A request for the other side, with the client's headers but for those of one connection.
fn passed_on(
    method: Method,
    uri: &str,
    headers: &HeaderMap,
    host: &str,
    body: Body,
) -> Result<Request<Body>, Status> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().map_err(Status::internal)?;
    let mut headers = headers.clone();
    strip_hop_headers(&mut headers);
    headers.remove(header::AUTHORIZATION);
    let host = HeaderValue::from_str(host).map_err(Status::internal)?;
    headers.insert(header::HOST, host);
    *request.headers_mut() = headers;
    Ok(request)
}

fn strip_hop_headers(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 7] = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    for name in HOP {
        headers.remove(name);
    }
}

type Answer = Response<hyper::body::Incoming>;

async fn exchange(
    call: &Call,
    stream: Box<dyn NodeStream>,
    request: Request<Body>,
) -> Result<Answer, Status> {
    let failed =
        |error: hyper::Error| Status::internal(format!("error proxying to backend: {error}"));
    let handshake =
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(failed)?;
    call.server.env.spawn("node-connection", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node ended");
        }
    });
    sender.send_request(request).await.map_err(failed)
}

fn incoming(body: hyper::body::Incoming) -> Body {
    body.map_err(Into::into).boxed_unsync()
}

/// Passes the client's upgrade on and, when the other side agrees, joins both streams.
async fn join(
    call: &mut Call,
    stream: Box<dyn NodeStream>,
    uri: &str,
    host: &str,
) -> Result<Response<Body>, Status> {
    let Some(client) = call.upgrade.take() else { return Ok(no_such_method()) };
    let upgrade = call.headers.get(header::UPGRADE).cloned();
    let mut request = passed_on(call.method.clone(), uri, &call.headers, host, body::empty())?;
    if let Some(upgrade) = upgrade {
        request.headers_mut().insert(header::UPGRADE, upgrade);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let mut answer = exchange(call, stream, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused_by_node(answer).await);
    }
    let node = hyper::upgrade::on(&mut answer);
    call.server.env.spawn("tunnel", async move {
        let (client, node) = match futures::future::try_join(client, node).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "upgrade failed"),
        };
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
            tracing::debug!(%error, "tunnel ended");
        }
    });
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

/// The kubelet's refusal as the client shall read it.
async fn refused_by_node(answer: Answer) -> Status {
    let code = answer.status().as_u16();
    let body =
        body::read(incoming(answer.into_body()), 64 * 1024).await.unwrap_or_else(|_| Bytes::new());
    if let Some(status) = Status::from_json(&body) {
        return status;
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    let reason = match code {
        400 => Reason::BadRequest,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        _ => Reason::InternalError,
    };
    Status::new(code, reason, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn pod(json: Value) -> Object {
        Object::from_value(json).unwrap()
    }

    #[test]
    fn the_container_is_chosen_as_kubernetes_does() {
        let two = pod(value!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        }));
        assert_eq!(container_of(&two, "i", true).unwrap(), "i");
        assert_eq!(
            container_of(&two, "", true).unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(
            container_of(&two, "x", true).unwrap_err().message,
            "container x is not valid for pod p"
        );
    }

    #[test]
    fn proxy_targets_are_read() {
        let check = |text: &str| {
            split_target(text).map(|(s, n, p)| format!("{s}|{n}|{p}")).unwrap_or_default()
        };
        assert_eq!(check("web"), "|web|");
        assert_eq!(check("web:80"), "|web|80");
        assert_eq!(check("https:web:443"), "https|web|443");
        assert_eq!(check("http:web:"), "http|web|");
        assert_eq!(check("a:b:c:d"), "");
    }
}
