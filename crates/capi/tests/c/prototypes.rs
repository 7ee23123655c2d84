//! What the header declares, read from its text.

/// A function of the header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prototype {
    /// What it returns.
    pub(crate) returns: String,
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameter {
    /// Its type, such as `const struct eplb_engine *`.
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl Parameter {
    /// The structure that it points to, or points to a pointer to.
    pub(crate) fn structure(&self) -> Option<&str> {
        self.kind.split("struct ").nth(1)?.split([' ', '*']).next()
    }

    /// Stars of its type.
    pub(crate) fn depth(&self) -> usize {
        self.kind.matches('*').count()
    }
}

/// The text without comments, in one line.
fn code(header: &str) -> String {
    let lines = header.lines().map(|line| line.split("//").next().unwrap_or_default());
    let text: String = lines.filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" ");
    // What is between `/*` and `*/` too.
    let mut parts = text.split("/*");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once("*/").map_or("", |(_, rest)| rest))
}

/// All functions, in the order of the header.
pub(crate) fn functions(header: &str) -> Vec<Prototype> {
    let code = code(header);
    let (_, after) = code.split_once("extern \"C\" {").expect("the functions of the header are C's");
    after.split(';').filter_map(function).collect()
}

fn function(statement: &str) -> Option<Prototype> {
    let (head, list) = statement.trim().split_once('(')?;
    let at = head.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_')? + 1;
    let list = list.trim_end().strip_suffix(')')?;
    let parameter = |text: &str| {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let at = text.rfind([' ', '*'])? + 1;
        Some(Parameter { kind: text[..at].trim().to_owned(), name: text[at..].to_owned() })
    };
    Some(Prototype {
        returns: head[..at].trim().to_owned(),
        name: head[at..].to_owned(),
        parameters: list.split(',').filter(|text| text.trim() != "void").filter_map(parameter).collect(),
    })
}

/// Structures whose fields the header shows, and whether each begins with its size.
pub(crate) fn structures(header: &str) -> Vec<(String, bool)> {
    let code = code(header);
    let shown = code.split("typedef struct ").skip(1).filter_map(|text| text.split_once('{'));
    let shown = shown.filter(|(name, _)| !name.contains(';'));
    shown
        .map(|(name, body)| (name.trim().to_owned(), body.trim_start().starts_with("size_t struct_size;")))
        .collect()
}

#[test]
fn declarations_are_read() {
    let header = "#include <x.h>\n/* a;b(c); */ typedef struct eplb_a eplb_a;\ntypedef struct eplb_b {\n  // it; is\n  size_t struct_size;\n} eplb_b;\n\
                  typedef struct eplb_c { int x; } eplb_c;\nextern \"C\" {\n// says (what)\nuint32_t eplb_none(void);\n\
                  enum eplb_status eplb_do(const struct eplb_a *a,\n    struct eplb_b **made, void *state, double x);\n}";
    let found = functions(header);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].returns.as_str(), found[0].name.as_str()), ("uint32_t", "eplb_none"));
    assert!(found[0].parameters.is_empty());
    let told: Vec<_> =
        found[1].parameters.iter().map(|p| (p.structure(), p.depth(), p.name.as_str())).collect();
    let expected =
        [(Some("eplb_a"), 1, "a"), (Some("eplb_b"), 2, "made"), (None, 1, "state"), (None, 0, "x")];
    assert_eq!(told, expected);
    assert_eq!(structures(header), [("eplb_b".to_owned(), true), ("eplb_c".to_owned(), false)]);
}
