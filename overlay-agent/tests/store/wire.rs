//! A wire to etcd that can be cut, as between a host and the rest of its network.

use std::sync::{Arc, Mutex};

use overlay_lease::store::etcd::{EtcdConfig, EtcdStore};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::etcd::TestEtcd;

/// Passes bytes on between a port of its own and etcd, while it is whole.
pub(crate) struct Wire {
    port: u16,
    whole: watch::Sender<bool>,
    config: EtcdConfig,
    _tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Wire {
    pub(crate) async fn to(etcd: &TestEtcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (whole, state) = watch::channel(true);
        let target = etcd.endpoint().trim_start_matches("http://").to_owned();
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        let connections = Arc::downgrade(&tasks);
        let accept = async move {
            while let Ok((near, _)) = listener.accept().await {
                let Some(tasks) = connections.upgrade() else {
                    return;
                };
                let carry = carry(near, target.clone(), state.clone());
                tasks.lock().expect("no task panics").spawn(carry);
            }
        };
        tasks.lock().expect("no task panics").spawn(accept);
        Self { port, whole, config: etcd.config(), _tasks: tasks }
    }

    /// The store as a host at the other end of the wire sees it.
    pub(crate) fn store(&self) -> EtcdStore {
        let mut config = self.config.clone();
        config.endpoints = vec![format!("http://127.0.0.1:{}", self.port)];
        EtcdStore::new(&config).unwrap()
    }

    /// Ends all connections and lets none through.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn carry(mut near: TcpStream, target: String, mut whole: watch::Receiver<bool>) {
    if !*whole.borrow() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    // However either ends, both connections end with this task.
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = whole.wait_for(|whole| !whole) => {}
    }
}
