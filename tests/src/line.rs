//! A bad line: a TCP proxy before a server, which lets a connection carry so many bytes and then cuts it.

use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// A proxy; it ends with the test.
#[derive(Debug)]
pub struct BadLine {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl BadLine {
    /// A line to the server on that port. Each connection is cut after so many bytes in either direction.
    ///
    /// # Errors
    /// If there is no port to listen on.
    pub async fn to(port: u16, bytes: u64) -> Result<BadLine> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (cuts, carried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, sum) = (cuts.clone(), carried.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (counted, sum) = (counted.clone(), sum.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    if carry(client, server, bytes, &sum).await {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Ok(BadLine { address, cuts, carried, task })
    }

    /// The URL of the server through this line.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    /// How many bytes went to the server.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries a connection; true if it was cut, which it is in both directions at once, as when a cable is pulled.
async fn carry(client: TcpStream, server: TcpStream, bytes: u64, sum: &AtomicU64) -> bool {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = one_way(from_client, to_server, bytes, Some(sum));
    let back = one_way(from_server, to_client, bytes, None);
    tokio::pin!(there, back);
    tokio::select! {
        cut = &mut there => cut || back.await,
        cut = &mut back => cut || there.await,
    }
}

/// Carries one direction; true if it was cut, false if its sender had no more to say.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut left: u64,
    sum: Option<&AtomicU64>,
) -> bool {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let carried = left.min(read as u64);
        if to.write_all(&buffer[..carried as usize]).await.is_err() {
            return false;
        }
        if let Some(sum) = sum {
            sum.fetch_add(carried, Ordering::SeqCst);
        }
        left -= carried;
        if left == 0 {
            return true;
        }
    }
    let _ = to.shutdown().await;
    false
}
