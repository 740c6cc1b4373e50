//! A pod's resolver configuration, host name and `/etc/hosts`.

use cri::v1::DnsConfig;

use crate::{
    config::KubeletConfig,
    pod::{Pod, PodExt},
};

/// What the sandbox's `/etc/resolv.conf` holds. Node settings come as text, so that this stays
/// pure.
pub fn resolver(pod: &Pod, config: &KubeletConfig, node_resolv_conf: &str) -> DnsConfig {
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let node = parse(node_resolv_conf);
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" if pod.host_network() => node,
        "ClusterFirst" | "ClusterFirstWithHostNet" if !config.cluster_dns.is_empty() => {
            let domain = &config.cluster_domain;
            let mut searches = vec![
                format!("{}.svc.{domain}", pod.namespace()),
                format!("svc.{domain}"),
                domain.clone(),
            ];
            for search in node.searches {
                if !searches.contains(&search) {
                    searches.push(search);
                }
            }
            DnsConfig {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => node,
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        for search in own.searches.iter().flatten() {
            if !dns.searches.contains(search) {
                dns.searches.push(search.clone());
            }
        }
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|known| known.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    dns
}

fn parse(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// The pod's host name, at most 63 characters.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec();
    let name = spec.hostname_override.as_deref().or(spec.hostname.as_deref());
    let name = name.filter(|name| !name.is_empty()).unwrap_or(pod.name());
    let cut = &name[..name.len().min(63)];
    let short = cut.trim_end_matches(['-', '.']);
    if spec.set_hostname_as_fqdn == Some(true) {
        if let Some(full) = fqdn_suffix(pod, "cluster.local") {
            return format!("{short}.{full}");
        }
    }
    short.to_owned()
}

fn fqdn_suffix(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{domain}", pod.namespace()))
}

/// The hosts file that the agent keeps for a pod with its own network.
pub fn hosts_file(pod: &Pod, config: &KubeletConfig, pod_ips: &[String]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let short = hostname(pod);
    let short = short.split('.').next().unwrap_or_default();
    for ip in pod_ips {
        match fqdn_suffix(pod, &config.cluster_domain) {
            Some(suffix) => text.push_str(&format!("{ip}\t{short}.{suffix}\t{short}\n")),
            None => text.push_str(&format!("{ip}\t{short}\n")),
        }
    }
    text + &host_aliases(pod)
}

/// What is added to the node's own hosts file for a pod on the node's network.
pub fn host_aliases(pod: &Pod) -> String {
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        let text = format!(r#"{{"metadata":{{"name":"web-0","namespace":"shop"}},"spec":{spec}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    const NODE: &str = "nameserver 192.0.2.1\nsearch corp.test\noptions edns0\n";

    #[test]
    fn the_policy_decides() {
        let mut config = KubeletConfig::new("n");
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        let of = |spec: &str| resolver(&pod(spec), &config, NODE);
        let first = of(r#"{"containers":[]}"#);
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(
            first.searches,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.test"]
        );
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(of(r#"{"containers":[],"dnsPolicy":"Default"}"#).servers, ["192.0.2.1"]);
        assert_eq!(of(r#"{"containers":[],"hostNetwork":true}"#).servers, ["192.0.2.1"]);
        let none = of(
            r#"{"containers":[],"dnsPolicy":"None","dnsConfig":{"nameservers":["192.0.2.9"],"options":[{"name":"ndots","value":"2"}]}}"#,
        );
        assert_eq!(
            (none.servers, none.options),
            (vec!["192.0.2.9".into()], vec!["ndots:2".into()])
        );
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let config = KubeletConfig::new("n");
        let spec = r#"{"containers":[],"subdomain":"db","hostAliases":[{"ip":"192.0.2.5","hostnames":["a","b"]}]}"#;
        let text = hosts_file(&pod(spec), &config, &["10.1.0.3".into()]);
        assert!(text.contains("10.1.0.3\tweb-0.db.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("192.0.2.5\ta\tb\n"), "{text}");
    }
}
