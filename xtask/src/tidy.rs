//! `cargo xtask tidy`: what the compiler and clippy do not check. It reads every file that git knows or would add, and
//! names file, line and rule. It changes nothing.

mod source;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file, self.line, self.text)
    }
}

// Written in two halves, so that this file passes its own check.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const PLACES: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let files = files(root)?;
    for file in &files {
        let bytes =
            std::fs::read(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        findings.extend(check(root, file, &bytes));
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings in {} files", findings.len(), files.len());
    }
    println!("{} files are tidy", files.len());
    Ok(())
}

/// Every file that is tracked or would be added.
fn files(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git, which knows the files of the project")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git ls-files failed: {}", complaint.trim());
    let listing = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let names = listing.split('\0').filter(|name| !name.is_empty());
    // What was deleted and not yet committed is still listed.
    Ok(names.filter(|name| root.join(name).is_file()).map(str::to_owned).collect())
}

fn check(root: &Path, file: &str, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = check_places(file, bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return findings };
    if !file.ends_with(".lock") {
        findings.extend(check_marks(file, text));
    }
    if file.ends_with(".md") {
        let folder = root.join(file);
        let folder = folder.parent().unwrap_or(root);
        findings.extend(check_links(file, text, |target| folder.join(target).exists()));
    }
    if file.ends_with(".rs") {
        findings.extend(source::check(file, text));
    }
    findings
}

/// No path of somebody's machine: in text, and in objects that a compiler wrote.
fn check_places(file: &str, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        for place in PLACES {
            let starts = line.windows(place.len()).enumerate().filter(|(at, window)| {
                let before = at.checked_sub(1).and_then(|before| line.get(before));
                // Inside a longer path or URL it is another word.
                let begins = before
                    .is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b"._-/}$".contains(byte));
                begins && *window == place.as_bytes()
            });
            if starts.count() > 0 {
                let text = format!("{place} is a folder of one machine");
                findings.push(Finding { file: file.to_owned(), line: index + 1, text });
            }
        }
    }
    findings
}

fn check_marks(file: &str, text: &str) -> Vec<Finding> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let lines = text.lines().enumerate();
    let marked = lines.filter_map(|(index, line)| {
        let mark = line.split(|character| !is_word(character)).find(|w| MARKS.contains(w))?;
        let text = format!("{mark}: do it, or open an issue");
        Some(Finding { file: file.to_owned(), line: index + 1, text })
    });
    marked.collect()
}

/// Every relative link of a page leads somewhere.
fn check_links(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for link in line.split("](").skip(1) {
            let target = link.split([')', ' ']).next().unwrap_or("");
            let target = target.trim_matches(['<', '>']);
            let path = target.split('#').next().unwrap_or("");
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !path.is_empty() && !exists(path) {
                let text = format!("the link to {path} leads nowhere");
                findings.push(Finding { file: file.to_owned(), line: index + 1, text });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_text_and_in_objects() {
        let [place, ..] = PLACES;
        let text = format!("fine\nsee {place}x\nhttps://host{place}x is a URL\n");
        assert_eq!(lines(&check_places("a.md", text.as_bytes())), [2]);
        let object = [b"\x7fELF\0\xff".as_slice(), place.as_bytes()].concat();
        assert_eq!(lines(&check_places("a.o", &object)), [1]);
    }

    #[test]
    fn marks_are_found_as_words() {
        let [mark, ..] = MARKS;
        let text = format!("// {mark}: later\nlet {mark}S_DONE = 1;\n");
        assert_eq!(lines(&check_marks("a.rs", &text)), [1]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let page = "[a](there.md) [b](gone.md#part)\n```\n[c](gone.md)\n```\n\
                    [d](https://example.com/gone) [e](#part) ![f](gone.svg \"title\")\n";
        let findings = check_links("a.md", page, |target| target == "there.md");
        assert_eq!(lines(&findings), [1, 5]);
    }

    #[test]
    fn a_finding_names_file_and_line() {
        let finding = Finding { file: "a.rs".into(), line: 3, text: "too long".into() };
        assert_eq!(finding.to_string(), "a.rs:3: too long");
    }
}
