//! The server's side of the handshake, without a socket.

use super::handshake::{
    CLIENT_HELLO_BYTES, MAGIC, NONCE_BYTES, PROOF_BYTES, Verdict, Welcome, draw_nonce, parse_client_hello,
    server_hello, welcome,
};
use super::token::{Side, Token};

/// A connection that has not proved itself.
#[derive(Debug)]
pub(super) struct Greeting {
    /// Bytes of the hello or the proof so far.
    have: Vec<u8>,
    /// Once the hello is in: both nonces.
    nonces: Option<([u8; NONCE_BYTES], [u8; NONCE_BYTES])>,
}

/// What to do next with the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read on.
    More,
    /// Say this and read on.
    Say(Vec<u8>),
    /// Say this; it is a client from now on.
    Admit(Vec<u8>),
    /// Say this and close. `wrong_token` tells why.
    Refuse { say: Vec<u8>, wrong_token: bool },
    /// Close: it does not speak this protocol.
    Junk,
}

/// What a server decides by.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    pub(super) token: Option<&'a Token>,
    /// Whether it has as many clients as it takes.
    pub(super) busy: bool,
    pub(super) welcome: Welcome,
}

impl Greeting {
    pub(super) fn new() -> Self {
        Self { have: Vec::with_capacity(CLIENT_HELLO_BYTES), nonces: None }
    }

    /// Most bytes that it takes now; never 0.
    pub(super) fn wanted(&self) -> usize {
        let whole = if self.nonces.is_some() { PROOF_BYTES } else { CLIENT_HELLO_BYTES };
        whole - self.have.len()
    }

    /// Takes in at most [`Greeting::wanted`] bytes.
    pub(super) fn take(&mut self, bytes: &[u8], terms: &Terms<'_>) -> Step {
        self.have.extend_from_slice(bytes);
        if self.nonces.is_none() {
            // Refused at its first wrong byte: junk is not waited for.
            let compared = self.have.len().min(MAGIC.len());
            if self.have[..compared] != MAGIC[..compared] {
                return Step::Junk;
            }
        }
        match (self.wanted(), self.nonces) {
            (1.., _) => Step::More,
            (0, None) => self.hello(terms),
            (0, Some((client, server))) => self.proof(&client, &server, terms),
        }
    }

    fn hello(&mut self, terms: &Terms<'_>) -> Step {
        let refuse =
            |verdict| Step::Refuse { say: server_hello(verdict, &[0; NONCE_BYTES]), wrong_token: false };
        let client = match parse_client_hello(&self.have) {
            Ok(client) => client,
            Err(verdict) => return refuse(verdict),
        };
        if terms.busy {
            return refuse(Verdict::Busy);
        }
        // With no random numbers nobody can be let in; it may be tried again.
        let Ok(server) = draw_nonce() else { return refuse(Verdict::Busy) };
        if terms.token.is_some() {
            self.have.clear();
            self.nonces = Some((client, server));
            return Step::Say(server_hello(Verdict::Prove, &server));
        }
        let mut say = server_hello(Verdict::Welcome, &server);
        say.extend(welcome(Verdict::Welcome, &[0; PROOF_BYTES], terms.welcome));
        Step::Admit(say)
    }

    fn proof(&self, client: &[u8; NONCE_BYTES], server: &[u8; NONCE_BYTES], terms: &Terms<'_>) -> Step {
        let proof = self.have.as_slice().try_into();
        let knows =
            |token: &&Token| proof.is_ok_and(|proof| token.accepts(proof, Side::Client, client, server));
        let refuse = |verdict, wrong_token| Step::Refuse {
            say: welcome(verdict, &[0; PROOF_BYTES], terms.welcome),
            wrong_token,
        };
        match terms.token.filter(knows) {
            None => refuse(Verdict::WrongToken, true),
            // The last place may have gone to another since the hello.
            Some(_) if terms.busy => refuse(Verdict::Busy, false),
            Some(token) => {
                let proof = token.prove(Side::Server, client, server);
                Step::Admit(welcome(Verdict::Welcome, &proof, terms.welcome))
            }
        }
    }
}
