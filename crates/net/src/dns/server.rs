//! The server's loops, and the way of one question.
//!
//! Names of the cluster are answered where the datagram is received; others become a task that
//! asks the resolvers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use stdx::{Env, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};

use super::{
    forward::{Forwarder, Outcome, PAYLOAD_BYTES},
    metrics::Metrics,
    world::World,
    zone::{Answer, Domain},
};

/// Everything that answering takes. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    pub env: Env,
    pub world: World,
    pub domain: Arc<Domain>,
    pub forwarder: Forwarder,
    pub metrics: Arc<Metrics>,
    /// How many questions may wait for resolvers at a time.
    pub waiting: Arc<Semaphore>,
}

/// Aliases of aliases end after this many.
const ALIAS_DEPTH: usize = 8;
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// RFC 1035: what every client can take in a datagram.
const PLAIN_PAYLOAD_BYTES: usize = 512;

/// How far answering came without waiting.
enum Step {
    Done(Message),
    /// Records so far, and the name to ask resolvers for.
    Ask(Vec<Record>, Name),
}

impl Server {
    /// Answers datagrams until dropped.
    pub async fn serve_datagrams(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                // An earlier answer was refused by its client's machine, or memory is short.
                self.env.sleep(Duration::from_millis(1)).await;
                continue;
            };
            let started = self.env.instant();
            let Some(request) = read(&buffer[..length]) else { continue };
            match self.step(&request) {
                Step::Done(reply) => {
                    let bytes = self.encode(&request, reply, payload_limit(&request), started);
                    let _ = socket.send_to(&bytes, peer).await;
                }
                Step::Ask(records, name) => {
                    self.answer_later(socket.clone(), peer, request, records, name, started);
                }
            }
        }
    }

    /// Answers connections until dropped.
    pub async fn serve_streams(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    self.env.spawn("dns connection", server.serve_stream(stream));
                }
                // Out of descriptors: wait for some to come back.
                Err(_) => self.env.sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn serve_stream(self, mut stream: TcpStream) {
        while let Some(Ok(bytes)) = self.env.timeout(IDLE_LIMIT, read_framed(&mut stream)).await {
            let started = self.env.instant();
            let Some(request) = read(&bytes) else { return };
            let reply = match self.step(&request) {
                Step::Done(reply) => reply,
                Step::Ask(records, name) => self.ask(&request, records, name).await,
            };
            let bytes = self.encode(&request, reply, usize::from(u16::MAX), started);
            let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }

    fn answer_later(
        &self,
        socket: Arc<UdpSocket>,
        peer: SocketAddr,
        request: Message,
        records: Vec<Record>,
        name: Name,
        started: Instant,
    ) {
        // Beyond the limit questions are dropped; clients ask again.
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else { return };
        let server = self.clone();
        self.env.spawn("dns question", async move {
            let reply = server.ask(&request, records, name).await;
            let bytes = server.encode(&request, reply, payload_limit(&request), started);
            let _ = socket.send_to(&bytes, peer).await;
            drop(permit);
        });
    }

    /// Goes as far as what is known here leads.
    fn step(&self, request: &Message) -> Step {
        let mut reply = reply_to(request);
        let Some(query) = request.queries.first().filter(|_| request.queries.len() == 1) else {
            return failed(reply, ResponseCode::FormErr);
        };
        if request.metadata.op_code != OpCode::Query {
            return failed(reply, ResponseCode::NotImp);
        }
        if query.query_class() != DNSClass::IN {
            return failed(reply, ResponseCode::Refused);
        }
        let kind = query.query_type();
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return failed(reply, ResponseCode::Refused);
        }
        let mut name = query.name().clone();
        for _ in 0..ALIAS_DEPTH {
            match self.world.read(|zone| zone.answer(&self.domain, &name, kind)) {
                Answer::Elsewhere => return self.remembered(reply, name, kind),
                Answer::Alias { alias, target } => {
                    reply.add_answer(*alias);
                    name = target;
                }
                Answer::Records { mut answers, additionals } => {
                    self.shuffle(&mut answers);
                    reply.add_answers(answers);
                    reply.add_additionals(additionals);
                    reply.metadata.authoritative = true;
                    return Step::Done(reply);
                }
                Answer::NoData => return self.denied(reply, ResponseCode::NoError),
                Answer::NoSuchName => return self.denied(reply, ResponseCode::NXDomain),
            }
        }
        failed(reply, ResponseCode::ServFail)
    }

    fn denied(&self, mut reply: Message, code: ResponseCode) -> Step {
        reply.metadata.authoritative = true;
        reply.metadata.response_code = code;
        reply.add_authority(self.world.read(|zone| zone.authority(&self.domain)));
        Step::Done(reply)
    }

    fn remembered(&self, reply: Message, name: Name, kind: RecordType) -> Step {
        match self.forwarder.remembered(&name, kind) {
            Some(outcome) => Step::Done(with_outcome(reply, outcome)),
            None => Step::Ask(reply.answers, name),
        }
    }

    async fn ask(&self, request: &Message, records: Vec<Record>, name: Name) -> Message {
        let kind = request.queries.first().map_or(RecordType::A, Query::query_type);
        let outcome = self.forwarder.ask(&name, kind).await;
        let mut reply = reply_to(request);
        reply.add_answers(records);
        with_outcome(reply, outcome)
    }

    /// Spreads clients that take the first address.
    fn shuffle(&self, records: &mut [Record]) {
        for last in (1..records.len()).rev() {
            let other = (self.env.random_u64() % (last as u64 + 1)) as usize;
            records.swap(last, other);
        }
    }

    /// The reply in at most `limit` bytes. One that is longer loses its additional records, then
    /// answers from the end, and says so.
    fn encode(
        &self,
        request: &Message,
        mut reply: Message,
        limit: usize,
        started: Instant,
    ) -> Vec<u8> {
        let kind = request.queries.first().map_or(RecordType::A, Query::query_type);
        let took = self.env.instant().duration_since(started);
        self.metrics.answered(kind, reply.metadata.response_code, took);
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_BYTES);
            reply.set_edns(edns);
        }
        loop {
            let bytes = match reply.to_vec() {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!(%error, "an answer could not be encoded");
                    reply = reply_to(request);
                    reply.metadata.response_code = ResponseCode::ServFail;
                    continue;
                }
            };
            if bytes.len() <= limit || (reply.answers.is_empty() && reply.metadata.truncation) {
                return bytes;
            }
            if !reply.additionals.is_empty() {
                reply.additionals.clear();
                continue;
            }
            reply.metadata.truncation = true;
            reply.answers.truncate(reply.answers.len() * limit / bytes.len().max(1));
            reply.authorities.clear();
        }
    }
}

async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// A question; answers and what cannot be read are dropped without a word, so that nobody can be
/// made to send packets at a third.
fn read(bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    (message.metadata.message_type == MessageType::Query).then_some(message)
}

fn reply_to(request: &Message) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.checking_disabled = request.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.add_queries(request.queries.iter().cloned());
    reply
}

fn failed(mut reply: Message, code: ResponseCode) -> Step {
    reply.metadata.response_code = code;
    Step::Done(reply)
}

fn with_outcome(mut reply: Message, outcome: Outcome) -> Message {
    reply.metadata.response_code = outcome.code;
    reply.add_answers(outcome.answers);
    reply.add_authorities(outcome.authorities);
    reply
}

/// How large a datagram the client takes.
fn payload_limit(request: &Message) -> usize {
    let offered = request.edns.as_ref().map_or(0, Edns::max_payload).min(PAYLOAD_BYTES);
    usize::from(offered).max(PLAIN_PAYLOAD_BYTES)
}
