//! Reads a topology file: every error names file, line, column and remedy.

use std::fmt;

use super::Topology;

/// What is wrong with a topology file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TopologyError {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            problem,
            remedy,
        } = self;
        write!(f, "{file}:{line}:{column}: {problem}; {remedy}")
    }
}

pub(super) fn parse(_file: &str, _text: &str) -> Result<Topology, TopologyError> {
    todo!()
}
