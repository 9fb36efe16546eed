//! Removes unfinished output when a signal ends the program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

#[cfg(unix)]
use tallow_text::support::same_file;

/// Output that a signal removes.
#[cfg_attr(not(unix), allow(dead_code))]
enum Unfinished {
    /// A temporary folder of this process.
    Folder(PathBuf),
    /// The temporary files of this process in a folder of the user. The list holds the names that were there before: one of them can be
    /// an input.
    Temporaries(PathBuf, Vec<OsString>),
}

static UNFINISHED: Mutex<Vec<Unfinished>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(|e| e.into_inner())
}

/// Makes a folder that a signal removes, until [`forget`] is called.
pub fn folder<E>(make: impl FnOnce() -> Result<tempfile::TempDir, E>) -> Result<tempfile::TempDir, E> {
    listen();
    // The lock delays the signal until the folder is registered.
    let mut unfinished = unfinished();
    let folder = make()?;
    unfinished.push(Unfinished::Folder(folder.path().to_path_buf()));
    Ok(folder)
}

/// From now on a signal leaves this folder alone.
pub fn forget(folder: &Path) {
    unfinished().retain(|other| !matches!(other, Unfinished::Folder(path) if path == folder));
}

/// Blocks while a signal handler removes files, so that errors about these files are not reported.
pub fn give_way() {
    drop(unfinished());
}

/// From now on a signal removes the temporary files that this process makes in `folder`. Those of other processes stay.
pub fn temporaries_in(folder: PathBuf) {
    listen();
    let before = temporaries(&folder);
    unfinished().push(Unfinished::Temporaries(folder, before));
}

fn temporaries(folder: &Path) -> Vec<OsString> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".tmp-")).collect()
}

/// Whether this process has the file open. The library keeps a temporary file open until it is renamed.
#[cfg(unix)]
fn is_open(path: &Path) -> bool {
    let mut open = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    open.any(|file| same_file(&file.path(), path))
}

#[cfg(unix)]
fn remove(unfinished: &Unfinished) {
    match unfinished {
        // Other threads still run and can add a file.
        Unfinished::Folder(folder) => _ = (0..100).any(|_| std::fs::remove_dir_all(folder).is_ok()),
        Unfinished::Temporaries(folder, before) => {
            let new = temporaries(folder).into_iter().filter(|name| !before.contains(name));
            let ours = new.map(|name| folder.join(name)).filter(|path| is_open(path));
            ours.for_each(|path| _ = std::fs::remove_file(path));
        }
    }
}

#[cfg(unix)]
fn listen() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // Signals that nohup or a shell's `&` has set to be ignored stay ignored. Only Linux lists them in a file.
        let ignored = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or_default());
        let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| match ignored {
            Some(mask) => mask >> (signal - 1) & 1 == 0,
            None => *signal != SIGHUP,
        });
        let Ok(mut signals) = signal_hook::iterator::Signals::new(heard) else { return };
        std::thread::spawn(move || {
            let Some(signal) = signals.forever().next() else { return };
            let unfinished = unfinished();
            unfinished.iter().for_each(remove);
            // Ends the program by the signal itself, so that a shell sees 128 + signal.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        });
    });
}

#[cfg(not(unix))]
fn listen() {}
