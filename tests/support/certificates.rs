//! Certificates for the servers of a test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::unique;

const NEW: &str = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 1";

/// A certificate authority, in a folder that is removed when it is dropped.
pub struct Authority {
    folder: PathBuf,
}

/// A certificate of this machine, and its key, in PEM files.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("authority"));
        fs::create_dir(&folder).unwrap();
        openssl(&folder, &format!("{NEW} -keyout ca.key -out ca.crt -subj /CN=ca"));
        Self { folder }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub fn pem(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// A certificate for `localhost` and 127.0.0.1.
    pub fn certify(&self) -> Certificate {
        let server = "-subj /CN=server -addext subjectAltName=DNS:localhost,IP:127.0.0.1";
        let by = "-addext basicConstraints=CA:FALSE -CA ca.crt -CAkey ca.key";
        openssl(&self.folder, &format!("{NEW} -keyout tls.key -out tls.crt {server} {by}"));
        Certificate { certificate: self.folder.join("tls.crt"), key: self.folder.join("tls.key") }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

impl Certificate {
    /// One file with the certificate and the key.
    pub fn in_one_file(&self) -> PathBuf {
        let file = self.key.with_extension("pem");
        let text = fs::read_to_string(&self.key).unwrap() + &fs::read_to_string(&self.certificate).unwrap();
        fs::write(&file, text).unwrap();
        file
    }
}

fn openssl(folder: &Path, args: &str) {
    let made = Command::new("openssl").args(args.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
