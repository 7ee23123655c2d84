//! The calls that the fakes recorded.

use std::collections::HashMap;

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) fields: HashMap<String, String>,
}

impl Call {
    /// A field, empty if there is none.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    /// A field that is a number.
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_else(|_| panic!("no {field} in {self:?}"))
    }
}

/// Calls in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(pub(crate) Vec<Call>);

impl Log {
    /// Lines of `t=THREAD NAME field=value ..`.
    pub(crate) fn parse(text: &str) -> Self {
        let call = |line: &str| {
            let mut words = line.split(' ');
            let thread = words.next()?.strip_prefix("t=")?;
            let name = words.next()?.to_owned();
            let mut fields: HashMap<String, String> =
                words.filter_map(|word| word.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
            fields.insert("thread".into(), thread.into());
            Some(Call { name, fields })
        };
        Self(text.lines().filter_map(call).collect())
    }

    /// Number of calls of a function.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.0.iter().filter(|call| call.name == name).count()
    }

    /// Where a function was first called.
    pub(crate) fn first(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|call| call.name == name)
    }
}
