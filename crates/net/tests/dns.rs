//! The DNS server on loopback, fed by informers, with a resolver of our own behind it.

#[path = "lab/api.rs"]
#[allow(dead_code)]
mod api;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::{Api, SERVICES, SLICES, endpoint, service, slice};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use net::dns::{DnsConfig, Metrics, Upstreams};
use serde_json::json;
use stdx::{CancellationToken, Env};

/// A resolver that knows `known.example.`, `big.example.` and that nothing else exists.
struct Resolver {
    address: SocketAddr,
    questions: Arc<AtomicUsize>,
}

fn resolver() -> Resolver {
    // The server leaves its own address out of its resolvers, so this one has another.
    let socket = UdpSocket::bind("127.0.0.2:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let questions = Arc::new(AtomicUsize::new(0));
    let (datagrams, streams) = (questions.clone(), questions.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            datagrams.fetch_add(1, Ordering::SeqCst);
            let mut reply = resolve(&buffer[..length]);
            if reply.answers.len() > 10 {
                reply.answers.clear();
                reply.metadata.truncation = true;
            }
            socket.send_to(&reply.to_vec().unwrap(), peer).unwrap();
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            streams.fetch_add(1, Ordering::SeqCst);
            let bytes = read_framed(&mut stream);
            write_framed(&mut stream, &resolve(&bytes).to_vec().unwrap());
        }
    });
    Resolver { address, questions }
}

fn resolve(question: &[u8]) -> Message {
    let request = Message::from_vec(question).unwrap();
    let query = request.queries[0].clone();
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    let name = query.name().clone();
    reply.add_query(query);
    let mut add = |number: u8| {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, number)));
        reply.add_answer(Record::from_rdata(name.clone(), 60, data));
    };
    match name.to_ascii().as_str() {
        "known.example." => add(7),
        "big.example." => (0..100).for_each(add),
        _ => {
            let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 30);
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authority(Record::from_rdata(name, 60, RData::SOA(soa)));
        }
    }
    reply
}

fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn write_framed(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
}

struct Lab {
    api: Api,
    server: SocketAddr,
    resolver: Resolver,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
}

impl Lab {
    fn new() -> Self {
        let api = Api::default();
        api.put(
            SERVICES,
            service("web", json!({ "clusterIP": "10.96.0.5", "ports": [{ "port": 80 }] })),
        );
        api.put(SERVICES, service("set", json!({ "clusterIP": "None" })));
        api.put(
            SERVICES,
            service("away", json!({ "type": "ExternalName", "externalName": "known.example" })),
        );
        let many: Vec<_> =
            (1..=80).map(|n| endpoint(&format!("10.244.0.{n}"), "n", None)).collect();
        api.put(SLICES, slice("set", &many));
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let resolver = resolver();
        let config = DnsConfig {
            port,
            assign_addresses: false,
            upstreams: Upstreams::Fixed(vec![server, resolver.address]),
            ..DnsConfig::new(vec![server.ip()])
        };
        let (cancel, metrics) = (CancellationToken::new(), config.metrics.clone());
        let (client, until) = (api.client(), cancel.clone());
        std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(net::dns::run(Env::real(), client, config, until)).unwrap();
        });
        let lab = Self { api, server, resolver, metrics, cancel };
        lab.wait_for("web.default.svc.cluster.local.", |reply| !reply.answers.is_empty());
        lab
    }

    /// Asks until the answer is as wanted; the socket's timeout paces it.
    fn wait_for(&self, name: &str, wanted: impl Fn(&Message) -> bool) {
        for _ in 0..200 {
            if self.try_ask(name, RecordType::A, None).is_some_and(|reply| wanted(&reply)) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        panic!("{name} is not answered as wanted");
    }

    fn try_ask(&self, name: &str, kind: RecordType, payload: Option<u16>) -> Option<Message> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(self.server).unwrap();
        socket.send(&question(name, kind, payload)).ok()?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.try_ask(name, kind, None).expect("an answer in time")
    }

    fn ask_by_stream(&self, name: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.server).unwrap();
        // Two questions on one connection.
        write_framed(&mut stream, &question("dns-version.cluster.local.", RecordType::TXT, None));
        assert_eq!(Message::from_vec(&read_framed(&mut stream)).unwrap().answers.len(), 1);
        write_framed(&mut stream, &question(name, kind, None));
        Message::from_vec(&read_framed(&mut stream)).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn texts(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn names_of_the_cluster_follow_the_api() {
    let lab = Lab::new();
    let reply = lab.ask("web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(texts(&reply), ["10.96.0.5"]);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert_eq!((reply.metadata.id, reply.edns.is_some()), (4711, false));
    let reply = lab.ask("new.default.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities.len(), 1);
    lab.api.put(SERVICES, service("new", json!({ "clusterIP": "None" })));
    lab.wait_for("new.default.svc.cluster.local.", |reply| {
        reply.metadata.response_code == ResponseCode::NoError && reply.answers.is_empty()
    });
    lab.api.put(SLICES, slice("new", &[endpoint("10.244.1.9", "n", Some("new-0"))]));
    lab.wait_for("new-0.new.default.svc.cluster.local.", |reply| texts(reply) == ["10.244.1.9"]);
    lab.api.delete(SLICES, "default", "new-x");
    lab.wait_for("new.default.svc.cluster.local.", |reply| reply.answers.is_empty());
    lab.api.delete(SERVICES, "default", "new");
    lab.wait_for("new.default.svc.cluster.local.", |reply| {
        reply.metadata.response_code == ResponseCode::NXDomain
    });
}

#[test]
fn long_answers_are_cut_for_datagrams_and_whole_by_stream() {
    let lab = Lab::new();
    let name = "set.default.svc.cluster.local.";
    let cut = lab.ask(name, RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.len() < 80 && !cut.answers.is_empty());
    assert!(cut.to_vec().unwrap().len() <= 512);
    let wider = lab.try_ask(name, RecordType::A, Some(4096)).unwrap();
    assert!(wider.answers.len() > cut.answers.len() && wider.edns.is_some());
    let whole = lab.ask_by_stream(name, RecordType::A);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (80, false));
    let again = lab.ask_by_stream(name, RecordType::A);
    assert_ne!(texts(&again), texts(&whole), "another order for another client");
}

#[test]
fn other_names_are_asked_once_and_remembered() {
    let lab = Lab::new();
    let asked = || lab.resolver.questions.load(Ordering::SeqCst);
    assert_eq!(texts(&lab.ask("known.example.", RecordType::A)), ["192.0.2.7"]);
    assert_eq!(texts(&lab.ask("KNOWN.example.", RecordType::A)), ["192.0.2.7"]);
    assert_eq!(asked(), 1, "the second from the cache, whatever the spelling");
    for _ in 0..3 {
        let reply = lab.ask("absent.example.", RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(asked(), 2, "denials too");
    let big = lab.ask_by_stream("big.example.", RecordType::A);
    assert_eq!(big.answers.len(), 100, "by stream where the resolver's datagram was cut");
    assert_eq!(asked(), 4);
    let reply = lab.ask("away.default.svc.cluster.local.", RecordType::A);
    assert_eq!(texts(&reply), ["known.example.", "192.0.2.7"], "an alias and where it leads");
    assert!(lab.metrics.render().contains("gantry_dns_cache_hits_total 4"));
}

#[test]
fn what_is_no_question_gets_no_harmful_answer() {
    let lab = Lab::new();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket.connect(lab.server).unwrap();
    let mut answer = Message::from_vec(&question("x.example.", RecordType::A, None)).unwrap();
    answer.metadata.message_type = MessageType::Response;
    for bytes in [b"".to_vec(), vec![0xff; 40], vec![0; 11], answer.to_vec().unwrap()] {
        socket.send(&bytes).unwrap();
        assert!(socket.recv(&mut [0; 512]).is_err(), "silence");
    }
    let refused = lab.ask("cluster.local.", RecordType::AXFR);
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(lab.ask("web.default.svc.cluster.local.", RecordType::A).answers.len(), 1);
}
