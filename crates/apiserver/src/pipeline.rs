//! The whole chain of one request, in order. Every request goes through it, whichever way it
//! came in: over TLS or from a component in this process.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use api::{Reason, Status};
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::upgrade::OnUpgrade;
use registry::RequestContext;
use stdx::env::panic_text;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    Server, UserInfo,
    authn::{Identity, Outcome, anonymous},
    authz,
    body::{self, Body},
    handlers, impersonation, negotiate,
    query::Query,
    request_info::RequestInfo,
    respond,
};

/// A request that has passed the chain, as handlers see it.
pub struct Call {
    pub server: Arc<Server>,
    pub method: Method,
    pub info: RequestInfo,
    pub query: Query,
    /// The query as it came, for requests that are passed on.
    pub raw_query: String,
    pub headers: HeaderMap,
    /// Behind a lock only so that a call can be shared between threads; see [`Call::take_body`].
    pub body: Mutex<Body>,
    /// The connection behind the request, when its client wants to speak another protocol.
    pub upgrade: Option<OnUpgrade>,
    pub user: Arc<UserInfo>,
    pub context: RequestContext,
}

impl Call {
    /// The request's body; empty the second time.
    pub fn take_body(&mut self) -> Body {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(body, body::empty())
    }
}

/// Runs the chain.
pub async fn handle(
    server: &Arc<Server>,
    request: Request<Body>,
    identity: Identity,
) -> Response<Body> {
    let started = server.env.instant();
    // What the request is about, from its line alone: everything after depends on it.
    let raw_query = request.uri().query().unwrap_or_default().to_owned();
    let query = Query::parse(&raw_query);
    let info = Arc::new(RequestInfo::parse(request.method(), request.uri().path(), &query));
    // The id that ties the client's report to our log.
    let audit_id = audit_id(server, request.headers());
    let failed_form = negotiate::for_error(request.headers());
    let dry_run = query.text("dryRun") == "All";

    let run = Run { server: server.clone(), info: info.clone(), query, raw_query, identity };
    let counted = InFlight::start(server, &info);
    // Panics end one request, not the server.
    let guarded = AssertUnwindSafe(run.within_deadline(request)).catch_unwind();
    let result = guarded.await.unwrap_or_else(|panic| {
        server.env.count_panic();
        tracing::error!(
            audit_id,
            path = info.path,
            panic = panic_text(&*panic),
            "request panicked"
        );
        Err(Status::internal("the request panicked and was ended"))
    });
    drop(counted);
    let mut response = result.unwrap_or_else(|status| respond::failure(&status, &failed_form));

    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&audit_id) {
        headers.insert("audit-id", id);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    let took = server.env.instant().saturating_duration_since(started);
    let known = !info.is_resource || handlers::is_served(server, &info);
    server.metrics.observe(&info, known, dry_run, response.status().as_u16(), took);
    tracing::debug!(
        audit_id,
        verb = info.verb.as_str(),
        path = info.path,
        code = response.status().as_u16(),
        took_us = took.as_micros() as u64,
        "request"
    );
    response
}

fn audit_id(server: &Server, headers: &HeaderMap) -> String {
    let given = headers.get("audit-id").and_then(|id| id.to_str().ok());
    let valid = given.filter(|id| !id.is_empty() && id.len() <= 64);
    valid.map_or_else(|| server.env.uuid(), str::to_owned)
}

/// The part of the chain that can fail with a `Status`.
struct Run {
    server: Arc<Server>,
    info: Arc<RequestInfo>,
    query: Query,
    raw_query: String,
    identity: Identity,
}

impl Run {
    /// The deadline of requests that do not stream.
    async fn within_deadline(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if self.info.is_long_running() {
            return self.admit(request).await;
        }
        let (env, mutating) = (self.server.env.clone(), self.info.is_mutating());
        let limit = deadline(&self.query, self.server.config.request_timeout)?;
        let timer = env.clone();
        let work = async move {
            let answer = timer.timeout(limit, self.admit(request)).await;
            answer.unwrap_or_else(|| Err(timed_out()))
        };
        if !mutating {
            return work.await;
        }
        // A write goes on when its client hangs up: half done is worse than done unseen.
        let done = env.spawn("write", work).await;
        done.unwrap_or_else(|| Err(Status::internal("the request panicked and was ended")))
    }

    async fn admit(self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let Self { server, info, query, raw_query, identity } = self;
        // Who asks. Without credentials only health is told.
        let outcome = server.authenticator.authenticate(&identity, request.headers()).await;
        let user = match outcome {
            Outcome::User(user) => user,
            Outcome::Anonymous if server.config.anonymous_health && is_health(&info.path) => {
                Arc::new(anonymous())
            }
            Outcome::Anonymous | Outcome::Refused => return Err(Status::unauthorized()),
        };
        request.headers_mut().remove(header::AUTHORIZATION);
        // As whom: a user who may can ask in another's name.
        let user = impersonation::impersonate(&server, user, request.headers_mut())?;
        // How much at once. The break-glass administrator is never turned away.
        let _permit = permit(&server, &info, &user)?;
        // Whether the user may.
        let asked = authz::Query::of(&info, query.text("fieldSelector"));
        if let authz::Decision::NoOpinion(why) = server.authorizer.authorize(&user, &asked) {
            let form = negotiate::for_error(request.headers());
            let mut refused = respond::failure(&authz::forbidden(&user, &asked, &why), &form);
            refused
                .headers_mut()
                .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            return Ok(refused);
        }
        // From here on it is the handler's: negotiation, decoding, admission, the registry.
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (parts, body) = request.into_parts();
        let context = context(&server, &user, &query, &parts.headers);
        let call = Call {
            method: parts.method,
            info: Arc::unwrap_or_clone(info),
            query,
            raw_query,
            headers: parts.headers,
            body: Mutex::new(body),
            upgrade,
            user,
            context,
            server,
        };
        handlers::serve(call).await
    }
}

fn is_health(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|root| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn timed_out() -> Status {
    let text = "Timeout: request did not complete within the allotted timeout";
    Status::new(504, Reason::Timeout, text)
}

/// The client's `timeout`, at most the server's own.
fn deadline(query: &Query, longest: Duration) -> Result<Duration, Status> {
    let text = query.text("timeout");
    if text.is_empty() {
        return Ok(longest);
    }
    let asked = handlers::options::parse_duration(text).ok_or_else(|| {
        Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {text:?}"
        ))
    })?;
    Ok(if asked.is_zero() { longest } else { asked.min(longest) })
}

fn permit(
    server: &Server,
    info: &RequestInfo,
    user: &UserInfo,
) -> Result<Option<OwnedSemaphorePermit>, Status> {
    let exempt = user.groups.iter().any(|group| group == authz::MASTERS);
    if info.is_long_running() || exempt {
        return Ok(None);
    }
    let pool = if info.is_mutating() { &server.mutating } else { &server.read_only };
    match pool.clone().try_acquire_owned() {
        Ok(permit) => Ok(Some(permit)),
        Err(_) => Err(Status::too_many_requests("Too many requests, please try again later.", 1)),
    }
}

fn context(
    server: &Server,
    user: &Arc<UserInfo>,
    query: &Query,
    headers: &HeaderMap,
) -> RequestContext {
    let mut context = RequestContext::new(user.clone(), server.env.now());
    context.dry_run = query.text("dryRun") == "All";
    let agent =
        headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    context.user_agent = agent.to_owned();
    context.field_manager = match query.text("fieldManager") {
        "" => agent
            .split('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(128)
            .collect(),
        given => given.to_owned(),
    };
    context
}

/// Counts a request while it runs.
struct InFlight {
    server: Arc<Server>,
    kind: Kind,
}

enum Kind {
    LongRunning,
    Mutating,
    ReadOnly,
}

impl InFlight {
    fn start(server: &Arc<Server>, info: &RequestInfo) -> Self {
        let kind = match () {
            () if info.is_long_running() => Kind::LongRunning,
            () if info.is_mutating() => Kind::Mutating,
            () => Kind::ReadOnly,
        };
        let counted = Self { server: server.clone(), kind };
        counted.gauge().fetch_add(1, Ordering::Relaxed);
        counted
    }

    fn gauge(&self) -> &std::sync::atomic::AtomicI64 {
        let metrics = &self.server.metrics;
        match self.kind {
            Kind::LongRunning => &metrics.long_running,
            Kind::Mutating => &metrics.in_flight_mutating,
            Kind::ReadOnly => &metrics.in_flight_read_only,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge().fetch_sub(1, Ordering::Relaxed);
    }
}
