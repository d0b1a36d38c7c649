//! An etcd of one member that lives as long as its test.

use std::{
    ffi::OsString,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions};
use overlay_lease::{
    store::etcd::{EtcdConfig, EtcdStore},
    wire::key::KeyPrefix,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long etcd may take to answer after it was started.
const START: Duration = Duration::from_secs(30);

/// Files for TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
    /// The server's certificate.
    pub(crate) cert: PathBuf,
    /// The server's key.
    pub(crate) key: PathBuf,
    /// Whether clients need a certificate too; then, one of theirs and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// A running etcd. Killed on drop, which a failing test does as well.
pub(crate) struct TestEtcd {
    child: Child,
    dir: TempDir,
    member: Member,
}

/// What a member of a cluster is started with.
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    /// All members and their peer URLs.
    cluster: String,
    tls: Option<Tls>,
}

impl Member {
    fn alone(tls: Option<Tls>) -> Self {
        let mut members = Self::together(1);
        Self { tls, ..members.remove(0) }
    }

    fn together(count: usize) -> Vec<Self> {
        let ports: Vec<_> = (0..count).map(|_| (free_port(), free_port())).collect();
        let cluster: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(index, (_, peer_port))| format!("test-{index}=http://127.0.0.1:{peer_port}"))
            .collect();
        let member = |(index, (client_port, peer_port))| Self {
            name: format!("test-{index}"),
            client_port,
            peer_port,
            cluster: cluster.join(","),
            tls: None,
        };
        ports.into_iter().enumerate().map(member).collect()
    }
}

impl TestEtcd {
    /// Starts an empty etcd and waits for it to answer.
    pub(crate) async fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), None).await
    }

    /// As [`TestEtcd::start`], over TLS.
    pub(crate) async fn start_with(dir: TempDir, tls: Option<Tls>) -> Self {
        let mut etcd = Self::spawn(dir, Member::alone(tls));
        etcd.wait_until_it_answers().await;
        etcd
    }

    /// Starts a cluster of `count` members.
    pub(crate) async fn start_cluster(count: usize) -> Vec<Self> {
        let start = |member| Self::spawn(tempfile::tempdir().unwrap(), member);
        let mut cluster: Vec<_> = Member::together(count).into_iter().map(start).collect();
        for etcd in &mut cluster {
            etcd.wait_until_it_answers().await;
        }
        cluster
    }

    fn spawn(dir: TempDir, member: Member) -> Self {
        let child = spawn(dir.path(), &member);
        Self { child, dir, member }
    }

    /// Kills etcd as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Loses all that it knows; for one that does not run.
    pub(crate) fn forget(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// Starts it again, on the same data and ports.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.member);
        self.wait_until_it_answers().await;
    }

    /// Where clients connect.
    pub(crate) fn endpoint(&self) -> String {
        client_url(&self.member)
    }

    /// A client that is not the one under test.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    /// The configuration of the store under test, with nothing but the endpoint.
    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.endpoint()],
            prefix: KeyPrefix::new("/coreos.com/network"),
            ca_file: None,
            identity: None,
            user: None,
        }
    }

    /// The store under test, with a connection of its own.
    pub(crate) fn store(&self) -> EtcdStore {
        EtcdStore::new(&self.config()).unwrap()
    }

    async fn wait_until_it_answers(&mut self) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("etcd has ended with {status}:\n{}", self.log());
            }
            let mut options = ConnectOptions::new().with_timeout(Duration::from_secs(1));
            if let Some(tls) = &self.member.tls {
                let ca = etcd_client::Certificate::from_pem(std::fs::read(&tls.ca).unwrap());
                let mut tls_options = etcd_client::TlsOptions::new().ca_certificate(ca);
                if let Some((cert, key)) = &tls.client {
                    let [cert, key] = [cert, key].map(|path| std::fs::read(path).unwrap());
                    let identity = etcd_client::Identity::from_pem(cert, key);
                    tls_options = tls_options.identity(identity);
                }
                options = options.with_tls(tls_options);
            }
            if let Ok(mut client) = Client::connect([self.endpoint()], Some(options)).await
                && client.status().await.is_ok()
            {
                return;
            }
            assert!(started.elapsed() < START, "etcd does not answer:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for TestEtcd {
    fn drop(&mut self) {
        // It may have been killed by the test already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn client_url(member: &Member) -> String {
    let scheme = if member.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{}", member.client_port)
}

fn spawn(dir: &Path, member: &Member) -> Child {
    let client = client_url(member);
    let peer = format!("http://127.0.0.1:{}", member.peer_port);
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["--name", &member.name, "--logger", "zap", "--log-level", "error"])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &member.cluster])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    if let Some(tls) = &member.tls {
        command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
        if tls.client.is_some() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
        }
    }
    command.spawn().unwrap_or_else(|error| panic!("cannot start etcd, is it installed? {error}"))
}

/// `cargo xtask test store` names one version after the other.
fn binary() -> OsString {
    std::env::var_os("OVERLAY_ETCD").unwrap_or_else(|| "etcd".into())
}

/// A port that nobody listens on. Somebody could before etcd does, but only by bad luck: the kernel
/// hands ports out in turn.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().port()
}

/// What an etcd says of itself, in Prometheus' text format.
pub(crate) async fn metrics(etcd: &TestEtcd) -> String {
    let address = etcd.endpoint().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let get = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
