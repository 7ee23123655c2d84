//! Where a store is, as people write it: `tcp://host:port` or `file:///folder`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use super::deadlines::Deadlines;
use super::error::StoreError;
use super::limits::Limits;
use super::tcp::Token;
use super::{FileStore, Store, TcpStore};

/// The place of a store that several processes reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// A [`TcpStore`] at `host:port` (IPv6 in brackets).
    Tcp(String),
    /// A [`FileStore`] in a folder.
    File(PathBuf),
}

/// A text that names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no store ({reason}); write tcp://host:port or file:///shared/folder")]
pub struct BadStoreAddress {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for StoreAddress {
    type Err = BadStoreAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason| BadStoreAddress { text: text.to_owned(), reason };
        let (scheme, place) = text.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        match scheme {
            "tcp" => {
                let place = place.strip_suffix('/').unwrap_or(place);
                let (host, port) = place.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
                let bracketed = host.starts_with('[') && host.ends_with(']');
                if host.is_empty() || (host.contains(':') && !bracketed) {
                    return Err(bad("its host is empty, or an IPv6 address without brackets"));
                }
                match port.parse::<u16>() {
                    Ok(1..) => Ok(Self::Tcp(place.to_owned())),
                    _ => Err(bad("its port is not a number from 1 to 65535")),
                }
            }
            "file" if place.starts_with('/') => Ok(Self::File(PathBuf::from(place))),
            "file" => Err(bad("the folder is not absolute")),
            _ => Err(bad("its scheme is neither tcp nor file")),
        }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(place) => write!(f, "tcp://{place}"),
            Self::File(folder) => write!(f, "file://{}", folder.display()),
        }
    }
}

impl StoreAddress {
    /// Opens it. A TCP store whose server does not listen yet is tried again until the deadline.
    ///
    /// # Errors
    /// As [`TcpStore::connect`] and [`FileStore::open`].
    pub fn open(
        &self,
        token: Option<&Token>,
        deadlines: &Deadlines,
        deadline: Instant,
    ) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Tcp(place) => Arc::new(TcpStore::connect(place, token, deadlines, deadline)?),
            Self::File(folder) => Arc::new(FileStore::open(folder, Limits::default(), deadline)?),
        })
    }
}
