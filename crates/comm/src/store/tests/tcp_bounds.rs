//! The TCP server's bounds: memory, connections, waits, and clients that take their time.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::{connect, raw, serve, small_limits, soon, until};
use crate::store::deadlines::after;
use crate::store::tcp::{Reply, Request, ServerOptions, StoreServer, TcpStore, VERSION};
use crate::store::{Deadlines, Limits, Store, StoreError};

fn impatient() -> Deadlines {
    Deadlines {
        handshake: Duration::from_millis(40),
        frame: Duration::from_millis(40),
        keepalive: Duration::from_millis(10),
        ..Deadlines::DEFAULT
    }
}

#[test]
fn entries_are_bounded_and_room_comes_back() {
    let limits = Limits { max_value: 1000, max_total: 10_000 };
    let server = serve(ServerOptions { limits, ..ServerOptions::default() });
    let store = connect(&server);
    let mut held = 0;
    let full = loop {
        match store.set(&format!("k{held}"), &[0; 1000], soon()) {
            Ok(()) => held += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&full, StoreError::Full { key, .. } if *key == format!("k{held}")), "{full}");
    assert_eq!(held, 9);
    assert!(server.stats().bytes <= 10_000);
    // Nothing was lost, smaller things still fit, and what is freed can be used.
    assert_eq!(store.get("k8", soon()).unwrap().unwrap(), [0; 1000]);
    store.set("k0", b"small", soon()).unwrap();
    assert!(matches!(store.set("kx", &[0; 1000], soon()), Ok(())));
    assert!(matches!(
        store.add("a", 1, soon()).and(store.set("ky", &[0; 1000], soon())),
        Err(StoreError::Full { .. })
    ));
    assert!(store.delete("kx", soon()).unwrap());
    store.compare_and_set("ky", None, &[0; 900], soon()).map(drop).unwrap();
}

#[test]
fn connections_are_bounded_and_places_come_back() {
    let server = serve(ServerOptions { max_connections: 2, ..ServerOptions::default() });
    let (first, second) = (connect(&server), connect(&server));
    let address = server.local_address().to_string();
    match TcpStore::connect(&address, None, &Deadlines::DEFAULT, soon()) {
        Err(StoreError::Refused { reason, .. }) => assert!(reason.contains("max_connections"), "{reason}"),
        other => panic!("{other:?}"),
    }
    first.set("k", b"v", soon()).unwrap();
    drop(first);
    until("a place being free", || server.stats().clients == 1);
    assert_eq!(connect(&server).get("k", soon()), second.get("k", soon()));
}

#[test]
fn connections_that_say_nothing_cannot_keep_clients_out() {
    let server = serve(ServerOptions { max_handshaking: 4, ..ServerOptions::default() });
    let silent: Vec<TcpStream> = (0..20).map(|_| raw::connection(&server)).collect();
    until("the oldest being closed", || server.stats().junk >= 16);
    assert!(server.stats().handshaking <= 4);
    connect(&server).set("k", b"v", soon()).unwrap();
    drop(silent);
    until("all having left", || server.stats().handshaking == 0);
}

#[test]
fn client_that_is_slow_to_prove_itself_is_closed() {
    let server = serve(ServerOptions { deadlines: impatient(), ..ServerOptions::default() });
    let hello = raw::hello(VERSION);
    for said in [0, 1, hello.len() - 1] {
        let mut stream = raw::connection(&server);
        stream.write_all(&hello[..said]).unwrap();
        assert!(raw::is_closed(&mut stream));
    }
    until("all being counted", || server.stats().junk == 3);
}

#[test]
fn client_that_does_not_complete_a_message_is_closed_and_others_go_on() {
    let deadlines = Deadlines { handshake: Deadlines::DEFAULT.handshake, ..impatient() };
    let server = serve(ServerOptions { deadlines, limits: small_limits(), ..ServerOptions::default() });
    let message = raw::set("k", &[1; 90_000]);
    let slow: Vec<TcpStream> = [1, 4, 5, message.len() - 1]
        .into_iter()
        .map(|said| {
            let mut stream = raw::client(&server);
            stream.write_all(&message[..said]).unwrap();
            stream
        })
        .collect();
    let good = connect(&server);
    for i in 1..=10 {
        assert_eq!(good.add("n", 1, soon()), Ok(i));
    }
    for mut stream in slow {
        assert!(raw::is_closed(&mut stream));
    }
    until("all being counted", || server.stats().broken == 4);
    // One that says nothing between its messages is not slow.
    thread::sleep(impatient().frame * 2);
    assert_eq!(good.add("n", 1, soon()), Ok(11));
    let stats = server.stats();
    assert_eq!((stats.clients, stats.buffer, stats.keys), (1, 0, 1));
}

#[test]
fn oversized_message_is_refused_before_memory_is_taken() {
    let server = serve(ServerOptions { limits: small_limits(), ..ServerOptions::default() });
    for length in [1_000_000, u32::MAX] {
        let mut stream = raw::client(&server);
        stream.write_all(&length.to_le_bytes()).unwrap();
        match raw::reply(&mut stream) {
            Some((0, Reply::Refused(StoreError::TooLarge { bytes, .. }))) => {
                assert_eq!(bytes, length as usize)
            }
            other => panic!("{other:?}"),
        }
        assert!(raw::is_closed(&mut stream));
    }
    until("both being counted", || server.stats().broken == 2);
    assert_eq!(server.stats().peak_buffer, 0);
}

#[test]
fn buffers_are_bounded_and_large_messages_take_turns() {
    // Room for two and a bit of the messages that eight clients have begun.
    let max_buffer = 250_000;
    let server = serve(ServerOptions { limits: small_limits(), max_buffer, ..ServerOptions::default() });
    let messages: Vec<Vec<u8>> = (0..8).map(|i| raw::set(&format!("k{i}"), &[i; 100_000])).collect();
    let mut streams: Vec<TcpStream> = messages
        .iter()
        .map(|message| {
            let mut stream = raw::client(&server);
            stream.write_all(&message[..50_000]).unwrap();
            stream
        })
        .collect();
    until("six waiting for room", || server.stats().starved == 6);
    // Small requests go on beside them.
    let good = connect(&server);
    good.set("small", b"v", soon()).unwrap();
    // Completed last first: who waits for room is let in as it comes.
    thread::scope(|scope| {
        for (stream, message) in streams.iter_mut().zip(&messages).rev() {
            scope.spawn(move || {
                stream.write_all(&message[50_000..]).unwrap();
                assert_eq!(raw::reply(stream), Some((1, Reply::Done)));
            });
        }
    });
    for i in 0..8 {
        assert_eq!(good.get(&format!("k{i}"), soon()).unwrap().unwrap(), [i; 100_000]);
    }
    let stats = server.stats();
    assert!(stats.peak_buffer <= max_buffer as u64, "{stats:?}");
    assert_eq!(stats.buffer, 0);
}

/// A server with room for two messages of 100,000 bytes, and two clients that have begun one each. It shows no life,
/// which would stir clients that nobody lets in.
fn server_without_room() -> (StoreServer, Vec<TcpStream>) {
    let deadlines = Deadlines { keepalive: Duration::from_secs(3600), ..Deadlines::DEFAULT };
    let limits = small_limits();
    let server = serve(ServerOptions { limits, deadlines, max_buffer: 210_000, ..ServerOptions::default() });
    let message = raw::set("k", &[1; 100_000]);
    let mut holding: Vec<TcpStream> = (0..2).map(|_| raw::client(&server)).collect();
    for stream in &mut holding {
        stream.write_all(&message[..50_000]).unwrap();
    }
    until("the room being taken", || server.stats().buffer > 200_000);
    (server, holding)
}

#[test]
fn client_that_dies_while_others_wait_for_its_room_lets_them_in() {
    let (server, holding) = server_without_room();
    let mut waiting = raw::client(&server);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            waiting.write_all(&raw::set("k", &[1; 100_000])).unwrap();
            raw::reply(&mut waiting)
        });
        until("its message waiting for room", || server.stats().starved == 1);
        drop(holding);
        assert_eq!(waiting.join().unwrap(), Some((1, Reply::Done)));
    });
}

#[test]
fn large_message_is_not_overtaken_by_those_that_would_fit() {
    let (server, holding) = server_without_room();
    let mut streams = [raw::client(&server), raw::client(&server)];
    streams[0].write_all(&raw::set("large", &[1; 100_000])[..50_000]).unwrap();
    until("the large one waiting", || server.stats().starved == 1);
    streams[1].write_all(&raw::set("less", &[1; 6000])).unwrap();
    until("the smaller one waiting behind it", || server.stats().starved == 2);
    drop(holding);
    streams[0].write_all(&raw::set("large", &[1; 100_000])[50_000..]).unwrap();
    for stream in &mut streams {
        assert_eq!(raw::reply(stream), Some((1, Reply::Done)));
    }
}

#[test]
fn client_that_does_not_read_its_replies_costs_one_message() {
    let server = serve(ServerOptions { limits: small_limits(), ..ServerOptions::default() });
    let good = connect(&server);
    good.set("large", &[3; 100_000], soon()).unwrap();
    // Asks for 100 MB and reads none of it; at some point the server no longer reads its requests either.
    let mut greedy = raw::client(&server);
    let requests: Vec<u8> =
        (1..=1000).flat_map(|id| Request::Get { keys: vec!["large"] }.encode(id)).collect();
    greedy.write_all(&requests).unwrap();
    until("replies piling up", || server.stats().outgoing > 0);
    for i in 1..=50 {
        assert_eq!(good.add("n", 1, soon()), Ok(i));
        assert!(server.stats().outgoing <= 400_000, "{:?}", server.stats());
    }
    // When it does read, it gets everything, in order.
    for id in 1..=1000 {
        match raw::reply(&mut greedy) {
            Some((got, Reply::Values(values))) => {
                assert_eq!((got, values[0].as_ref().map(|v| v.len())), (id, Some(100_000)));
            }
            other => panic!("{other:?}"),
        }
    }
    until("nothing being left to send", || server.stats().outgoing == 0);
}

#[test]
fn waits_are_bounded_in_number_and_bytes_and_places_come_back() {
    let options = ServerOptions { max_waiters: 3, max_waiter_bytes: 2000, ..ServerOptions::default() };
    let server = serve(options);
    let store = connect(&server);
    thread::scope(|scope| {
        let waits: Vec<_> = (0..3).map(|_| scope.spawn(|| store.wait(&["go"], soon()))).collect();
        until("three waits being parked", || server.stats().waiters == 3);
        let outcome = store.wait_change("go", None, soon());
        assert!(
            matches!(&outcome, Err(StoreError::Full { detail, .. }) if detail.contains("max_waiters")),
            "{outcome:?}"
        );
        store.set("go", b"", soon()).unwrap();
        waits.into_iter().for_each(|wait| wait.join().unwrap().unwrap());
    });
    assert!(matches!(
        store.wait(&[&"x".repeat(500)], after(Duration::from_millis(5))),
        Err(StoreError::Timeout { .. })
    ));
    let long: Vec<String> = (0..5).map(|i| format!("{i:0>500}")).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    assert!(matches!(store.wait(&long, soon()), Err(StoreError::Full { .. })));
}

#[test]
fn errors_of_the_server_come_back_as_they_are() {
    let server = serve(ServerOptions { limits: small_limits(), ..ServerOptions::default() });
    let store = connect(&server);
    store.set("words", b"many", soon()).unwrap();
    assert!(matches!(store.add("words", 1, soon()), Err(StoreError::Counter { key, .. }) if key == "words"));
    // What a client would not send is refused by the server as well.
    let mut stream = raw::client(&server);
    stream.write_all(&raw::set("k", &[0; 100_001])).unwrap();
    assert!(matches!(
        raw::reply(&mut stream),
        Some((1, Reply::Refused(StoreError::TooLarge { limit: 100_000, .. })))
    ));
    stream.write_all(&raw::set("", b"v")).unwrap();
    assert!(matches!(raw::reply(&mut stream), Some((1, Reply::Refused(StoreError::Protocol { .. })))));
    stream.write_all(&[9, 0, 0, 0, 200, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(matches!(raw::reply(&mut stream), Some((0, Reply::Refused(StoreError::Protocol { .. })))));
    assert!(raw::is_closed(&mut stream));
}
