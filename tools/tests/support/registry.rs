//! Debian's `docker-registry` on a port of its own, with a log of what it was asked.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A registry, until it is dropped.
pub(crate) struct Registry {
    child: Child,
    log: PathBuf,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
}

/// Whether a registry wants a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Anybody,
    /// `me`, `sesame`
    Password,
    /// Anybody, over TLS: with a certificate of [`Registry::start`]'s own authority, `ca.pem` in its directory.
    Tls,
}

pub(crate) const USER: &str = "me";
pub(crate) const PASSWORD: &str = "sesame";

/// Tells whether a program is installed; else skips the test.
pub(crate) fn has(program: &str, test: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        super::skip(test, &format!("{program} is not installed; apt-get install {}", package(program)));
    }
    found
}

fn package(program: &str) -> &str {
    if program == "htpasswd" { "apache2-utils" } else { program }
}

/// Makes an authority `ca.pem`, and a certificate of it for this machine, `cert.pem` and `key.pem`.
fn make_certificates(dir: &Path) {
    let openssl = |args: &str| {
        let done = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 30 -subj /CN=authority"));
    openssl(&format!("req {new_key} -keyout key.pem -out request.pem -subj /CN=registry"));
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    openssl("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out cert.pem");
}

impl Registry {
    /// Starts one whose content lies in `dir`.
    pub(crate) fn start(dir: &Path, access: Access) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let auth = match access {
            Access::Anybody => String::new(),
            Access::Tls => {
                make_certificates(dir);
                let path = |name: &str| dir.join(name).display().to_string();
                format!("  tls:\n    certificate: {}\n    key: {}\n", path("cert.pem"), path("key.pem"))
            }
            Access::Password => {
                let file = dir.join("htpasswd");
                let made = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().unwrap();
                assert!(made.status.success());
                std::fs::write(&file, made.stdout).unwrap();
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
            }
        };
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
             http:\n  addr: 127.0.0.1:0\n{auth}",
            dir.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let log = dir.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let address = loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if let Some(rest) = text.split("listening on ").nth(1) {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
                if end < rest.len() {
                    break rest[..end].to_owned();
                }
            }
            if began.elapsed() > Duration::from_secs(60) || child.try_wait().unwrap().is_some() {
                child.kill().ok();
                panic!("docker-registry does not start: {text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Registry { child, log, address }
    }

    /// `127.0.0.1:PORT/REST`
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// What was asked, as `GET /v2/...`, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let request = |line: &str| {
            let (_, rest) = line.split_once("] \"")?;
            let mut words = rest.split('"').next()?.split(' ');
            Some(format!("{} {}", words.next()?, words.next()?))
        };
        text.lines().filter_map(request).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
