//! Forwarding of requests of the driver, and of answers that do no harm.

use std::{io, io::ErrorKind, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::messages::{BadAnswer, CommandKind, HEADER, Header, MAX_REQUEST, PREFIX};

/// Longest time for the transfer of a request to a server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Answers up to this size do not wait for memory.
const SMALL: usize = 64 << 10;
/// Memory for larger answers of all servers.
const MEMORY: usize = 40 << 20;

/// Reason for which a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    /// One of the two sides closed it, or broke the order of request and answer.
    #[error(transparent)]
    Closed(#[from] io::Error),
    /// The server sent an answer that is not forwarded.
    #[error("the answer of the server {0}")]
    BadAnswer(#[from] BadAnswer),
}

/// Memory for answers that are read but not forwarded yet. A namespace waits for its own part before it waits for that
/// of all, so it cannot occupy all of it.
#[derive(Clone)]
pub(super) struct AnswerMemory {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl AnswerMemory {
    /// Memory of all namespaces.
    pub fn of_all() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MEMORY >> 10))
    }

    /// Memory of the clients of a namespace: half of that of all.
    pub fn of_namespace(all: Arc<Semaphore>) -> Self {
        Self { own: Arc::new(Semaphore::new(MEMORY >> 11)), all }
    }

    async fn reserve(&self, bytes: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        if bytes <= SMALL {
            return None;
        }
        let permits = bytes.div_ceil(1 << 10) as u32;
        let own = Arc::clone(&self.own).acquire_many_owned(permits).await.ok()?;
        Some((own, Arc::clone(&self.all).acquire_many_owned(permits).await.ok()?))
    }
}

fn out_of_order() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "closed, or not in the order of request and answer")
}

/// Forwards requests and answers in turn, until a side closes the connection.
pub(super) async fn forward<D, S>(driver: &mut D, server: &mut S, memory: &AnswerMemory) -> ConnectionEnd
where
    D: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let ended = match forward_request(driver, server).await {
            Ok(command) => forward_answer(driver, server, command, memory).await.err(),
            Err(error) => Some(error.into()),
        };
        if let Some(ended) = ended {
            return ended;
        }
    }
}

async fn forward_request<D, S>(driver: &mut D, server: &mut S) -> io::Result<CommandKind>
where
    D: AsyncRead + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut start, mut unexpected) = ([0; HEADER + PREFIX], [0]);
    select! {
        read = driver.read_exact(&mut start[..HEADER]) => read?,
        _ = server.read(&mut unexpected) => return Err(out_of_order()),
    };
    let header = start.first_chunk().and_then(|head| Header::parse(*head)).filter(|header| header.rest <= MAX_REQUEST);
    let Header { rest, .. } = header.ok_or_else(out_of_order)?;
    let known = rest.min(PREFIX);
    let transfer = async {
        driver.read_exact(&mut start[HEADER..HEADER + known]).await?;
        let command = CommandKind::of_request(&start[HEADER..HEADER + known]);
        server.write_all(&start[..HEADER + known]).await?;
        let rest = (rest - known) as u64;
        if copy(&mut driver.take(rest), server).await? < rest {
            return Err(out_of_order());
        }
        server.flush().await?;
        Ok(command)
    };
    timeout(REQUEST_TIMEOUT, transfer).await?
}

async fn forward_answer<D, S>(
    driver: &mut D,
    server: &mut S,
    command: CommandKind,
    memory: &AnswerMemory,
) -> Result<(), ConnectionEnd>
where
    D: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + Unpin,
{
    let mut unexpected = [0];
    // A driver that does not wait for an answer any more closes the connection.
    let (answer, permits) = select! {
        read = read_answer(server, command, memory) => read?,
        _ = driver.read(&mut unexpected) => return Err(out_of_order().into()),
    };
    driver.write_all(&answer).await?;
    driver.flush().await?;
    drop(permits);
    Ok(())
}

type Permits = Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>;

/// Reads an answer as a whole, because its depth decides whether the driver may see it.
async fn read_answer<S: AsyncRead + Unpin>(
    server: &mut S,
    command: CommandKind,
    memory: &AnswerMemory,
) -> Result<(Vec<u8>, Permits), ConnectionEnd> {
    let mut head = [0; HEADER];
    server.read_exact(&mut head).await?;
    let header = Header::parse(head).ok_or(BadAnswer::Malformed)?;
    header.check_answer(command)?;
    let permits = memory.reserve(header.rest).await;
    // The memory grows with the bytes that arrive, and not with the length that the server announces.
    let mut answer = head.to_vec();
    if server.take(header.rest as u64).read_to_end(&mut answer).await? < header.rest {
        return Err(out_of_order().into());
    }
    command.check_answer(&answer[HEADER..])?;
    Ok((answer, permits))
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn message(document: &Document) -> Vec<u8> {
        let body = bson::serialize_to_vec(document).unwrap();
        let length = (HEADER + 5 + body.len()) as i32;
        let header = [length, 1, 0, 2013].map(i32::to_le_bytes).concat();
        [header, vec![0; 5], body].concat()
    }

    /// Connections of a driver and a server with a relay between them.
    fn relayed() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<String>) {
        let ((driver, mut to_driver), (mut to_server, server)) = (duplex(1 << 10), duplex(1 << 10));
        let memory = AnswerMemory::of_namespace(AnswerMemory::of_all());
        let ended = tokio::spawn(async move { forward(&mut to_driver, &mut to_server, &memory).await.to_string() });
        (driver, server, ended)
    }

    async fn transfer(from: &mut DuplexStream, to: &mut DuplexStream, message: &[u8]) -> bool {
        let mut arrived = vec![0; message.len()];
        let (sent, read) = tokio::join!(from.write_all(message), to.read_exact(&mut arrived));
        sent.is_ok() && read.is_ok() && arrived == message
    }

    #[tokio::test]
    async fn messages_of_any_length_pass_in_both_directions() {
        let (mut driver, mut server, ended) = relayed();
        for length in [0, 1, 100, 1_000_000, 16 << 20] {
            let long = message(&doc! {"find": "users", "text": "x".repeat(length)});
            assert!(transfer(&mut driver, &mut server, &long).await, "request of {length}");
            assert!(transfer(&mut server, &mut driver, &long).await, "answer of {length}");
        }
        drop(driver);
        assert!(ended.await.unwrap().contains("eof"), "the server's connection ends with the driver's");
    }

    #[tokio::test]
    async fn a_large_answer_to_hello_ends_the_connection() {
        let (mut driver, mut server, ended) = relayed();
        assert!(transfer(&mut driver, &mut server, &message(&doc! {"hello": 1})).await);
        let answer = message(&doc! {"hosts": vec!["db.example:27017"; 2000]});
        server.write_all(&answer).await.ok();
        assert_eq!(ended.await.unwrap(), "the answer of the server is larger than 16384 bytes");
        assert_eq!(driver.read(&mut [0]).await.unwrap(), 0, "the driver sees no part of the answer");
    }

    #[tokio::test]
    async fn a_message_without_a_request_ends_the_connection() {
        let (mut driver, mut server, ended) = relayed();
        server.write_all(&message(&doc! {"ok": 1})).await.unwrap();
        assert!(ended.await.unwrap().contains("order"));
        assert_eq!(driver.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_driver_that_gives_up_ends_the_connection() {
        let (mut driver, mut server, ended) = relayed();
        assert!(transfer(&mut driver, &mut server, &message(&doc! {"find": "users"})).await);
        drop(driver);
        assert!(ended.await.unwrap().contains("order"));
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }
}
