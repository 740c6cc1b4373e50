//! Every controller against any API server, real ones too: `controller_manager SERVER`, where the
//! server takes a token that is the name of its user, as `--token-auth-file` gives. For trying a
//! controller out; the product's own wiring is in the `gantry` crate.

use client::{
    Client,
    config::{Connection, Token},
};
use controllers::Config;
use stdx::{CancellationToken, Env};

#[tokio::main]
async fn main() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "https://127.0.0.1:6443".into());
    let cluster_cidr = arguments.next();
    let clients = move |user: &str| {
        let connection = Connection {
            server: server.clone(),
            insecure: true,
            token: Some(Token::Fixed(user.to_owned())),
            ..Connection::default()
        };
        Client::connect(&connection, "kube-controller-manager").expect("a connection")
    };
    let config = Config {
        cluster_cidrs: cluster_cidr.into_iter().collect(),
        root_ca: Some("test".into()),
        load_balancer_pool: vec!["10.99.0.1-10.99.0.9".into()],
        ..Config::default()
    };
    controllers::run(&Env::real(), clients, config, CancellationToken::new()).await;
}
