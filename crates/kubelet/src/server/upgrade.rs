//! Switching a connection from HTTP to WebSocket or SPDY.

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, upgrade::OnUpgrade};

use super::{Answer, Refusal};

/// What the client wants to speak.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    WebSocket { protocol: &'static str },
    Spdy { protocol: &'static str },
}

/// Picks the first protocol that the client offers and we have.
pub fn wanted(
    headers: &HeaderMap,
    web_socket: &[&'static str],
    spdy: &[&'static str],
) -> Result<Wanted, Refusal> {
    let upgrade = listed(headers, header::UPGRADE.as_str());
    let pick = |offered: Vec<String>, known: &[&'static str]| {
        offered.iter().find_map(|offer| known.iter().find(|known| *known == offer).copied())
    };
    if upgrade.iter().any(|name| name.eq_ignore_ascii_case("websocket")) {
        let offered = listed(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
        return match pick(offered.clone(), web_socket) {
            Some(protocol) => Ok(Wanted::WebSocket { protocol }),
            None => Err(Refusal(
                StatusCode::FORBIDDEN,
                format!(
                    "unable to negotiate a protocol: client offers {offered:?}, server has {web_socket:?}"
                ),
            )),
        };
    }
    if upgrade.iter().any(|name| name.eq_ignore_ascii_case("SPDY/3.1")) {
        let offered = listed(headers, "X-Stream-Protocol-Version");
        return match pick(offered.clone(), spdy) {
            Some(protocol) => Ok(Wanted::Spdy { protocol }),
            None => Err(Refusal(
                StatusCode::FORBIDDEN,
                format!(
                    "unable to negotiate a protocol: client offers {offered:?}, server has {spdy:?}"
                ),
            )),
        };
    }
    Err(Refusal::bad_request(
        "you must specify at least 1 of stdin, stdout, stderr over an upgraded connection: unable to upgrade",
    ))
}

fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

/// The `101` answer, and the connection once it has been sent.
pub fn switch(
    request: &mut Request<Incoming>,
    wanted: &Wanted,
) -> Result<(Answer, OnUpgrade), Refusal> {
    let mut builder = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade");
    builder = match wanted {
        Wanted::WebSocket { protocol } => {
            let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
            let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key is missing"))?;
            let accept =
                tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            builder
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_ACCEPT, accept)
                .header(header::SEC_WEBSOCKET_PROTOCOL, *protocol)
        }
        Wanted::Spdy { protocol } => builder
            .header(header::UPGRADE, "SPDY/3.1")
            .header("X-Stream-Protocol-Version", *protocol),
    };
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let answer = builder.body(body).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok((answer, hyper::upgrade::on(request)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_decides() {
        let mut headers = HeaderMap::new();
        headers.insert("upgrade", "websocket".parse().unwrap());
        headers.insert(
            "sec-websocket-protocol",
            "v5.channel.k8s.io, v4.channel.k8s.io".parse().unwrap(),
        );
        let of = |known: &[&'static str]| wanted(&headers, known, &[]).ok();
        assert_eq!(
            of(&["v4.channel.k8s.io"]),
            Some(Wanted::WebSocket { protocol: "v4.channel.k8s.io" })
        );
        assert_eq!(
            of(&["v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some(Wanted::WebSocket { protocol: "v5.channel.k8s.io" })
        );
        assert_eq!(of(&["v1"]), None);
    }
}
