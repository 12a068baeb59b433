//! Other programs: run, and on failure told by name with what they said.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a program whose output the developer sees.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.status().with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed: {status}");
    }
    Ok(())
}

/// Runs a program for what it prints, without the last line break.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command.output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed: {}\n{}", output.status, said.trim_end());
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
