//! Junk at the server's port: whatever is sent, it neither stops nor serves it, and goes on serving the others.

use std::io::Write;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::{connect, raw, serve, soon, until};
use crate::store::tcp::{MAGIC, Request, ServerOptions, StoreServer, TcpStore, VERSION};
use crate::store::{Limits, Store};

/// One server for all cases: what one leaves behind, the next would meet.
static SERVER: LazyLock<(StoreServer, TcpStore)> = LazyLock::new(|| {
    let limits = Limits { max_value: 5000, max_total: 200_000 };
    let server = serve(ServerOptions { limits, ..ServerOptions::default() });
    let client = connect(&server);
    (server, client)
});

/// Sends junk, hangs up, and sees that the server has survived with its memory given back.
fn send(past_handshake: bool, junk: &[u8]) {
    let (server, client) = &*SERVER;
    let mut stream = if past_handshake { raw::client(server) } else { raw::connection(server) };
    // The server may hang up before all of it is sent.
    let _ = stream.write_all(junk);
    let sum = client.add("n", 1, soon()).unwrap();
    drop(stream);
    assert!(sum > 0);
    until("the junk and all that it held being gone", || {
        let stats = server.stats();
        stats.clients == 1 && stats.handshaking + stats.buffer + stats.outgoing + stats.waiters == 0
    });
    assert!(server.stats().bytes <= 200_000);
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn server_survives_any_bytes(junk in bytes(300)) {
        send(false, &junk);
    }

    #[test]
    fn server_survives_any_bytes_behind_a_good_beginning(cut in 0..=42usize, junk in bytes(300)) {
        let hello = raw::hello(VERSION);
        send(false, &[&hello[..cut], &junk].concat());
        send(false, &[MAGIC, &junk[..]].concat());
    }

    #[test]
    fn server_survives_any_message(messages in prop::collection::vec(bytes(60), 0..8)) {
        let framed = |message: &Vec<u8>| [&(message.len() as u32).to_le_bytes()[..], message].concat();
        send(true, &messages.iter().flat_map(framed).collect::<Vec<u8>>());
    }

    #[test]
    fn server_survives_damaged_requests(
        value in bytes(100),
        at in any::<prop::sample::Index>(),
        damage in 1..=255u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let left = std::time::Duration::from_secs(60);
        let requests = [
            Request::Set { key: "key", value: &value },
            Request::CompareAndSet { key: "key", expected: Some(&value), new: &value },
            Request::Wait { keys: vec!["key", "never"], left },
            Request::WaitChange { key: "key", known: Some(&value), left },
            Request::Get { keys: vec!["key", "n"] },
            Request::Add { key: "key", delta: i64::MAX },
            Request::Delete { key: "key" },
        ];
        let mut bytes: Vec<u8> = requests.iter().zip(1..).flat_map(|(request, id)| request.encode(id)).collect();
        let at = at.index(bytes.len());
        bytes[at] ^= damage;
        send(true, &bytes[..cut.index(bytes.len() + 1)]);
    }
}
