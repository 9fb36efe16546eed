//! What is not finished goes away when a signal ends the program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// What would be left.
#[cfg_attr(not(unix), allow(dead_code))]
enum Unfinished {
    /// A folder of ours.
    Folder(PathBuf),
    /// The library's temporary files in a folder of the user's, but for those that were there before.
    Temporaries(PathBuf, Vec<OsString>),
}

static UNFINISHED: Mutex<Vec<Unfinished>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(|e| e.into_inner())
}

/// Makes a folder that a signal removes, until [`forget`].
pub fn folder<E>(make: impl FnOnce() -> Result<tempfile::TempDir, E>) -> Result<tempfile::TempDir, E> {
    listen();
    // A signal waits until the folder is known.
    let mut unfinished = unfinished();
    let folder = make()?;
    unfinished.push(Unfinished::Folder(folder.path().to_path_buf()));
    Ok(folder)
}

/// The folder is finished, or gone.
pub fn forget(folder: &Path) {
    unfinished().retain(|other| !matches!(other, Unfinished::Folder(path) if path == folder));
}

/// Does not return while a signal ends the program: what fails then, fails because its files are gone.
pub fn give_way() {
    drop(unfinished());
}

/// From now on a signal removes the temporary files that the library makes in `folder`.
pub fn temporaries_in(folder: PathBuf) {
    listen();
    let before = temporaries(&folder);
    unfinished().push(Unfinished::Temporaries(folder, before));
}

fn temporaries(folder: &Path) -> Vec<OsString> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".tmp-")).collect()
}

#[cfg(unix)]
fn remove(unfinished: &Unfinished) {
    match unfinished {
        // The work goes on meanwhile and may put another file there.
        Unfinished::Folder(folder) => _ = (0..100).any(|_| std::fs::remove_dir_all(folder).is_ok()),
        Unfinished::Temporaries(folder, before) => {
            let ours = temporaries(folder).into_iter().filter(|name| !before.contains(name));
            ours.for_each(|name| _ = std::fs::remove_file(folder.join(name)));
        }
    }
}

#[cfg(unix)]
fn listen() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // What nohup or a shell's `&` has turned off stays off. Only Linux says it in a file.
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
            // Ends the program as the signal would have, so that a shell sees 128 + signal.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        });
    });
}

#[cfg(not(unix))]
fn listen() {}
