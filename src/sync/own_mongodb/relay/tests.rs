//! The relay with connections to a listener on this machine.

use ipnet::IpNet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use super::*;
use crate::domain::{
    egress::AddressRule,
    policy::{Scope, TenantEntry},
};

const NOT_ALLOWED: u8 = 2;

/// A policy that lets the namespace `team-a` bring MongoDBs at these hosts, with addresses in these networks.
fn policy(hosts: &[&str], networks: &[&str]) -> Policy {
    let networks = networks.iter().map(|network| network.parse::<IpNet>().unwrap()).collect();
    let entry = TenantEntry {
        name: "team".to_owned(),
        scope: Scope { namespaces: Some(vec!["team-a".to_owned()]) },
        mongodb: None,
        runs: None,
        mongodb_hosts: Some(hosts.iter().map(|host| (*host).to_owned()).collect()),
    };
    let everywhere = vec![AddressRule::for_networks(networks)];
    Policy { tenants: Some(vec![entry]), everywhere, ..Policy::default() }
}

struct Setup {
    relay: Relay,
    policy: watch::Sender<Arc<Policy>>,
    server: TcpListener,
    port: u16,
}

async fn setup(hosts: &[&str], networks: &[&str]) -> Setup {
    let (policy, current) = CurrentPolicy::new(policy(hosts, networks));
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    Setup { relay: Relay::start(current).await.unwrap(), policy, server, port }
}

/// Connects to a host by the relay. Returns the answer of the relay too. `None`: it refused the password.
async fn connect(registration: &Registration, password: &str, host: &str, port: u16) -> Option<(TcpStream, u8)> {
    let mut stream = TcpStream::connect(registration.address).await.unwrap();
    let field = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let login = [&[5, 1, 2, 1][..], &field(&registration.user), &field(password)].concat();
    stream.write_all(&login).await.unwrap();
    let mut accepted = [0; 4];
    stream.read_exact(&mut accepted).await.unwrap();
    if accepted != [5, 2, 1, 0] {
        return None;
    }
    stream.write_all(&[&[5, 1, 0, 3][..], &field(host), &port.to_be_bytes()].concat()).await.unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await.unwrap();
    Some((stream, answer[1]))
}

async fn answer(registration: &Registration, host: &str, port: u16) -> (TcpStream, u8) {
    connect(registration, &registration.route.password, host, port).await.unwrap()
}

#[tokio::test]
async fn a_client_needs_its_password_an_allowed_host_and_an_allowed_address() {
    let setup = setup(&["localhost", "*.localhost"], &[]).await;
    let team = setup.relay.register("team-a", None).unwrap();
    let other = setup.relay.register("team-b", None).unwrap();
    assert!(connect(&team, &other.route.password, "localhost", setup.port).await.is_none());
    for (registration, host, message) in [
        (
            &team,
            "localhost",
            "host localhost is at a loopback address, which the operator does not allow: only a network",
        ),
        (
            &team,
            "db.example",
            "host db.example, which the server names, is not allowed for namespace team-a: add it to tenants team, mongodbHosts",
        ),
        (
            &team,
            "127.0.0.1",
            "host 127.0.0.1, which the server names, is not allowed for namespace team-a: use host names",
        ),
        (&team, "a\nb", "host (not a name), which the server names, is not allowed for namespace team-a: add it"),
        (
            &other,
            "localhost",
            "host localhost, which the server names, is not allowed for namespace team-b: add an entry with mongodbHosts",
        ),
    ] {
        assert_eq!(answer(registration, host, setup.port).await.1, NOT_ALLOWED, "{host}");
        let Some(ConnectionFailure::NotAllowed(found)) = registration.failure() else { panic!("{host}: no refusal") };
        assert!(found.starts_with(message), "{found}");
    }
    assert!(timeout(Duration::from_millis(1), setup.server.accept()).await.is_err(), "no connection was made");
}

#[tokio::test]
async fn an_open_connection_ends_when_the_policy_or_its_client_does() {
    let setup = setup(&["localhost"], &["127.0.0.0/8"]).await;
    let client = setup.relay.register("team-a", None).unwrap();
    let (mut by_host, first) = answer(&client, "localhost", setup.port).await;
    setup.policy.send_replace(Arc::new(policy(&["localhost", "db.example"], &["127.0.0.0/8"])));
    let (mut by_address, second) = answer(&client, "localhost", setup.port).await;
    assert_eq!((first, second), (0, 0));
    assert!(timeout(Duration::from_millis(50), by_host.read_u8()).await.is_err(), "it is still allowed");

    setup.policy.send_replace(Arc::new(policy(&["db.example"], &["127.0.0.0/8"])));
    assert!(by_host.read_u8().await.is_err());
    assert!(by_address.read_u8().await.is_err());
    assert!(matches!(client.failure(), Some(ConnectionFailure::NotAllowed(_))));

    setup.policy.send_replace(Arc::new(policy(&["localhost"], &["127.0.0.0/8"])));
    let (mut last, _) = answer(&client, "localhost", setup.port).await;
    let (user, password) = (client.user.clone(), client.route.password.clone());
    let again = Registration { user, route: Arc::clone(&client.route), address: client.address, shared: Weak::new() };
    drop(client);
    assert!(last.read_u8().await.is_err());
    assert!(connect(&again, &password, "localhost", setup.port).await.is_none(), "the login ends with the client");
}

#[tokio::test]
async fn a_namespace_gets_half_of_the_clients() {
    let setup = setup(&[], &[]).await;
    let register = |namespace: &str| setup.relay.register(namespace, None);
    let mut registrations: Vec<_> = (0..MAX_OF_NAMESPACE).map(|_| register("team-a").ok().unwrap()).collect();
    assert_eq!(register("team-a").err(), Some(TooMany::OfNamespace));
    registrations.extend((0..MAX_OF_NAMESPACE).map(|_| register("team-b").ok().unwrap()));
    assert_eq!(register("team-c").err(), Some(TooMany::OfProcess));
    registrations.pop();
    assert!(register("team-c").is_ok());
}

#[test]
fn a_bundle_without_a_certificate_is_no_authority() {
    assert!(tls(None).is_some());
    for pem in ["", "text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(tls(Some(pem.as_bytes())).is_none(), "{pem}");
    }
}
