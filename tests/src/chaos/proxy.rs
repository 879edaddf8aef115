//! The network between an agent and the servers: a TCP proxy that passes bytes on, late, in halves, or not at all.

use super::random::Random;
use anyhow::Result;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Where the servers listen at the moment; 0 where one is down.
pub type Ports = Arc<Vec<AtomicU16>>;

/// What becomes of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// They are passed on.
    Clear,
    /// They are passed on later.
    Late(Duration),
    /// They vanish, and the connection stays open.
    BlackHole,
    /// Of the next ones to the server (or, if false, from it) half are passed on; then the connection is closed.
    Half(bool),
    /// Of the next ones to the server half are passed on, and then its end; its answer is still let through.
    HalfOpen,
    /// Every connection that is open is closed at once.
    Severed,
}

/// The proxy of one agent.
#[derive(Debug)]
pub struct Proxy {
    /// Where the agent connects to.
    pub port: u16,
    weather: watch::Sender<Weather>,
    /// How many storms there have been: only the last one clears up.
    storms: Mutex<usize>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Listens, and takes each connection to the next server that is up.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(servers: Ports) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (weather, seen) = watch::channel(Weather::Clear);
        let turn = AtomicUsize::new(Random::new(port.into()).below(servers.len()));
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let first = turn.fetch_add(1, Ordering::Relaxed);
                let up = (0..servers.len())
                    .map(|step| servers[(first + step) % servers.len()].load(Ordering::Relaxed))
                    .find(|port| *port != 0);
                if let Some(port) = up {
                    tokio::spawn(connect(client, port, seen.clone()));
                }
            }
        });
        Ok(Proxy { port, weather, storms: Mutex::new(0), listening })
    }

    /// Changes the weather for a while.
    pub async fn storm(&self, weather: Weather, lasting: Duration) {
        let number = {
            let mut storms = self.storms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *storms += 1;
            *storms
        };
        self.weather.send_replace(weather);
        tokio::time::sleep(lasting).await;
        if *self.storms.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == number {
            self.weather.send_replace(Weather::Clear);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn connect(client: TcpStream, port: u16, weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whichever ends first takes the other along.
    tokio::select! {
        () = pass(from_client, to_server, weather.clone(), true) => {}
        () = pass(from_server, to_client, weather, false) => {}
    }
}

/// Passes one direction on until it ends or is cut.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    up: bool,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            },
            _ = weather.wait_for(|weather| *weather == Weather::Severed) => return,
        };
        let now = *weather.borrow();
        let half = &buffer[..count / 2];
        match now {
            Weather::Clear => {}
            Weather::Late(time) => tokio::time::sleep(time).await,
            Weather::BlackHole => {
                // What is lost is not made up for: once the hole has closed, so does the connection.
                let _ = weather.wait_for(|weather| *weather != Weather::BlackHole).await;
                return;
            }
            Weather::Half(way) if way == up => return drop(to.write_all(half).await),
            Weather::HalfOpen if up => {
                let _ = (to.write_all(half).await, to.shutdown().await);
                return tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Weather::Half(_) | Weather::HalfOpen => {}
            Weather::Severed => return,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
