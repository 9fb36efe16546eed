//! Gives every rank the bytes that rank 0 has, over TCP, before there is an engine: NCCL's id.
//!
//! A rank connects to rank 0 and says its number and its world size. It gets the bytes, and says that it has them. Who connects may be
//! anybody: all lengths are fixed, and every wait ends. Nothing is encrypted or authenticated, as in NCCL itself: the network between
//! the ranks must be trusted.

use std::collections::BTreeSet;
use std::io::{Error as IoError, ErrorKind, Read, Result as IoResult, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use tallow_text::prepare::Rank;

use crate::{Error, Result};

/// What rank 0 gives to the others.
pub(super) type Bytes = [u8; 128];

const HELLO: [u8; 8] = *b"tallow?1";
const ANSWER: [u8; 8] = *b"tallow!1";
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// For one connection. A rank says its number at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What rank 0 says to a rank.
const WELCOME: u8 = 0;
const OTHER_JOB: u8 = 1;
const NOT_AWAITED: u8 = 2;

/// The name of this operation in errors.
pub(super) const NAME: &str = "the first connection";

fn failed(reason: String) -> Error {
    Error::Collective { operation: NAME, reason }
}

/// The number of a rank, or of ranks. C libraries count them in an `int`.
pub(super) fn narrow(number: usize) -> Result<u32> {
    i32::try_from(number).map(i32::cast_unsigned).map_err(|_| Error::Config(format!("{number} ranks are too many")))
}

/// The bytes that rank 0 makes. `variable` reads the environment variables that say where it is.
pub(super) fn meet(
    variable: impl Fn(&str) -> Option<String>,
    rank: Rank,
    make: impl FnOnce() -> Result<Bytes>,
    limit: Duration,
) -> Result<Bytes> {
    let (rank, world_size) = (narrow(rank.rank)?, narrow(rank.world_size)?);
    if world_size == 1 {
        return make();
    }
    let host = variable("MASTER_ADDR").ok_or_else(|| {
        Error::Config(format!("MASTER_ADDR is not set: set it to the host name of rank 0, on all {world_size} ranks"))
    })?;
    let port = variable("MASTER_PORT").unwrap_or_else(|| "29500".to_string());
    // torchrun itself listens on MASTER_PORT then.
    let taken = u16::from(variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"));
    let Some(port) = port.trim().parse::<u16>().ok().and_then(|port| port.checked_add(taken)) else {
        return Err(Error::Config(format!("MASTER_PORT={port} is not the number of a port")));
    };
    if rank > 0 {
        return fetch(&host, port, rank, world_size, limit);
    }
    let listener = listen(&host, port)?;
    let bytes = make()?;
    serve(&listener, world_size, &bytes, limit)?;
    Ok(bytes)
}

/// Opens the port on rank 0. It is open to this machine only if `host` is the loopback.
fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let everywhere = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
    let listener = if is_loopback { TcpListener::bind((host, port)) } else { TcpListener::bind(&everywhere[..]) };
    listener.map_err(|error| failed(format!("rank 0 cannot open port {port}: {error}. Set MASTER_PORT to a free port")))
}

/// Gives `bytes` to the ranks from 1 on. Returns when all have them.
fn serve(listener: &TcpListener, world_size: u32, bytes: &Bytes, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    listener.set_nonblocking(true).map_err(|error| failed(error.to_string()))?;
    let mut absent: BTreeSet<u32> = (1..world_size).collect();
    while !absent.is_empty() {
        if Instant::now() >= end {
            let first: Vec<String> = absent.iter().take(8).map(u32::to_string).collect();
            return Err(failed(format!(
                "{} of {world_size} ranks did not connect to rank 0 within {} s, among them {}: were they started, with the same \
                 MASTER_ADDR and MASTER_PORT?",
                absent.len(),
                limit.as_secs_f32(),
                first.join(", ")
            )));
        }
        match listener.accept() {
            // A connection that fails is a stranger's, or the rank tries again.
            Ok((stream, _)) => {
                if let Ok(Some(rank)) = greet(stream, world_size, &absent, bytes, end) {
                    absent.remove(&rank);
                }
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

/// The rank that now has the bytes.
fn greet(
    mut stream: TcpStream,
    world_size: u32,
    absent: &BTreeSet<u32>,
    bytes: &Bytes,
    end: Instant,
) -> IoResult<Option<u32>> {
    let end = end.min(Instant::now() + PATIENCE);
    stream.set_nonblocking(false)?;
    if read(&mut stream, end)? != HELLO {
        return Ok(None);
    }
    let (theirs, rank) = (u64::from_le_bytes(read(&mut stream, end)?), u64::from_le_bytes(read(&mut stream, end)?));
    let rank = u32::try_from(rank).ok().filter(|rank| absent.contains(rank));
    let verdict = match rank {
        _ if theirs != u64::from(world_size) => OTHER_JOB,
        None => NOT_AWAITED,
        Some(_) => WELCOME,
    };
    let nothing = [0; 128];
    let bytes = if verdict == WELCOME { bytes } else { &nothing };
    stream.set_write_timeout(Some(end.saturating_duration_since(Instant::now())))?;
    stream.write_all(&[&ANSWER[..], &[verdict], bytes].concat())?;
    if verdict != WELCOME {
        return Ok(None);
    }
    let [_] = read(&mut stream, end)?;
    Ok(rank)
}

/// The bytes of rank 0, which listens at this address, or soon will.
fn fetch(host: &str, port: u16, rank: u32, world_size: u32, limit: Duration) -> Result<Bytes> {
    let end = Instant::now() + limit;
    let here = format!("rank 0 at {host}:{port} (MASTER_ADDR, MASTER_PORT)");
    loop {
        let error = match ask(host, port, rank, world_size, end) {
            Ok((WELCOME, bytes)) => return Ok(bytes),
            Ok((OTHER_JOB, _)) => {
                return Err(failed(format!(
                    "{here} has another number of ranks than {world_size}: it is another job's"
                )));
            }
            Ok((_, _)) => {
                return Err(failed(format!("{here} does not wait for rank {rank}: another process has the same rank")));
            }
            Err(error) => error,
        };
        if Instant::now() + PAUSE >= end {
            let limit = limit.as_secs_f32();
            return Err(failed(format!(
                "{here} did not answer within {limit} s ({error}): is it running, and can it be reached?"
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask(host: &str, port: u16, rank: u32, world_size: u32, end: Instant) -> IoResult<(u8, Bytes)> {
    let mut last = IoError::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = end.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.min(PATIENCE)) {
            // Without a listener, a system may connect a socket to itself.
            Ok(stream) if stream.local_addr()? != stream.peer_addr()? => {
                return talk(stream, rank, world_size, end);
            }
            Ok(_) => last = ErrorKind::ConnectionRefused.into(),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn talk(mut stream: TcpStream, rank: u32, world_size: u32, end: Instant) -> IoResult<(u8, Bytes)> {
    stream.write_all(&[HELLO, u64::from(world_size).to_le_bytes(), u64::from(rank).to_le_bytes()].concat())?;
    let answer: [u8; 8] = read(&mut stream, end)?;
    if answer != ANSWER {
        return Err(IoError::new(ErrorKind::InvalidData, "another program answers there"));
    }
    let [verdict] = read(&mut stream, end)?;
    let bytes = read(&mut stream, end)?;
    if verdict == WELCOME {
        stream.write_all(&[WELCOME])?;
    }
    Ok((verdict, bytes))
}

/// So many bytes before `end`, however slowly they come.
fn read<const N: usize>(stream: &mut TcpStream, end: Instant) -> IoResult<[u8; N]> {
    let (mut bytes, mut got) = ([0; N], 0);
    while got < N {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[got..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => got += n,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(300);
    const HOST: &str = "127.0.0.1";

    fn id() -> Bytes {
        std::array::from_fn(|i| i as u8 + 1)
    }

    fn open() -> (TcpListener, u16) {
        let listener = listen(HOST, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn connect(port: u16) -> TcpStream {
        TcpStream::connect((HOST, port)).unwrap()
    }

    /// What rank 0 answers to these bytes.
    fn said(port: u16, bytes: &[u8]) -> Vec<u8> {
        let mut stream = connect(port);
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        answer
    }

    #[test]
    fn ranks_get_the_bytes_in_any_order_of_start() {
        for (order, torchrun) in [([0, 1, 2], false), ([2, 1, 0], true), ([1, 0, 2], false)] {
            let port = open().1; // closed again: nobody listens yet
            let variable = move |name: &str| match name {
                "MASTER_ADDR" => Some(HOST.to_string()),
                "MASTER_PORT" => Some((port - u16::from(torchrun)).to_string()),
                "TORCHELASTIC_USE_AGENT_STORE" => torchrun.then(|| "True".to_string()),
                _ => None,
            };
            let ranks = order.map(|rank| {
                let make = move || if rank == 0 { Ok(id()) } else { panic!("rank {rank} makes its own") };
                let rank = thread::spawn(move || meet(variable, Rank { rank, world_size: 3 }, make, LONG));
                thread::sleep(Duration::from_millis(50));
                rank
            });
            ranks.into_iter().for_each(|rank| assert_eq!(rank.join().unwrap().unwrap(), id()));
            assert!(TcpStream::connect((HOST, port)).is_err(), "the port is closed");
        }
    }

    #[test]
    fn the_environment_says_where_rank_0_is() {
        let meet = |world_size: usize, host: &str, port: &str| {
            let set = |name: &str| match name {
                "MASTER_ADDR" => Some(host.to_string()).filter(|host| !host.is_empty()),
                "MASTER_PORT" => Some(port.to_string()),
                _ => None,
            };
            meet(set, Rank { rank: 0, world_size }, || Ok(id()), SHORT).map_err(|error| error.to_string())
        };
        assert_eq!(meet(1, "", "").unwrap(), id()); // one rank needs no other
        assert!(meet(2, "", "29500").unwrap_err().contains("MASTER_ADDR is not set"));
        for port in ["", "x", "65536", "-1"] {
            assert!(meet(2, HOST, port).unwrap_err().contains(&format!("MASTER_PORT={port} is not")));
        }
        assert!(meet(usize::MAX, HOST, "29500").unwrap_err().contains("too many"));
        let port = open().1;
        assert!(meet(2, HOST, &port.to_string()).unwrap_err().contains("1 of 2 ranks"));
    }

    #[test]
    fn strangers_get_nothing_and_disturb_nobody() {
        let (listener, port) = open();
        let server = thread::spawn(move || serve(&listener, 2, &id(), LONG));
        assert_eq!(said(port, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), b"");
        drop(connect(port)); // says nothing
        connect(port).write_all(&HELLO).unwrap(); // half of what a rank says
        let no_rank = [HELLO, 2u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
        assert_eq!(said(port, &no_rank), [&ANSWER[..], &[NOT_AWAITED], &[0; 128]].concat());
        // It gets the bytes, and is gone before it says so: the rank is still awaited.
        let mut gone = connect(port);
        gone.write_all(&[HELLO, 2u64.to_le_bytes(), 1u64.to_le_bytes()].concat()).unwrap();
        assert_eq!(read(&mut gone, Instant::now() + LONG).unwrap(), ANSWER);
        drop(gone);
        assert_eq!(fetch(HOST, port, 1, 2, LONG).unwrap(), id());
        server.join().unwrap().unwrap();
    }

    #[test]
    fn another_job_is_named_and_refused() {
        let (listener, port) = open();
        let server = thread::spawn(move || serve(&listener, 3, &id(), LONG));
        let error = fetch(HOST, port, 1, 4, LONG).unwrap_err().to_string();
        assert!(error.contains("another number of ranks than 4") && error.contains(&port.to_string()), "{error}");
        assert_eq!(fetch(HOST, port, 1, 3, LONG).unwrap(), id());
        for rank in [0, 1, 3] {
            let error = fetch(HOST, port, rank, 3, LONG).unwrap_err().to_string();
            assert!(error.contains(&format!("does not wait for rank {rank}")), "{error}");
        }
        assert_eq!(fetch(HOST, port, 2, 3, LONG).unwrap(), id());
        server.join().unwrap().unwrap();
    }

    #[test]
    fn nobody_waits_for_ever() {
        // No rank 0.
        let (listener, port) = open();
        drop(listener);
        let error = fetch(HOST, port, 1, 2, SHORT).unwrap_err().to_string();
        assert!(error.contains(&format!("{HOST}:{port}")) && error.contains("within 0.3 s"), "{error}");
        // Something that listens and says nothing.
        let (_silent, port) = open();
        assert!(fetch(HOST, port, 1, 2, SHORT).is_err());
        // Something that says the wrong thing.
        let (other, port) = open();
        let other = thread::spawn(move || other.accept().unwrap().0.write_all(b"220 mail.example.org ESMTP").unwrap());
        let error = fetch(HOST, port, 1, 2, SHORT).unwrap_err().to_string();
        assert!(error.contains("did not answer"), "{error}");
        other.join().unwrap();
        // A rank that never comes, and a stranger that keeps its connection.
        let (listener, port) = open();
        let mut stranger = connect(port);
        stranger.write_all(&HELLO[..3]).unwrap();
        let error = serve(&listener, 4, &id(), SHORT).unwrap_err().to_string();
        assert!(error.contains("3 of 4 ranks") && error.contains("1, 2, 3"), "{error}");
        // A port that is taken.
        let error = listen(HOST, port).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot open port {port}")), "{error}");
        // No such name.
        assert!(fetch("no-such-host.invalid", port, 1, 2, SHORT).is_err());
    }
}
