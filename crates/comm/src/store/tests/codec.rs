//! Messages, tokens and addresses.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::store::deadlines::Deadlines;
use crate::store::fields::{Fields, put_bytes, put_optional};
use crate::store::tcp::{Reply, Request, Token, TokenError, decode_reply, encode_reply};
use crate::store::{StoreAddress, StoreError, StoreOp};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

proptest! {
    #[test]
    fn fields_come_back(first in bytes(), second in prop::option::of(bytes()), cut in any::<prop::sample::Index>()) {
        let mut out = Vec::new();
        put_bytes(&mut out, &first);
        put_optional(&mut out, second.as_deref());
        let mut fields = Fields::new(&out);
        prop_assert_eq!(fields.bytes(), Ok(&first[..]));
        prop_assert_eq!(fields.optional(), Ok(second.as_deref()));
        prop_assert_eq!(fields.end(), Ok(()));
        // Any shorter record is refused, whatever its lengths say.
        let mut fields = Fields::new(&out[..cut.index(out.len())]);
        prop_assert!(fields.bytes().and_then(|_| fields.optional()).is_err());
    }

    #[test]
    fn requests_come_back(key in ".{1,40}", value in bytes(), known in prop::option::of(bytes()), delta: i64, id in 1u64..) {
        let left = Duration::from_micros(id % 1_000_000_007);
        let keys = vec![key.as_str(), "other"];
        let known = known.as_deref();
        for request in [
            Request::Set { key: &key, value: &value },
            Request::Get { keys: keys.clone() },
            Request::Add { key: &key, delta },
            Request::CompareAndSet { key: &key, expected: known, new: &value },
            Request::Wait { keys, left },
            Request::WaitChange { key: &key, known, left },
            Request::Delete { key: &key },
        ] {
            let message = request.encode(id);
            let length = u32::from_le_bytes(message[..4].try_into().unwrap());
            prop_assert_eq!(length as usize, message.len() - 4);
            prop_assert_eq!(Request::decode(&message[4..]), Ok((id, request)));
            prop_assert!(Request::decode(&message[4..message.len() - 1]).is_err());
        }
    }

    #[test]
    fn replies_come_back(value in bytes(), sum: i64, id: u64, positions in prop::collection::vec(any::<u32>(), 0..9)) {
        let value: Arc<[u8]> = value.into();
        let large: Arc<[u8]> = vec![7; 10_000].into();
        let key = "k".to_owned();
        for reply in [
            Reply::Alive,
            Reply::Done,
            Reply::Values(vec![Some(Arc::clone(&value)), None, Some(large), Some(value)]),
            Reply::Sum(sum),
            Reply::Swapped,
            Reply::Current(None),
            Reply::Deleted(true),
            Reply::Missing(positions),
            Reply::Refused(StoreError::Full { key: key.clone(), detail: "of keys".to_owned() }),
            Reply::Refused(StoreError::Counter { key: key.clone(), detail: "words".to_owned() }),
            Reply::Refused(StoreError::TooLarge { what: "request", key, bytes: 9, limit: 8 }),
        ] {
            let message: Vec<u8> = encode_reply(id, &reply).iter().flat_map(|p| p.bytes().to_vec()).collect();
            let length = u32::from_le_bytes(message[..4].try_into().unwrap());
            prop_assert_eq!(length as usize, message.len() - 4);
            prop_assert_eq!(decode_reply(&message[4..], "server"), Ok((id, reply)));
            prop_assert!(decode_reply(&message[4..message.len() - 1], "server").is_err());
        }
    }

    #[test]
    fn junk_is_refused_without_panic(junk in bytes()) {
        let _ = Request::decode(&junk);
        let _ = decode_reply(&junk, "server");
    }
}

#[test]
fn token_is_taken_from_the_environment_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "0123456789abcdef-in-a-file\n").unwrap();
    let with = |token: Option<&str>, path: Option<&std::path::Path>| {
        let (token, path) = (token.map(OsString::from), path.map(|path| path.as_os_str().to_owned()));
        Token::from_variables(move |name| match name {
            Token::VARIABLE => token.clone(),
            Token::FILE_VARIABLE => path.clone(),
            other => panic!("{other} was asked for"),
        })
    };
    assert!(with(None, None).unwrap().is_none());
    assert!(with(Some(""), None).unwrap().is_none());
    assert!(with(Some("0123456789abcdef"), None).unwrap().is_some());
    assert!(with(None, Some(&file)).unwrap().is_some());
    assert_eq!(
        with(Some("short"), Some(&file)).unwrap_err(),
        TokenError::Short { origin: "EPLB_STORE_TOKEN".to_owned(), bytes: 5 }
    );
    let missing = with(None, Some(&folder.path().join("none"))).unwrap_err().to_string();
    assert!(missing.contains("none"), "{missing}");
}

#[test]
fn token_is_not_shown() {
    let token = Token::new(b"0123456789abcdef").unwrap();
    assert!(!format!("{token:?}").contains("0123"));
}

#[test]
fn addresses_are_read_and_written() {
    for good in ["tcp://host:29500", "tcp://10.0.0.1:1", "tcp://[::1]:65535", "file:///shared/run 7"] {
        assert_eq!(good.parse::<StoreAddress>().unwrap().to_string(), good);
    }
    assert_eq!("tcp://host:1/".parse(), Ok(StoreAddress::Tcp("host:1".to_owned())));
    for bad in [
        "",
        "host:1",
        "tcp://",
        "tcp://host",
        "tcp://:1",
        "tcp://host:0",
        "tcp://host:65536",
        "tcp://::1:5",
        "tcp://host:x",
        "file://",
        "file://relative",
        "http://host:1",
    ] {
        let error = bad.parse::<StoreAddress>().unwrap_err().to_string();
        assert!(error.contains("tcp://host:port"), "{error}");
    }
}

#[test]
fn errors_name_few_of_many_keys() {
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    let text = StoreError::Timeout { op: StoreOp::Wait, keys, waited: Duration::from_secs(3) }.to_string();
    assert!(text.contains("\"k7\" and 12 more") && text.contains("3s") && !text.contains("k8"), "{text}");
}

#[test]
fn table_of_deadlines_shows_the_defaults() {
    let Deadlines {
        connect,
        operation,
        join,
        accept,
        collective,
        renew,
        peer_timeout,
        keepalive,
        silence,
        handshake,
        frame,
        reply_grace,
    } = Deadlines::default();
    let rows = [
        ("connect", connect),
        ("operation", operation),
        ("join", join),
        ("accept", accept),
        ("collective", collective),
        ("renew", renew),
        ("peer_timeout", peer_timeout),
        ("keepalive", keepalive),
        ("silence", silence),
        ("handshake", handshake),
        ("frame", frame),
        ("reply_grace", reply_grace),
    ];
    let page = include_str!("../deadlines.rs");
    for (name, value) in rows {
        let shown = if value.subsec_millis() == 0 {
            format!("{} s", value.as_secs())
        } else {
            format!("{} ms", value.as_millis())
        };
        let row = format!("//! | `{name}` | {shown} |");
        assert!(page.contains(&row), "the table has no row {row:?}");
    }
}
