//! A real etcd v3 cluster as the store.
//!
//! Keys and values are what the cluster holds, nothing is added: a kube-apiserver can share it.
//! Every watch has a stream of its own. A connection that breaks ends watches with
//! [`Error::Unavailable`]; the watch cache above resumes from where it was. A write that broke
//! midway is [`Error::Unknown`]: it is never repeated here.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity,
    PutOptions, TlsOptions, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchResponseStream,
    WatchStream,
};
use tokio::sync::Notify;

use crate::{
    Compare, Error, Event, EventKind, KeyValue, LeaseId, Op, Progress, Range, RangeResult,
    Revision, Stats, Store, Txn, TxnResult, Watch, WatchBatch, WatchRequest,
};

/// Keys fetched in one message when a range has no limit; its pages are of one revision.
const PAGE_KEYS: usize = 10_000;
/// A page of keys of the largest size still fits.
const MESSAGE_BYTES: usize = 1 << 30;

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// `https://host:port` or `http://host:port`, one for each member.
    pub endpoints: Vec<String>,
    pub tls: Option<Tls>,
    pub connect_timeout: Duration,
    /// How long a unary request may take.
    pub request_timeout: Duration,
    /// Bytes of key and value that the members accept (their `--max-request-bytes`).
    pub request_bytes: usize,
}

impl Options {
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            request_bytes: 3 << 19,
        }
    }
}

/// PEM texts.
#[derive(Clone)]
pub struct Tls {
    /// The authorities that the members' certificates are checked against.
    pub ca: Vec<u8>,
    /// The client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name expected in the members' certificates, when it is not the endpoint's host.
    pub server_name: Option<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

pub struct Etcd {
    client: Client,
    options: Options,
    env: stdx::Env,
    /// The newest compaction heard of; etcd has no call that asks for it.
    compacted: AtomicI64,
}

impl Etcd {
    /// Prepares the connection and asks the cluster once, so that a wrong address, certificate or
    /// password is told at start.
    pub async fn connect(env: &stdx::Env, options: Options) -> Result<Arc<Self>, Error> {
        // Keep-alives find a member that vanished without a word; watches have no other traffic.
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(options.connect_timeout)
            .with_keep_alive(Duration::from_secs(30), Duration::from_secs(10))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &options.tls {
            connect = connect.with_tls(tls_options(tls));
        }
        let client =
            Client::connect(&options.endpoints, Some(connect)).await.map_err(unavailable)?;
        let store =
            Arc::new(Self { client, options, env: env.clone(), compacted: AtomicI64::new(0) });
        store.current_revision().await?;
        Ok(store)
    }

    /// Runs a unary request under the time limit. `None` when that passed.
    async fn limited<T>(
        &self,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Option<Result<T, etcd_client::Error>> {
        self.env.timeout(self.options.request_timeout, request).await
    }

    /// A read: whatever breaks, nothing has changed.
    async fn read<T>(
        &self,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failed> {
        match self.limited(request).await {
            Some(result) => result.map_err(Failed::Answered),
            None => Err(Failed::TimedOut),
        }
    }

    /// One page; the revision it was served at, and how many keys the whole range has.
    async fn page(&self, range: &Range, limit: usize) -> Result<RangeResult, Error> {
        let mut options = GetOptions::new().with_revision(range.revision).with_limit(limit as i64);
        if let Some(end) = &range.end {
            options = options.with_range(&end[..]);
        }
        if range.keys_only {
            options = options.with_keys_only();
        }
        let mut client = self.client.kv_client().max_decoding_message_size(MESSAGE_BYTES);
        let response = self.read(client.get(&range.start[..], Some(options))).await;
        let mut response = match response {
            Ok(response) => response,
            Err(failed) => return Err(self.read_error(failed, range.revision).await),
        };
        let revision = response.header().map_or(0, |header| header.revision());
        let count = response.count() as usize;
        let items = response.take_kvs().into_iter().map(item).collect();
        Ok(RangeResult { items, revision, count })
    }

    async fn read_error(&self, failed: Failed, requested: Revision) -> Error {
        match failed.status() {
            Some(COMPACTED) => self.compacted_error().await,
            Some(FUTURE) => match self.current_revision().await {
                Ok(current) => Error::Future { requested, current },
                Err(error) => error,
            },
            _ => failed.unavailable(),
        }
    }

    /// The error for a compacted revision. Its message does not say which one is the oldest left,
    /// a watch from the beginning does.
    async fn compacted_error(&self) -> Error {
        let request = WatchRequest { start: Bytes::from_static(b"\0"), end: None, from: 1 };
        let told = self.env.timeout(self.options.request_timeout, async {
            let mut watch = self.watch(request).await?;
            futures::StreamExt::next(&mut watch.events).await.transpose()
        });
        match told.await {
            Some(Err(error @ Error::Compacted { .. })) => error,
            _ => Error::Compacted { compacted: self.compacted.load(Ordering::Relaxed) },
        }
    }
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
const TOO_LARGE: &str = "etcdserver: request is too large";
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const TOO_MANY: &str = "etcdserver: too many requests";
const MESSAGE_TOO_LARGE: &str = "message larger than max";

#[async_trait]
impl Store for Etcd {
    async fn range(&self, request: Range) -> Result<RangeResult, Error> {
        if request.limit != 0 {
            return self.page(&request, request.limit).await;
        }
        let mut result = self.page(&request, PAGE_KEYS).await?;
        let mut request = request;
        if request.revision == 0 {
            request.revision = result.revision;
        }
        while result.items.len() < result.count {
            let Some(last) = result.items.last() else { break };
            request.start = [&last.key[..], b"\0"].concat().into();
            let page = self.page(&request, PAGE_KEYS).await?;
            if page.items.is_empty() {
                break;
            }
            result.items.extend(page.items);
        }
        Ok(result)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        let (lease, size) = match &txn.then {
            Op::Put { key, value, lease } => (*lease, key.len() + value.len()),
            Op::Delete { key } => (None, key.len()),
        };
        let request = txn_request(txn);
        let answer = self.limited(self.client.kv_client().txn(request)).await;
        let response = answer
            .unwrap_or_else(|| {
                Err(etcd_client::Error::Internal("the request timed out".to_owned()))
            })
            .map_err(|error| self.write_error(error, lease, size))?;
        let revision = response.header().map_or(0, |header| header.revision());
        let operation = response.op_responses().into_iter().next();
        if !response.succeeded() {
            let current = match operation {
                Some(TxnOpResponse::Get(mut got)) => got.take_kvs().into_iter().map(item).next(),
                _ => None,
            };
            return Ok(TxnResult::Conflict { revision, current });
        }
        let previous = match operation {
            Some(TxnOpResponse::Put(mut put)) => put.take_prev_key().map(item),
            Some(TxnOpResponse::Delete(mut deleted)) => {
                deleted.take_prev_kvs().into_iter().map(item).next()
            }
            _ => None,
        };
        Ok(TxnResult::Written { revision, previous })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        let mut options = WatchOptions::new().with_prev_key();
        if let Some(end) = &request.end {
            options = options.with_range(&end[..]);
        }
        if request.from > 0 {
            options = options.with_start_revision(request.from);
        }
        let mut client = self.client.watch_client().max_decoding_message_size(MESSAGE_BYTES);
        let set_up = async {
            let mut stream = client.watch(&request.start[..], Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        };
        let (stream, created) = self.read(set_up).await.map_err(Failed::unavailable)?;
        let created =
            created.ok_or_else(|| Error::Unavailable("the watch ended at once".into()))?;
        let revision = created.header().map_or(0, |header| header.revision());
        Ok(running_watch(stream, revision, created))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        // A linearizable read of a key that cannot exist.
        let options = GetOptions::new().with_count_only();
        let mut client = self.client.kv_client();
        let response = self.read(client.get(&b"\0"[..], Some(options))).await;
        let response = response.map_err(Failed::unavailable)?;
        Ok(response.header().map_or(0, |header| header.revision()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut client = self.client.kv_client();
        match self.read(client.compact(revision, None)).await {
            Ok(_) => {
                self.compacted.fetch_max(revision, Ordering::Relaxed);
                Ok(())
            }
            Err(failed) => Err(self.read_error(failed, revision).await),
        }
    }

    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        let mut client = self.client.lease_client();
        let granted = self.read(client.grant(ttl_seconds, None)).await;
        Ok(LeaseId(granted.map_err(Failed::unavailable)?.id()))
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let mut maintenance = self.client.maintenance_client();
        let status = self.read(maintenance.status()).await.map_err(Failed::unavailable)?;
        let options = GetOptions::new().with_from_key().with_count_only();
        let mut client = self.client.kv_client();
        let counted = self.read(client.get(&b"\0"[..], Some(options))).await;
        Ok(Stats {
            bytes_on_disk: status.db_size().unsigned_abs(),
            bytes_in_use: status.raft_used_db_size().unsigned_abs(),
            keys: counted.map_err(Failed::unavailable)?.count().unsigned_abs(),
            compacted: self.compacted.load(Ordering::Relaxed),
        })
    }
}

impl Etcd {
    fn write_error(&self, error: etcd_client::Error, lease: Option<LeaseId>, size: usize) -> Error {
        let text = match &error {
            etcd_client::Error::GRpcStatus(status) => status.message(),
            _ => "",
        };
        match (text, lease) {
            (LEASE_NOT_FOUND, Some(id)) => Error::LeaseNotFound(id),
            (TOO_LARGE, _) => Error::TooLarge { size, limit: self.options.request_bytes },
            (text, _) if text.contains(MESSAGE_TOO_LARGE) => {
                Error::TooLarge { size, limit: self.options.request_bytes }
            }
            (NO_SPACE, _) => Error::NoSpace { path: self.options.endpoints.join(",") },
            (TOO_MANY, _) => Error::Unavailable(Box::new(error)),
            _ => Error::Unknown(Box::new(error)),
        }
    }
}

/// Why a read has no result.
enum Failed {
    Answered(etcd_client::Error),
    TimedOut,
}

impl Failed {
    fn status(&self) -> Option<&str> {
        match self {
            Self::Answered(etcd_client::Error::GRpcStatus(status)) => Some(status.message()),
            _ => None,
        }
    }

    fn unavailable(self) -> Error {
        match self {
            Self::Answered(error) => unavailable(error),
            Self::TimedOut => Error::Unavailable("the request timed out".into()),
        }
    }
}

fn unavailable(error: etcd_client::Error) -> Error {
    Error::Unavailable(Box::new(error))
}

fn tls_options(tls: &Tls) -> TlsOptions {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    match &tls.server_name {
        Some(name) => options.domain_name(name),
        None => options,
    }
}

fn txn_request(txn: Txn) -> etcd_client::Txn {
    let compares: Vec<_> = txn
        .compares
        .into_iter()
        .map(|Compare::ModRevision { key, revision }| {
            etcd_client::Compare::mod_revision(&key[..], CompareOp::Equal, revision)
        })
        .collect();
    let otherwise = TxnOp::get(&txn.then.key()[..], None);
    let then = match txn.then {
        Op::Put { key, value, lease } => {
            let mut options = PutOptions::new().with_prev_key();
            if let Some(LeaseId(id)) = lease {
                options = options.with_lease(id);
            }
            TxnOp::put(&key[..], &value[..], Some(options))
        }
        Op::Delete { key } => TxnOp::delete(&key[..], Some(DeleteOptions::new().with_prev_key())),
    };
    etcd_client::Txn::new().when(compares).and_then([then]).or_else([otherwise])
}

fn item(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (version, lease) = (kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision,
        mod_revision,
        version,
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}

/// A stream of batches out of a stream of responses; progress is asked for between them.
fn running_watch(stream: WatchStream, revision: Revision, created: WatchResponse) -> Watch {
    let asked = Arc::new(Notify::new());
    let progress = {
        let asked = asked.clone();
        Progress::new(move || asked.notify_one())
    };
    let (sender, responses) = stream.split();
    let reader = Reader { sender, responses, asked, first: Some(created), ended: false };
    let events = futures::stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await?;
        Some((item, reader))
    });
    Watch { revision, events: Box::pin(events), progress }
}

struct Reader {
    sender: etcd_client::WatchRequestSender,
    responses: WatchResponseStream,
    asked: Arc<Notify>,
    /// The answer to the creation, which may already carry the end.
    first: Option<WatchResponse>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        if self.ended {
            return None;
        }
        let item = self.batch().await;
        self.ended = item.is_err();
        Some(item)
    }

    async fn batch(&mut self) -> Result<WatchBatch, Error> {
        loop {
            let response = match self.first.take() {
                Some(first) => Some(first),
                None => tokio::select! {
                    biased;
                    () = self.asked.notified() => {
                        self.sender.request_progress().await.map_err(unavailable)?;
                        continue;
                    }
                    response = self.responses.message() => response.map_err(unavailable)?,
                },
            };
            let response =
                response.ok_or_else(|| Error::Unavailable("the watch's stream ended".into()))?;
            if response.compact_revision() > 0 {
                return Err(Error::Compacted { compacted: response.compact_revision() });
            }
            if response.canceled() {
                return Err(Error::Unavailable(response.cancel_reason().to_owned().into()));
            }
            if !response.created() {
                return Ok(batch(response));
            }
        }
    }
}

fn batch(response: WatchResponse) -> WatchBatch {
    let events: Vec<Event> = response.events().iter().filter_map(event).collect();
    let header = response.header().map_or(0, |header| header.revision());
    let revision = events.last().map_or(header, |last| last.revision);
    WatchBatch { revision, events }
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let kv = event.kv()?;
    let (key, revision) = (Bytes::copy_from_slice(kv.key()), kv.mod_revision());
    let previous = event.prev_kv().cloned().map(item);
    let (kind, current) = match event.event_type() {
        etcd_client::EventType::Put => (EventKind::Put, Some(item(kv.clone()))),
        etcd_client::EventType::Delete => (EventKind::Delete, None),
    };
    Some(Event { kind, key, revision, current, previous })
}
