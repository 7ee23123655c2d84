//! The shared secret of a TCP store, and proofs of knowing it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::handshake::{NONCE_BYTES, PROOF_BYTES, VERSION};

/// A secret that all ranks of a job share. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Token {
    secret: Arc<[u8]>,
}

/// A token that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Too easily guessed.
    #[error(
        "the store token from {origin} has {bytes} bytes, fewer than {}; make one with `openssl rand -hex 32`",
        Token::SHORTEST
    )]
    Short {
        /// Where it came from.
        origin: String,
        /// Its length.
        bytes: usize,
    },
    /// The file with the token cannot be read.
    #[error("the store token cannot be read from {path:?}: {detail}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
}

/// Which side a proof is for, so that one side's proof is never good for the other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Client,
    Server,
}

impl Token {
    /// Fewest bytes: a proof seen on the network lets an attacker try secrets at leisure.
    pub const SHORTEST: usize = 16;
    /// Environment variable with the token.
    pub const VARIABLE: &'static str = "EPLB_STORE_TOKEN";
    /// Environment variable with the path of a file that holds it, looked at when the first is not set.
    pub const FILE_VARIABLE: &'static str = "EPLB_STORE_TOKEN_FILE";

    /// A token from bytes.
    ///
    /// # Errors
    /// Fewer than [`Token::SHORTEST`] bytes.
    pub fn new(secret: &[u8]) -> Result<Self, TokenError> {
        Self::from(secret, "the caller")
    }

    /// A token from a file, without the white space at its end.
    ///
    /// # Errors
    /// A file that cannot be read, or holds too few bytes.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let bytes = std::fs::read(path)
            .map_err(|error| TokenError::File { path: path.to_owned(), detail: error.to_string() })?;
        Self::from(bytes.trim_ascii_end(), &path.display().to_string())
    }

    /// The token of the environment; `None` when neither variable is set.
    ///
    /// # Errors
    /// As [`Token::new`] and [`Token::from_file`].
    pub fn from_env() -> Result<Option<Self>, TokenError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// [`Token::from_env`] with an environment of the caller's. A variable that is empty is not set.
    ///
    /// # Errors
    /// As [`Token::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, TokenError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(secret) = set(Self::VARIABLE) {
            return Self::from(secret.as_encoded_bytes(), Self::VARIABLE).map(Some);
        }
        set(Self::FILE_VARIABLE).map(|path| Self::from_file(Path::new(&path))).transpose()
    }

    fn from(secret: &[u8], origin: &str) -> Result<Self, TokenError> {
        if secret.len() < Self::SHORTEST {
            return Err(TokenError::Short { origin: origin.to_owned(), bytes: secret.len() });
        }
        Ok(Self { secret: Arc::from(secret) })
    }

    /// Proof that `side` knows the token, good for this pair of nonces only.
    pub(super) fn prove(
        &self,
        side: Side,
        client: &[u8; NONCE_BYTES],
        server: &[u8; NONCE_BYTES],
    ) -> [u8; PROOF_BYTES] {
        self.mac(side, client, server).finalize().into_bytes().into()
    }

    /// Whether a proof is right, in time that does not depend on where it is wrong.
    pub(super) fn accepts(
        &self,
        proof: &[u8; PROOF_BYTES],
        side: Side,
        client: &[u8; NONCE_BYTES],
        server: &[u8; NONCE_BYTES],
    ) -> bool {
        self.mac(side, client, server).verify_slice(proof).is_ok()
    }

    fn mac(&self, side: Side, client: &[u8], server: &[u8]) -> Hmac<Sha256> {
        // HMAC hashes a longer key and pads a shorter one itself: it takes keys of any length.
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(match side {
            Side::Client => b"eplb store: client",
            Side::Server => b"eplb store: server",
        });
        mac.update(&VERSION.to_le_bytes());
        mac.update(client);
        mac.update(server);
        mac
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}
