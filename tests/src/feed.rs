//! The other end of a socket source: a peer that serves records, or brings them.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::eventually;

/// How fast records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the other side takes them.
    Full,
    /// One record, then a pause.
    Every(Duration),
}

/// A server that gives its records once, each ended by a delimiter: those that one connection did not take whole go to
/// the next. After the last one it closes the connection, and keeps listening.
#[derive(Debug)]
pub struct Feeder {
    address: SocketAddr,
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    /// Serves on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn serve(records: Vec<Vec<u8>>, delimiter: &[u8], pace: Pace) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped, delimiter) = (Arc::clone(&sent), Arc::clone(&stop), delimiter.to_vec());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((mut stream, _)) = listener.accept() {
                    give(&mut stream, &records, &delimiter, pace, &counter, &stopped);
                }
            }
        });
        Self { address, sent, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many records were handed to the network.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }
}

fn give(
    stream: &mut TcpStream,
    records: &[Vec<u8>],
    delimiter: &[u8],
    pace: Pace,
    sent: &AtomicUsize,
    stop: &AtomicBool,
) {
    let _ = stream.set_nodelay(true);
    while let Some(record) = records.get(sent.load(Ordering::SeqCst)) {
        if stop.load(Ordering::SeqCst) || stream.write_all(&[record, delimiter].concat()).is_err() {
            return;
        }
        sent.fetch_add(1, Ordering::SeqCst);
        if let Pace::Every(pause) = pace {
            std::thread::sleep(pause);
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes `accept`
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects to a listening source, waiting until it listens.
///
/// # Panics
/// Where it never does.
pub fn connect(address: SocketAddr) -> TcpStream {
    eventually(&format!("{address} to listen"), || TcpStream::connect(address).map_err(|e| e.to_string()))
}

/// Brings records to a listening source, and closes.
///
/// # Panics
/// Where the connection breaks.
pub fn send(address: SocketAddr, records: &[Vec<u8>], delimiter: &[u8]) {
    let mut stream = connect(address);
    for record in records {
        stream.write_all(&[record, delimiter].concat()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Brings lines to a listening source with `ack: line`; returns how many of them it called durable, when it has called
/// all of them that or the connection broke. What lies beyond that count is in doubt: it may be in the spool or not.
pub fn send_acked(stream: &TcpStream, lines: &[Vec<u8>]) -> usize {
    let mut acked = 0;
    let Ok(mut writer) = stream.try_clone() else { return acked };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for line in lines {
                if writer.write_all(&[line, b"\n".as_slice()].concat()).is_err() {
                    return;
                }
            }
        });
        for answer in BufReader::new(stream).lines() {
            let Some(count) = answer.ok().and_then(|text| text.trim().parse().ok()) else { break };
            acked = count;
            if acked >= lines.len() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
    acked
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_feeder_gives_each_record_once() {
        let feeder = Feeder::serve(vec![b"one".to_vec(), b"two".to_vec()], b"__end", Pace::Full);
        let mut text = String::new();
        connect(feeder.address()).read_to_string(&mut text).unwrap();
        assert_eq!((&*text, feeder.sent()), ("one__endtwo__end", 2));
        text.clear();
        connect(feeder.address()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "");
    }
}
