//! A Redis and a MongoDB with passwords and TLS, as pods of a namespace.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::support::{Namespace, apply, kubectl, run};

/// A private certificate authority, and its certificates.
pub struct Authority {
    folder: PathBuf,
}

fn openssl(args: &str) {
    run("openssl", &args.split_whitespace().collect::<Vec<_>>(), "");
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let this = Self { folder };
        openssl(&format!(
            "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 30 -keyout {k} -out {c} \
             -subj /CN={name} -addext basicConstraints=critical,CA:TRUE",
            k = this.path("ca.key"),
            c = this.path("ca.crt"),
        ));
        this
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.join(file).to_str().unwrap().to_owned()
    }

    /// A Secret with the certificate and key of a server, and one with the authority's certificate alone.
    pub fn secrets(&self, namespace: &Namespace, host: &str) {
        let (key, certificate, both) = (self.path("s.key"), self.path("s.crt"), self.path("both.pem"));
        openssl(&format!(
            "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 30 -keyout {key} -out {certificate} \
             -subj /CN={host} -addext subjectAltName=DNS:{host},DNS:localhost,IP:127.0.0.1 \
             -addext basicConstraints=CA:FALSE -CA {ca} -CAkey {ca_key}",
            ca = self.path("ca.crt"),
            ca_key = self.path("ca.key"),
        ));
        let text = fs::read_to_string(&key).unwrap() + &fs::read_to_string(&certificate).unwrap();
        fs::write(&both, text).unwrap();
        kubectl(&format!(
            "create secret generic {host}-tls --namespace {namespace} --from-file=tls.key={key} \
             --from-file=tls.crt={certificate} --from-file=both.pem={both}"
        ));
        let ca = self.path("ca.crt");
        kubectl(&format!("create secret generic {host}-ca --namespace {namespace} --from-file=ca.crt={ca}"));
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Starts a server with TLS, and its Service of the same name.
fn server(namespace: &Namespace, name: &str, image: &str, port: u16, command: &[&str]) {
    let labels = json!({"app": name});
    let mounts = json!([
        {"name": "tls", "mountPath": "/tls", "readOnly": true}, {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/tmp"},
    ]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "server", "image": image, "imagePullPolicy": "Never", "command": command, "volumeMounts": mounts,
                "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
            "volumes": [
                {"name": "tls", "secret": {"secretName": format!("{name}-tls"), "defaultMode": 0o440}},
                {"name": "data", "emptyDir": {}},
            ],
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [{"port": port}]},
    });
    for object in [&pod, &service] as [&Value; 2] {
        apply(&namespace.0, object);
    }
    kubectl(&format!("wait --for=condition=Ready pod/{name} --namespace {namespace} --timeout=120s"));
}

/// Starts a Redis that requires TLS and a password.
pub fn redis(namespace: &Namespace, authority: &Authority, password: &str) {
    authority.secrets(namespace, "redis");
    let command = [
        "redis-server",
        "--port",
        "0",
        "--tls-port",
        "6379",
        "--tls-cert-file",
        "/tls/tls.crt",
        "--tls-key-file",
        "/tls/tls.key",
        "--tls-ca-cert-file",
        "/tls/tls.crt",
        "--tls-auth-clients",
        "no",
        "--requirepass",
        password,
        "--maxmemory-policy",
        "noeviction",
        "--dir",
        "/data",
    ];
    server(namespace, "redis", "sync-operator-test/redis:7", 6379, &command);
}

/// Starts a MongoDB that requires TLS and a user.
pub fn mongodb(namespace: &Namespace, authority: &Authority) {
    authority.secrets(namespace, "mongodb");
    let command = [
        "mongod",
        "--bind_ip_all",
        "--dbpath",
        "/data",
        "--nounixsocket",
        "--tlsMode",
        "requireTLS",
        "--tlsCertificateKeyFile",
        "/tls/both.pem",
        "--auth",
        "--wiredTigerCacheSizeGB",
        "0.25",
    ];
    server(namespace, "mongodb", "sync-operator-test/mongodb:6", 27017, &command);
}
