//! The way from a component to the API server of the same process: the whole chain of the server,
//! without sockets.

use std::sync::Arc;

use apiserver::{Server, authn::Identity, body};
use async_trait::async_trait;
use bytes::Bytes;
use client::{BodyStream, Client, Error, Transport};
use futures::StreamExt;
use http_body_util::BodyStream as Frames;
use registry::UserInfo;

/// A connection under one user, as a client certificate would give it.
struct InProcess {
    server: Arc<Server>,
    user: Arc<UserInfo>,
}

/// A client of the server under `user`. A service account's name brings its groups.
pub fn client(server: &Arc<Server>, user: &str) -> Client {
    let transport = InProcess { server: server.clone(), user: Arc::new(user_info(user)) };
    Client::new(Arc::new(transport), component(user))
}

/// As [`client`], with one more group.
#[cfg(test)]
pub fn client_in_group(server: &Arc<Server>, user: &str, group: &str) -> Client {
    let mut info = user_info(user);
    info.groups.push(group.into());
    let transport = InProcess { server: server.clone(), user: Arc::new(info) };
    Client::new(Arc::new(transport), component(user))
}

fn user_info(user: &str) -> UserInfo {
    let mut groups = vec!["system:authenticated".to_owned()];
    if let Some((namespace, _)) =
        user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    {
        groups.push("system:serviceaccounts".into());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    UserInfo { name: user.into(), groups, ..UserInfo::default() }
}

/// The field manager: what follows the last colon.
fn component(user: &str) -> &str {
    user.rsplit(':').next().unwrap_or(user)
}

#[async_trait]
impl Transport for InProcess {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error> {
        let request = request.map(body::full);
        let identity = Identity::Verified(self.user.clone());
        let response = self.server.handle(request, identity).await;
        Ok(response.map(|body| -> BodyStream {
            Box::pin(Frames::new(body).filter_map(|frame| async move {
                match frame {
                    Ok(frame) => frame.into_data().ok().map(Ok),
                    Err(error) => Some(Err(error)),
                }
            }))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_has_its_groups() {
        let user = user_info("system:serviceaccount:kube-system:replicaset-controller");
        assert!(user.groups.contains(&"system:serviceaccounts:kube-system".to_owned()));
        assert!(!user.groups.contains(&"system:masters".to_owned()));
        assert_eq!(component("system:kube-scheduler"), "kube-scheduler");
    }
}
