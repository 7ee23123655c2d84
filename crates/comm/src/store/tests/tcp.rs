//! The TCP store: tokens, deaths on either side, deadlines.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{connect, loopback, lost_cause, raw, serve, shortly, soon, until};
use crate::store::deadlines::after;
use crate::store::tcp::{Request, ServerOptions, StoreServer, TcpStore, Token, VERSION};
use crate::store::{Deadlines, Store, StoreError, StoreOp};

fn token(text: &str) -> Token {
    Token::new(text.as_bytes()).unwrap()
}

fn with_token(text: &str) -> ServerOptions {
    ServerOptions { token: Some(token(text)), ..ServerOptions::default() }
}

fn try_connect(address: SocketAddr, token: Option<&Token>) -> Result<TcpStore, StoreError> {
    TcpStore::connect(&address.to_string(), token, &Deadlines::DEFAULT, soon())
}

#[track_caller]
fn refusal(result: Result<TcpStore, StoreError>) -> String {
    match result {
        Err(StoreError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

const SECRET: &str = "correct horse battery staple";

#[test]
fn server_that_others_can_reach_needs_a_token() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let address: SocketAddr = address.parse().unwrap();
        match StoreServer::bind(address, ServerOptions::default()) {
            Err(StoreError::Refused { reason, .. }) => {
                assert!(reason.contains("EPLB_STORE_TOKEN"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
    let server = StoreServer::bind("0.0.0.0:0".parse().unwrap(), with_token(SECRET)).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], server.local_address().port()));
    try_connect(address, Some(&token(SECRET))).unwrap().set("k", b"v", soon()).unwrap();
}

#[test]
fn wrong_or_missing_token_is_refused_on_both_sides() {
    let closed = serve(with_token(SECRET));
    let open = serve(ServerOptions::default());
    let wrong = refusal(try_connect(closed.local_address(), Some(&token("correct horse battery stapler"))));
    assert!(wrong.contains("tokens differ"), "{wrong}");
    let missing = refusal(try_connect(closed.local_address(), None));
    assert!(missing.contains("needs a token"), "{missing}");
    let needless = refusal(try_connect(open.local_address(), Some(&token(SECRET))));
    assert!(needless.contains("without a token"), "{needless}");
    until("the refusals being counted", || closed.stats().wrong_token == 1);
    assert_eq!(closed.stats().clients, 0);
    // None of it has harmed those who know it.
    try_connect(closed.local_address(), Some(&token(SECRET))).unwrap().add("k", 1, soon()).unwrap();
}

#[test]
fn server_that_cannot_prove_the_token_is_refused() {
    // It accepts any proof and welcomes the client: with a proof of zeros, or with the one that it was just given.
    for reflect in [false, true] {
        let listener = TcpListener::bind(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 42]).unwrap();
            stream.write_all(&raw::server_hello(1)).unwrap();
            let mut proof = [0; 32];
            stream.read_exact(&mut proof).unwrap();
            let mut welcome = raw::welcome(0, 10);
            if reflect {
                welcome[1..33].copy_from_slice(&proof);
            }
            stream.write_all(&welcome).unwrap();
            raw::show_life(stream);
        });
        let reason = refusal(try_connect(address, Some(&token(SECRET))));
        assert!(reason.contains("could not prove"), "{reason}");
    }
}

/// A man in the middle that keeps what the client says.
fn eavesdrop(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&heard);
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(server).unwrap();
        let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = client.read(&mut chunk) {
            keep.lock().unwrap().extend_from_slice(&chunk[..count]);
            server.write_all(&chunk[..count]).unwrap();
        }
    });
    (address, heard)
}

#[test]
fn token_does_not_travel_and_a_heard_proof_is_worth_nothing() {
    let server = serve(with_token(SECRET));
    let (address, heard) = eavesdrop(server.local_address());
    try_connect(address, Some(&token(SECRET))).unwrap().set("k", b"v", soon()).unwrap();
    let heard = heard.lock().unwrap().clone();
    assert!(heard.len() > 42 + 32);
    assert!(!heard.windows(8).any(|window| SECRET.as_bytes().windows(8).any(|part| part == window)));
    // Said again, word for word: the server's nonce is another one now.
    let mut replay = raw::connection(&server);
    replay.write_all(&heard[..42 + 32]).unwrap();
    assert!(raw::is_closed(&mut replay));
    until("the replay being counted", || server.stats().wrong_token == 1);
}

#[test]
fn client_waits_for_a_server_that_starts_later() {
    let address = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| try_connect(address, None));
        thread::sleep(Duration::from_millis(30));
        let _server = StoreServer::bind(address, ServerOptions::default()).unwrap();
        client.join().unwrap().unwrap();
    });
}

#[test]
fn address_where_nothing_listens_times_out_with_its_cause() {
    let address = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    match TcpStore::connect(
        &address.to_string(),
        None,
        &Deadlines::DEFAULT,
        after(Duration::from_millis(300)),
    ) {
        Err(error @ StoreError::Timeout { op: StoreOp::Connect, .. }) => {
            let text = error.to_string();
            assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    // Where there was no time for an attempt, that is said and not guessed at.
    let text = TcpStore::connect(&address.to_string(), None, &Deadlines::DEFAULT, Instant::now())
        .unwrap_err()
        .to_string();
    assert!(text.contains("(timed out)"), "{text}");
    // A name that does not exist is the same: it may be on its way into the name service.
    let outcome = TcpStore::connect("no-such-host.invalid:1", None, &Deadlines::DEFAULT, shortly());
    assert!(matches!(outcome, Err(StoreError::Timeout { op: StoreOp::Connect, .. })), "{outcome:?}");
}

#[test]
fn something_else_at_the_address_is_named_as_such() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let _ = stream.read(&mut [0; 100]);
    });
    match try_connect(address, None) {
        Err(StoreError::Protocol { detail, .. }) => assert!(detail.contains("something else"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_version_is_told_so() {
    let server = serve(ServerOptions::default());
    let mut stream = raw::connection(&server);
    stream.write_all(&raw::hello(VERSION + 1)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..11], [b"EPLBSTOR", &VERSION.to_le_bytes()[..], &[2]].concat());

    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 42]).unwrap();
        let mut hello = raw::server_hello(2);
        hello[8] = 9;
        stream.write_all(&hello).unwrap();
    });
    match try_connect(address, None) {
        Err(StoreError::Protocol { detail, .. }) => assert!(detail.contains("version 9"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn server_that_goes_away_is_lost_for_all_who_wait_and_all_who_come_later() {
    let server = serve(ServerOptions::default());
    let address = server.local_address();
    let store = connect(&server);
    let clone = store.clone();
    thread::scope(|scope| {
        let waits = [
            scope.spawn(|| store.wait(&["never"], soon())),
            scope.spawn(|| clone.wait_change("never", None, soon()).map(drop)),
        ];
        until("both waits being parked", || server.stats().waiters == 2);
        drop(server);
        for wait in waits {
            let cause = lost_cause(wait.join().unwrap());
            assert!(cause.contains("closed the connection"), "{cause}");
        }
    });
    lost_cause(store.get("k", soon()));
    // It stays lost when the server is there again: that one has forgotten everything.
    let again = StoreServer::bind(address, ServerOptions::default()).unwrap();
    lost_cause(clone.set("k", b"v", soon()));
    assert_eq!(connect(&again).get("k", soon()), Ok(None));
}

#[test]
fn server_that_falls_silent_is_lost() {
    let address = raw::server_that(|mut stream| while let Ok(1..) = stream.read(&mut [0; 100]) {});
    let deadlines = Deadlines { silence: Duration::from_millis(60), ..Deadlines::DEFAULT };
    let store = TcpStore::connect(&address.to_string(), None, &deadlines, soon()).unwrap();
    let cause = lost_cause(store.wait(&["never"], soon()));
    assert!(cause.contains("no sign of life"), "{cause}");
}

#[test]
fn server_that_lives_and_does_not_answer_makes_calls_time_out() {
    let address = raw::server_that(raw::show_life);
    let store = TcpStore::connect(&address.to_string(), None, &Deadlines::DEFAULT, soon()).unwrap();
    match store.wait(&["a", "b"], shortly()) {
        Err(StoreError::Timeout { op: StoreOp::Wait, keys, .. }) => assert_eq!(keys, ["a", "b"]),
        other => panic!("{other:?}"),
    }
    // It does not read either: at some point a request cannot be sent, and is withdrawn when its time is up.
    for _ in 0..12 {
        assert!(store.set("k", &[0; 1 << 20], shortly()).unwrap_err().is_timeout());
    }
    assert_eq!(store.under_way(), (0, 0));
}

#[test]
fn server_that_talks_nonsense_is_lost() {
    for nonsense in [&[5, 0, 0, 0, 1, 2, 3, 4, 5][..], &[255; 8], &[0; 4]] {
        let address = raw::server_that(move |mut stream| {
            stream.write_all(nonsense).unwrap();
            let _ = stream.read(&mut [0; 100]);
        });
        let store = TcpStore::connect(&address.to_string(), None, &Deadlines::DEFAULT, soon()).unwrap();
        lost_cause(store.get("k", soon()));
    }
}

#[test]
fn client_that_dies_takes_nothing_with_it_but_its_waits() {
    let server = serve(ServerOptions::default());
    let survivor = connect(&server);
    survivor.set("kept", b"old", soon()).unwrap();

    // In the middle of a message, and in the middle of a wait.
    let mut dying = raw::client(&server);
    dying.write_all(&raw::set("written", b"before")).unwrap();
    dying.write_all(&Request::Wait { keys: vec!["never"], left: Duration::from_secs(60) }.encode(2)).unwrap();
    let message = raw::set("kept", &[1; 1000]);
    dying.write_all(&message[..message.len() / 2]).unwrap();
    let held = || {
        let stats = server.stats();
        (stats.clients, stats.waiters, stats.buffer)
    };
    until("its wait and its half message being held", || matches!(held(), (2, 1, 1..)));
    drop(dying);
    until("all that being gone", || held() == (1, 0, 0));
    assert_eq!(survivor.get("kept", soon()), Ok(Some(b"old".to_vec())));
    assert_eq!(survivor.get("written", soon()), Ok(Some(b"before".to_vec())));
}

#[test]
fn wait_that_has_timed_out_leaves_nothing_behind() {
    let server = serve(ServerOptions::default());
    let store = connect(&server);
    for _ in 0..5 {
        assert!(store.wait(&["never"], after(Duration::from_millis(5))).unwrap_err().is_timeout());
    }
    until("the waits being gone", || server.stats().waiters == 0);
    store.set("never", b"", soon()).unwrap();
    store.wait(&["never"], soon()).unwrap();
}

#[test]
fn many_clients_are_served() {
    let server = serve(ServerOptions::default());
    const CLIENTS: usize = 100;
    let clients: Vec<TcpStore> = (0..CLIENTS).map(|_| connect(&server)).collect();
    until("all being counted", || server.stats().clients == CLIENTS as u64);
    thread::scope(|scope| {
        for (i, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                client.set(&format!("rank/{i}"), &i.to_le_bytes(), soon()).unwrap();
                let keys: Vec<String> = (0..CLIENTS).map(|i| format!("rank/{i}")).collect();
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                client.wait(&keys, soon()).unwrap();
                let values = client.get_many(&keys, soon()).unwrap();
                assert!(values.iter().enumerate().all(|(i, v)| v.as_deref() == Some(&i.to_le_bytes()[..])));
            });
        }
    });
    drop(clients);
    until("all having left", || server.stats().clients == 0);
    assert_eq!(server.stats().keys, CLIENTS as u64);
}
