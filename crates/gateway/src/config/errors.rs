//! How mistakes in the settings are told: one line each, never a secret, never a line break that
//! the value brought along.

use std::fmt;

use config::{Value, ValueKind};

/// What a value looks like in an error is cut here: enough to recognise it.
const SHOWN_CHARS_MAX: usize = 80;

/// Two typing errors are a slip; three make another word.
const SLIPS_MAX: usize = 2;

/// Every mistake found in the settings. There is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<Mistake>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 mistake in the configuration:")?,
            many => write!(f, "{many} mistakes in the configuration:")?,
        }
        for mistake in &self.0 {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The key, or the place in a file that could not be read as far as keys.
    pub(super) at: String,
    /// What would be right.
    pub(super) right: String,
    /// What is there instead; `None` where it may be a secret.
    pub(super) got: Option<String>,
    /// File and line, environment variable, flag or built-in.
    pub(super) origin: Option<String>,
}

impl Mistake {
    /// A mistake whose value is not shown.
    pub(super) fn new(
        at: impl Into<String>,
        right: impl Into<String>,
        origin: Option<String>,
    ) -> Self {
        Self { at: at.into(), right: right.into(), got: None, origin }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = format!("{}: {}", self.at, self.right);
        if let Some(got) = &self.got {
            line.push_str("; got ");
            line.push_str(got);
        }
        if let Some(origin) = &self.origin {
            line.push_str(&format!(" ({origin})"));
        }
        f.write_str(&one_line(&line))
    }
}

/// A value as TOML on one line, cut when long.
pub(super) fn show(value: &Value) -> String {
    let text = one_line(&to_toml(value).to_string());
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The value as TOML has it.
pub(super) fn to_toml(value: &Value) -> toml::Value {
    match &value.kind {
        ValueKind::Boolean(yes) => toml::Value::Boolean(*yes),
        ValueKind::I64(number) => toml::Value::Integer(*number),
        ValueKind::Float(number) => toml::Value::Float(*number),
        ValueKind::Array(items) => toml::Value::Array(items.iter().map(to_toml).collect()),
        ValueKind::Table(table) => toml::Value::Table(
            table.iter().map(|(key, value)| (key.clone(), to_toml(value))).collect(),
        ),
        other => toml::Value::String(other.to_string()),
    }
}

/// Where a value was set; of a table, where something in it was (merging tables loses their own).
pub(super) fn origin(value: &Value) -> Option<String> {
    let inner = || match &value.kind {
        ValueKind::Table(table) => {
            let (_, first) = table.iter().min_by_key(|(key, _)| *key)?;
            origin(first)
        }
        _ => None,
    };
    value.origin().map(str::to_owned).or_else(inner)
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(wrong: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (distance(wrong, name), *name))
        .filter(|(slips, name)| *slips <= SLIPS_MAX && *slips < name.len())
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements between two names (Levenshtein); more than
/// [`SLIPS_MAX`] where the lengths alone say so.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > SLIPS_MAX {
        return SLIPS_MAX + 1;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}
