//! The machine, in words.

use std::path::Path;
use std::process::Command;

/// Processor, cores, kernel, the file system measured on, and the date.
pub(crate) fn in_words(place: &Path) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(place).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.lines().last().map(|line| line.trim().to_owned())
    };
    let file_system = said("df", &["--output=fstype"]).unwrap_or_else(|| "unknown".to_owned());
    let date = Command::new("date").arg("-u").arg("+%Y-%m-%d %H:%M UTC").output();
    let date = date.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    format!(
        "{cores} cores ({}), Linux {kernel}, {file_system}, {}",
        cpu.unwrap_or("unknown processor"),
        date.trim()
    )
}
