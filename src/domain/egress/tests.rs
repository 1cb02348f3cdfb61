//! Table tests of the classes of addresses, and of the entries that lift them.

use std::slice;

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn each_address_has_a_class() {
    use AddressClass::{LinkLocal, Loopback, Metadata, Multicast, Private, Public, Reserved, Unspecified};
    for (text, class) in [
        ("8.8.8.8", Public),
        ("100.128.0.1", Public),
        ("172.32.0.1", Public),
        ("168.63.129.17", Public),
        ("2a00:1450:4001:830::200e", Public),
        ("2002:808:808::1", Public),
        ("64:ff9b::808:808", Public),
        ("::ffff:8.8.8.8", Public),
        ("10.1.2.3", Private),
        ("172.31.255.255", Private),
        ("192.168.0.1", Private),
        ("100.64.0.1", Private),
        ("fc00::1", Private),
        ("fd12:3456::1", Private),
        ("::ffff:10.0.0.1", Private),
        ("64:ff9b::a00:1", Private),
        ("2002:a00:1::", Private),
        ("127.0.0.1", Loopback),
        ("127.255.255.254", Loopback),
        ("::1", Loopback),
        ("::ffff:127.0.0.1", Loopback),
        ("2002:7f00:1::", Loopback),
        ("169.254.169.254", LinkLocal),
        ("64:ff9b::a9fe:a9fe", LinkLocal),
        ("fe80::1", LinkLocal),
        ("febf::1", LinkLocal),
        ("168.63.129.16", Metadata),
        ("::ffff:168.63.129.16", Metadata),
        ("64:ff9b::a83f:8110", Metadata),
        ("100.100.100.200", Metadata),
        ("192.0.0.192", Metadata),
        ("fd00:ec2::254", Metadata),
        ("fd20:ce::254", Metadata),
        ("fd00:c1::a9fe:a9fe", Metadata),
        ("0.0.0.0", Unspecified),
        ("0.1.2.3", Unspecified),
        ("::", Unspecified),
        ("224.0.0.1", Multicast),
        ("239.255.255.250", Multicast),
        ("ff02::1", Multicast),
        ("255.255.255.255", Reserved),
        ("192.0.2.1", Reserved),
        ("198.18.0.1", Reserved),
        ("2001:db8::1", Reserved),
        ("2001::1", Reserved),
        ("3fff::1", Reserved),
        ("::7f00:1", Reserved),
        ("fec0::1", Reserved),
        ("4000::1", Reserved),
    ] {
        assert_eq!(AddressClass::classify(address(text)), class, "{text}");
    }
}

/// Requests that are allowed: none, those by https, or all.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    No,
    Https,
    Any,
}

fn way(rules: &[AddressRule], host: &str, address: IpAddr) -> Way {
    let egress: Egress = rules.iter().cloned().collect();
    let [tls, plain] = [true, false].map(|is_encrypted| {
        let checked = egress.check(host, address, is_encrypted);
        // What may be reached at an address is not refused before the host is resolved.
        assert!(checked.is_err() || egress.check_host(host, is_encrypted).is_ok(), "{host} {address}");
        checked.is_ok()
    });
    match (tls, plain) {
        (true, true) => Way::Any,
        (true, false) => Way::Https,
        (false, _) => Way::No,
    }
}

#[test]
fn each_class_is_lifted_by_the_entries_of_the_design() {
    use Way::{Any, Https, No};
    let host = || AddressRule::for_hosts(vec!["api.example".to_owned()]);
    // Of each class: no entry, host, network, host and network, host and another network.
    for (text, ways) in [
        ("8.8.8.8", [Https, Any, Any, Any, Https]),
        ("2a00::1", [Https, Any, Any, Any, Https]),
        ("10.1.2.3", [No, Any, Any, Any, No]),
        ("100.64.0.1", [No, Any, Any, Any, No]),
        ("fd12::1", [No, Any, Any, Any, No]),
        ("127.0.0.1", [No, No, Any, Any, No]),
        ("::1", [No, No, Any, Any, No]),
        ("169.254.169.254", [No, No, Any, Any, No]),
        ("fe80::1", [No, No, Any, Any, No]),
        ("168.63.129.16", [No, No, Any, Any, No]),
        ("100.100.100.200", [No, No, Any, Any, No]),
        ("192.0.0.192", [No, No, Any, Any, No]),
        ("fd00:ec2::254", [No, No, Any, Any, No]),
        ("0.0.0.0", [No, No, Any, Any, No]),
        ("::", [No, No, Any, Any, No]),
        ("224.0.0.1", [No, No, Any, Any, No]),
        ("ff02::1", [No, No, Any, Any, No]),
        ("240.0.0.1", [No, No, Any, Any, No]),
        ("2001:db8::1", [No, No, Any, Any, No]),
    ] {
        let address = address(text);
        let network = vec![IpNet::from(address)];
        let other = networks(&["198.51.100.0/24", "2001:db9::/32"]);
        let both = |networks| AddressRule { networks: Some(networks), ..host() };
        let kinds = [
            vec![],
            vec![host()],
            vec![AddressRule::for_networks(network.clone())],
            vec![both(network)],
            vec![both(other)],
        ];
        let found = kinds.map(|rules| way(&rules, "api.example", address));
        assert_eq!(found, ways, "{text}");
        assert_eq!(way(&[host()], "another.example", address), ways[0], "{text}: another host");
    }
}

#[test]
fn an_ipv4_network_also_contains_mapped_addresses() {
    let rule = AddressRule::for_networks(networks(&["10.0.0.0/8"]));
    assert_eq!(way(slice::from_ref(&rule), "h", address("::ffff:10.1.2.3")), Way::Any);
    assert_eq!(way(&[rule], "h", address("192.168.0.1")), Way::No);
}

#[test]
fn hosts_are_named_whole_or_by_their_domain() {
    for (host, is_named) in [
        ("api.example", true),
        ("API.example.", true),
        ("x.api.example", false),
        ("users.default.svc.cluster.local", true),
        ("svc.cluster.local", false),
        ("evilsvc.cluster.local", false),
    ] {
        let hosts = ["api.example", "*.svc.cluster.local"].map(str::to_owned).to_vec();
        assert_eq!(AddressRule::for_hosts(hosts).names_host(host), is_named, "{host}");
    }
}

#[test]
fn a_refusal_names_the_class_and_the_list() {
    let none = AddressRule { hosts: Some(Vec::new()), networks: Some(Vec::new()) };
    let egress: Egress = [none, AddressRule::for_networks(Vec::new())].into_iter().collect();
    for (host, is_encrypted, message) in [
        ("10.0.0.1", true, "is at a private address, which the operator does not allow: name its host in"),
        ("[::1]", true, "is at a loopback address, which the operator does not allow: only a network allows it"),
        ("169.254.169.254", true, "is at a link-local address, which the operator does not allow: only a network"),
        ("168.63.129.16", false, "is at a metadata address, which the operator does not allow: only a network"),
        ("8.8.8.8", false, "must be https, or its host be named"),
        ("api.example", false, "must be https, or its host be named"),
    ] {
        let denied = egress.check_host(host, is_encrypted).unwrap_err().to_string();
        assert!(denied.starts_with(message), "{host}: {denied}");
    }
}

#[test]
fn a_literal_address_is_seen_as_one() {
    assert_eq!(literal("127.0.0.1"), Some(address("127.0.0.1")));
    assert_eq!(literal("[::1]"), Some(address("::1")));
    assert_eq!(literal("api.example"), None);
}
