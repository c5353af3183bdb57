//! What the eBPF programs must not call.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use object::{
    File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind,
};

/// What the compiler calls to clear, copy or compare more than a few bytes. On BPF these functions go
/// byte by byte: clearing a question to the routing table with one takes almost as long as the answer.
const SLOW: [&str; 5] = ["memset", "memcpy", "memmove", "memcmp", "bcmp"];
/// Functions in which that does not matter, because few packets come there: of a count that is full, of a
/// packet that is traced, of a frame that a benchmark looks at. The ends of their symbols: module and name,
/// each behind its length.
const RARE: [&str; 3] = [
    "7binding12add_to_total",
    "5trace9addresses",
    "4lane7capture",
];

/// An error if the object has a function, not among those that few packets come to, that calls one that
/// goes byte by byte.
pub(crate) fn check(object: &Path) -> Result<()> {
    let name = object.display();
    let bytes = fs::read(object).with_context(|| format!("cannot read {name}"))?;
    let file = File::parse(&*bytes).with_context(|| format!("{name} is no object"))?;
    let slow = slow_calls(&file)?;
    ensure!(
        slow.is_empty(),
        "{name}: {}, which works byte by byte: write word by word what it is to write, in place",
        slow.join(", ")
    );
    Ok(())
}

/// Every such call, as "who calls what".
fn slow_calls(file: &File<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for section in file.sections() {
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(target) = relocation.target() else {
                continue;
            };
            let called = file.symbol_by_index(target)?.name()?;
            if !SLOW.contains(&called) {
                continue;
            }
            let caller = file
                .symbols()
                .filter(|symbol| symbol.kind() == SymbolKind::Text)
                .filter(|symbol| symbol.section_index() == Some(section.index()))
                .find(|symbol| (symbol.address()..symbol.address() + symbol.size()).contains(&at))
                .map_or(Ok("?"), |symbol| symbol.name())?;
            if !RARE.iter().any(|rare| caller.ends_with(rare)) {
                found.push(format!("{caller} calls {called}"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolScope, elf,
        write::{Object, Relocation, StandardSection, Symbol, SymbolSection},
    };

    use super::*;

    /// An object with two functions of two instructions each, the second of which is a call.
    fn object(names: [&str; 2], called: &str) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        let symbol = |name: &str, value, size, kind, section| Symbol {
            name: name.into(),
            value,
            size,
            kind,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        };
        let target = symbol(called, 0, 0, SymbolKind::Unknown, SymbolSection::Undefined);
        let target = object.add_symbol(target);
        for name in names {
            let start = object.append_section_data(text, &[0; 16], 8);
            let section = SymbolSection::Section(text);
            object.add_symbol(symbol(name, start, 16, SymbolKind::Text, section));
            let relocation = Relocation {
                offset: start + 8,
                symbol: target,
                addend: 0,
                flags: RelocationFlags::Elf {
                    r_type: elf::R_BPF_64_32,
                },
            };
            object.add_relocation(text, relocation).unwrap();
        }
        object.write().unwrap()
    }

    fn slow(names: [&str; 2], called: &str) -> Vec<String> {
        let bytes = object(names, called);
        slow_calls(&File::parse(&*bytes).unwrap()).unwrap()
    }

    #[test]
    fn slow_calls_are_found_where_many_packets_come() {
        assert_eq!(
            slow(["natmig", "_RNv7binding12add_to_total"], "memset"),
            ["natmig calls memset"]
        );
        assert_eq!(
            slow(["add_to_total", "_RNv4lane7capture"], "memcpy"),
            ["add_to_total calls memcpy"]
        );
        assert!(slow(["natmig", "fib"], "whole").is_empty());
    }
}
