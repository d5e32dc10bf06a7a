//! A proxy in front of a registry that does to answers what bad networks and registries do.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// The header `Authorization`.
    pub(crate) authorization: Option<String>,
    /// How long the body is, as far as the head says.
    pub(crate) length: u64,
    /// How often the same was asked before.
    pub(crate) before: usize,
}

/// What happens to a request or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The connection ends without an answer; the registry hears nothing.
    Drop,
    /// The registry hears all and answers; the answer does not arrive.
    Swallow,
    /// The registry hears so many bytes of the body, and then both connections end.
    CutRequest(u64),
    /// The connection ends after so many bytes of the answer's body.
    Cut(u64),
    /// Nothing more comes after so many bytes of the answer's body.
    Stall(u64),
    /// One bit of the answer's body is another, so many bytes from its start.
    Corrupt(u64),
    /// The answer is `307` to that address, with the same path.
    Redirect(String),
    /// The answer is `429`, with `Retry-After`.
    Busy(u64),
}

type Bend = Arc<dyn Fn(&Asked) -> Fault + Send + Sync>;

/// The proxy, until it is dropped.
pub(crate) struct Proxy {
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: String,
    bend: Bend,
    asked: Mutex<Vec<Asked>>,
    stop: AtomicBool,
}

impl Proxy {
    /// Starts one in front of `upstream`, a host with its port.
    pub(crate) fn start(upstream: &str, bend: impl Fn(&Asked) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            bend: Arc::new(bend),
            asked: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        let accept = move || {
            for client in listener.incoming() {
                if its.stop.load(Ordering::SeqCst) {
                    return;
                }
                let its = Arc::clone(&its);
                // Ends with its connection. That a connection breaks is what this is for.
                std::thread::spawn(move || its.serve(client.unwrap()).ok());
            }
        };
        Proxy { address, shared, listener: Some(std::thread::spawn(accept)) }
    }

    /// `127.0.0.1:PORT/REST`
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How often this was asked by that method, by a part of the path.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(&self.address).ok(); // wakes the listener
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

impl Shared {
    /// Serves one request; the connection ends with it.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let Some(head) = Head::read(&mut reader)? else { return Ok(()) };
        let (asked, fault) = self.note(&head);
        match &fault {
            Fault::Drop => return client.shutdown(Shutdown::Both),
            Fault::Redirect(to) => {
                let answer = format!("HTTP/1.1 307 X\r\nlocation: {to}{}\r\ncontent-length: 0\r\n", asked.path);
                return client.write_all(format!("{answer}connection: close\r\n\r\n").as_bytes());
            }
            Fault::Busy(seconds) => {
                let answer = format!("HTTP/1.1 429 X\r\nretry-after: {seconds}\r\ncontent-length: 0\r\n");
                return client.write_all(format!("{answer}connection: close\r\n\r\n").as_bytes());
            }
            _ => {}
        }
        let upstream = TcpStream::connect(&self.upstream)?;
        (&upstream).write_all(&head.bytes_to_be_closed())?;
        std::thread::scope(|scope| {
            let limit = if let Fault::CutRequest(at) = fault { at } else { u64::MAX };
            let (to, from) = (&upstream, &client);
            scope.spawn(move || {
                // Ends when the client hangs up, or the answer is done and both are shut.
                let sent = io::copy(&mut (&mut reader).take(limit), &mut &*to).ok();
                if sent == Some(limit) {
                    to.shutdown(Shutdown::Both).ok();
                    from.shutdown(Shutdown::Both).ok();
                }
            });
            let done = self.answer(&upstream, &client, &fault);
            upstream.shutdown(Shutdown::Both).ok();
            client.shutdown(Shutdown::Both).ok();
            done
        })
    }

    fn note(&self, head: &Head) -> (Asked, Fault) {
        let mut words = head.lines[0].split(' ');
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let mut all = self.asked.lock().unwrap();
        let before = all.iter().filter(|asked| asked.method == method && asked.path == path).count();
        let length = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let asked = Asked { method, path, authorization: head.header("authorization"), length, before };
        all.push(asked.clone());
        drop(all);
        let fault = (self.bend)(&asked);
        (asked, fault)
    }

    fn answer(&self, upstream: &TcpStream, mut client: &TcpStream, fault: &Fault) -> io::Result<()> {
        let mut answer = BufReader::new(upstream);
        let Some(head) = Head::read(&mut answer)? else { return Ok(()) };
        if *fault == Fault::Swallow {
            return Ok(());
        }
        client.write_all(&head.bytes_to_be_closed())?;
        match fault {
            Fault::Cut(at) => io::copy(&mut answer.take(*at), &mut client).map(drop),
            Fault::Stall(at) => {
                io::copy(&mut answer.take(*at), &mut client)?;
                while !self.stop.load(Ordering::SeqCst) && !has_hung_up(client) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }
            Fault::Corrupt(at) => {
                io::copy(&mut (&mut answer).take(*at), &mut client)?;
                let mut byte = [0];
                answer.read_exact(&mut byte)?;
                client.write_all(&[byte[0] ^ 1])?;
                io::copy(&mut answer, &mut client).map(drop)
            }
            _ => io::copy(&mut answer, &mut client).map(drop),
        }
    }
}

fn has_hung_up(client: &TcpStream) -> bool {
    client.set_nonblocking(true).ok();
    let ended = matches!(client.peek(&mut [0]), Ok(0));
    client.set_nonblocking(false).ok();
    ended
}

/// The lines of a request or an answer up to its body.
struct Head {
    lines: Vec<String>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => return Ok(Some(Head { lines })),
                line => lines.push(line.to_owned()),
            }
        }
    }

    fn header(&self, name: &str) -> Option<String> {
        let headers = self.lines.iter().filter_map(|line| line.split_once(':'));
        headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
    }

    /// As it came, but one request to a connection.
    fn bytes_to_be_closed(&self) -> Vec<u8> {
        let kept = self.lines.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let mut text: String = kept.map(|line| format!("{line}\r\n")).collect();
        text += "connection: close\r\n\r\n";
        text.into_bytes()
    }
}
