//! Names outside the cluster: asked of the node's resolvers, kept for as long as they allow.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use stdx::{Env, HashMap, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
};

use super::metrics::Metrics;

/// Where the resolvers' addresses come from.
#[derive(Clone, Debug)]
pub enum Upstreams {
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of a file, read again when it changes.
    File(PathBuf),
}

/// Asks resolvers and remembers. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder(Arc<Inner>);

struct Inner {
    env: Env,
    metrics: Arc<Metrics>,
    upstreams: Upstreams,
    /// Our own addresses: asking them would be asking ourselves.
    own: Vec<IpAddr>,
    resolvers: Mutex<(Option<Instant>, Vec<SocketAddr>)>,
    cache: Mutex<Cache>,
    /// Questions under way: the same one again waits for its answer. So a resolver that sends
    /// our question back to us costs one timeout, not a storm.
    asking: Mutex<BTreeMap<Question, watch::Receiver<Option<Outcome>>>>,
}

type Question = (Name, RecordType);

/// What a resolver said. Lifetimes of records count from when it did.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const REREAD_AFTER: Duration = Duration::from_secs(5);
const CACHE_ENTRIES: usize = 4096;
const LONGEST_KEPT: Duration = Duration::from_secs(300);
const DENIAL_LONGEST_KEPT: Duration = Duration::from_secs(30);
/// What fits a datagram on any path without fragments (DNS flag day 2020).
pub const PAYLOAD_BYTES: u16 = 1232;

impl Forwarder {
    pub fn new(env: &Env, upstreams: Upstreams, own: Vec<IpAddr>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            env: env.clone(),
            metrics,
            upstreams,
            own,
            resolvers: Mutex::default(),
            cache: Mutex::default(),
            asking: Mutex::default(),
        }))
    }

    /// What is remembered of a question, with the lifetimes that are left.
    pub fn remembered(&self, name: &Name, kind: RecordType) -> Option<Outcome> {
        let question = (name.to_lowercase(), kind);
        let found = self.lock_cache().get(&question, self.0.env.instant());
        self.0.metrics.cache(found.is_some());
        found
    }

    /// The answer of the first resolver that gives one; `SERVFAIL` when none does.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Outcome {
        let question = (name.to_lowercase(), kind);
        let (sender, mut receiver) = watch::channel(None);
        let running = {
            let mut asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
            match asking.get(&question) {
                Some(running) => Some(running.clone()),
                None => {
                    asking.insert(question.clone(), receiver.clone());
                    None
                }
            }
        };
        match running {
            Some(running) => receiver = running,
            None => {
                // A task of its own: who waits may go away, the answer is still worth keeping.
                let (this, question) = (self.clone(), question.clone());
                self.0.env.spawn("dns upstream question", async move {
                    let outcome = this.ask_all(&question).await;
                    let mut asking = this.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
                    asking.remove(&question);
                    drop(asking);
                    let _ = sender.send(Some(outcome));
                });
            }
        }
        let answered = receiver.wait_for(Option::is_some).await;
        answered.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(Outcome::failure)
    }

    async fn ask_all(&self, question: &Question) -> Outcome {
        let resolvers = self.resolvers().await;
        if resolvers.is_empty() {
            return Outcome { code: ResponseCode::Refused, ..Outcome::failure() };
        }
        let mut last = Outcome::failure();
        for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
            match self.ask_one(*resolver, question).await {
                Ok(outcome) if outcome.is_definite() => {
                    let now = self.0.env.instant();
                    self.lock_cache().put(question.clone(), outcome.clone(), now);
                    return outcome;
                }
                Ok(outcome) => last = outcome,
                Err(error) => {
                    self.0.metrics.upstream_failed();
                    tracing::debug!(%resolver, %error, "a resolver did not answer");
                }
            }
        }
        last
    }

    async fn ask_one(&self, resolver: SocketAddr, question: &Question) -> io::Result<Outcome> {
        let id = self.0.env.random_u64() as u16;
        let request = request(id, question).map_err(io::Error::other)?;
        let by_datagram =
            self.limited(exchange_datagrams(resolver, &request, id, question)).await?;
        if !by_datagram.metadata.truncation {
            return Ok(Outcome::of(by_datagram));
        }
        let by_stream = self.limited(exchange_stream(resolver, &request, id, question)).await?;
        Ok(Outcome::of(by_stream))
    }

    async fn limited(
        &self,
        exchange: impl Future<Output = io::Result<Message>>,
    ) -> io::Result<Message> {
        let answered = self.0.env.timeout(ATTEMPT_TIMEOUT, exchange).await;
        answered.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn resolvers(&self) -> Vec<SocketAddr> {
        let path = match &self.0.upstreams {
            Upstreams::Fixed(list) => return self.without_own(list),
            Upstreams::File(path) => path.clone(),
        };
        let now = self.0.env.instant();
        let lock = || self.0.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(read_at), list) = &*lock()
            && now.duration_since(*read_at) < REREAD_AFTER
        {
            return list.clone();
        }
        let list = self.0.env.blocking(move || read_resolvers(&path)).await.unwrap_or_default();
        let list = self.without_own(&list);
        *lock() = (Some(now), list.clone());
        list
    }

    fn without_own(&self, list: &[SocketAddr]) -> Vec<SocketAddr> {
        list.iter().filter(|address| !self.0.own.contains(&address.ip())).copied().collect()
    }

    fn lock_cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome {
    pub fn failure() -> Self {
        Self { code: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new() }
    }

    fn of(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
        }
    }

    fn is_definite(&self) -> bool {
        matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// How long it may be kept: the shortest life of its records, or for a denial what its
    /// authority says (RFC 2308); one without an authority is not kept.
    fn lifetime(&self) -> Duration {
        if self.code == ResponseCode::NoError && !self.answers.is_empty() {
            let shortest = self.answers.iter().map(|record| record.ttl).min().unwrap_or(0);
            return Duration::from_secs(shortest.into()).min(LONGEST_KEPT);
        }
        let denial = self.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
        Duration::from_secs(denial.unwrap_or(0).into()).min(DENIAL_LONGEST_KEPT)
    }

    fn aged(&self, age: Duration) -> Self {
        let mut aged = self.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in aged.answers.iter_mut().chain(&mut aged.authorities) {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
        aged
    }
}

/// Answers by question; the oldest goes when there are too many.
#[derive(Default)]
struct Cache {
    entries: HashMap<Question, (Instant, Outcome)>,
    order: VecDeque<Question>,
}

impl Cache {
    fn get(&mut self, question: &Question, now: Instant) -> Option<Outcome> {
        let (since, outcome) = self.entries.get(question)?;
        let age = now.duration_since(*since);
        (age < outcome.lifetime()).then(|| outcome.aged(age))
    }

    fn put(&mut self, question: Question, outcome: Outcome, now: Instant) {
        if outcome.lifetime().is_zero() {
            return;
        }
        if self.entries.insert(question.clone(), (now, outcome)).is_none() {
            self.order.push_back(question);
        }
        while self.entries.len() > CACHE_ENTRIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

/// The `nameserver` lines of a resolver configuration, at most three as the C library reads.
pub fn read_resolvers(path: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.parse::<IpAddr>().ok()
    });
    addresses.take(3).map(|address| SocketAddr::new(address, 53)).collect()
}

fn request(id: u16, (name, kind): &Question) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), *kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    message.set_edns(edns);
    message.to_vec()
}

/// Each question leaves by a port of its own, chosen by the kernel; with the random id that is
/// what a forger would have to guess.
async fn exchange_datagrams(
    resolver: SocketAddr,
    request: &[u8],
    id: u16,
    question: &Question,
) -> io::Result<Message> {
    let any = if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; usize::from(PAYLOAD_BYTES)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = matching(&buffer[..length], id, question) {
            return Ok(message);
        }
    }
}

async fn exchange_stream(
    resolver: SocketAddr,
    request: &[u8],
    id: u16,
    question: &Question,
) -> io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), request].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    matching(&buffer, id, question).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The message if it answers our question; anything else is ignored.
fn matching(bytes: &[u8], id: u16, (name, kind): &Question) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let asked = message.queries.first()?;
    let ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && asked.query_type() == *kind
        && asked.name() == name;
    ours.then_some(message)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn name() -> Name {
        Name::from_ascii("example.com.").unwrap()
    }

    fn answer(ttl: u32) -> Outcome {
        let record = Record::from_rdata(name(), ttl, RData::A(A::new(192, 0, 2, 1)));
        Outcome { code: ResponseCode::NoError, answers: vec![record], authorities: vec![] }
    }

    fn denial(ttl: u32, minimum: u32) -> Outcome {
        let soa = SOA::new(name(), name(), 1, 1, 1, 1, minimum);
        let record = Record::from_rdata(name(), ttl, RData::SOA(soa));
        Outcome { code: ResponseCode::NXDomain, answers: vec![], authorities: vec![record] }
    }

    #[tokio::test]
    async fn answers_age_and_end() {
        let mut cache = Cache::default();
        let start = Env::real().instant();
        let question = (name(), RecordType::A);
        cache.put(question.clone(), answer(60), start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.get(&question, later(20)).unwrap().answers[0].ttl, 40);
        assert_eq!(cache.get(&question, later(60)), None);
        cache.put(question.clone(), denial(3600, 10), start);
        assert!(cache.get(&question, later(9)).is_some());
        assert!(cache.get(&question, later(10)).is_none());
        cache.put(question.clone(), answer(0), start);
        assert_eq!(Outcome::failure().lifetime(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let mut cache = Cache::default();
        let now = Env::real().instant();
        for number in 0..CACHE_ENTRIES + 10 {
            let name = Name::from_ascii(format!("n{number}.example.com.")).unwrap();
            cache.put((name, RecordType::A), answer(60), now);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (CACHE_ENTRIES, CACHE_ENTRIES));
        let first = Name::from_ascii("n0.example.com.").unwrap();
        assert_eq!(cache.get(&(first, RecordType::A), now), None);
    }

    #[test]
    fn resolver_files_are_read_as_the_c_library_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let text = "# c\nsearch x\nnameserver 192.0.2.1\nnameserver bad\n nameserver fd00::1\n";
        std::fs::write(&path, text).unwrap();
        let wanted: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()];
        assert_eq!(read_resolvers(&path), wanted);
        assert_eq!(read_resolvers(&directory.path().join("absent")), []);
    }
}
