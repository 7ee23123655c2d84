//! The few Python literals that an `.npy` header is made of. No recursion: depth cannot exhaust the stack.

/// A place in the text of a header.
pub(super) struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Consumes `token` if it is next.
    pub(super) fn eat(&mut self, token: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Consumes `token`, which must be next.
    pub(super) fn expect(&mut self, token: char) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected {token:?} at {:?}", self.glance())) }
    }

    /// A string in single or double quotes, without escapes.
    pub(super) fn string(&mut self) -> Result<String, String> {
        self.skip_space();
        let quote = match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return Err(format!("expected a quoted word at {:?}", self.glance())),
        };
        let text = &self.rest[1..];
        let end = text.find(quote).ok_or("an unclosed quote")?;
        self.rest = &text[end + 1..];
        Ok(text[..end].to_owned())
    }

    /// A dtype: a string, or a list or tuple kept as its text.
    pub(super) fn descr(&mut self) -> Result<String, String> {
        self.skip_space();
        if !self.rest.starts_with(['[', '(']) {
            return self.string();
        }
        let (mut depth, mut quote) = (0usize, None);
        for (position, symbol) in self.rest.char_indices() {
            match (quote, symbol) {
                (Some(open), _) if open == symbol => quote = None,
                (Some(_), _) => {}
                (None, '\'' | '"') => quote = Some(symbol),
                (None, '[' | '(') => depth += 1,
                (None, ']' | ')') => depth -= 1,
                (None, _) => {}
            }
            if depth == 0 {
                let (text, rest) = self.rest.split_at(position + symbol.len_utf8());
                self.rest = rest;
                return Ok(text.to_owned());
            }
        }
        Err("an unclosed bracket".into())
    }

    /// `True` or `False`.
    pub(super) fn boolean(&mut self) -> Result<bool, String> {
        self.skip_space();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(format!("expected True or False at {:?}", self.glance()))
    }

    /// A tuple of at most `most` whole numbers, 0 or more.
    pub(super) fn tuple(&mut self, most: usize) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.eat(')') {
            if numbers.len() == most {
                return Err(format!("the shape has more than {most} axes"));
            }
            numbers.push(self.number()?);
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(numbers)
    }

    fn number(&mut self) -> Result<u64, String> {
        self.skip_space();
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let number = self.rest[..end]
            .parse()
            .map_err(|_| format!("not a number from 0 to 2^64 - 1 at {:?}", self.glance()))?;
        // Python 2 marked long integers with an L.
        self.rest = self.rest[end..].strip_prefix('L').unwrap_or(&self.rest[end..]);
        Ok(number)
    }

    /// Nothing but space may be left.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.skip_space();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(format!("{:?} stands after the dictionary", self.glance()))
        }
    }

    /// The next few characters, for messages.
    fn glance(&self) -> String {
        self.rest.chars().take(16).collect()
    }
}
