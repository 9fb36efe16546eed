//! Input from a file or standard input, output that appears whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// Opens a file, or standard input for `-`; with a progress bar where someone watches.
pub fn reader(path: &Path) -> Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let about = file.metadata().with_context(|| path.display().to_string())?;
    if about.is_dir() {
        bail!("{} is a folder, not a file", path.display());
    }
    if !io::stderr().is_terminal() || about.len() < 16 << 20 {
        return Ok(Box::new(file));
    }
    let style =
        indicatif::ProgressStyle::with_template("{bytes}/{total_bytes} {wide_bar} {bytes_per_sec}, {eta} left")?;
    Ok(Box::new(indicatif::ProgressBar::new(about.len()).with_style(style).wrap_read(file)))
}

/// The text of an argument, or of standard input for `-`.
pub fn text(argument: OsString, lossy: bool) -> Result<String> {
    let bytes = match argument.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).context("standard input")?;
            bytes
        }
        _ => argument.into_encoded_bytes(),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) if lossy => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        Err(error) => bail!("invalid UTF-8 at byte {}: --lossy reads it as U+FFFD", error.utf8_error().valid_up_to()),
    }
}

/// Where output goes. A file gets its name only when everything was written; until then it is a temporary
/// file beside it, removed if anything fails.
pub enum Output {
    Stdout(BufWriter<io::Stdout>),
    /// A pipe, a device: written as it is.
    Special(BufWriter<File>),
    File(BufWriter<NamedTempFile>, PathBuf),
}

impl Output {
    /// Opens `path`, or standard output for none and for `-`.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Output::Stdout(BufWriter::new(io::stdout())));
        };
        let name = || path.display().to_string();
        if let Ok(about) = std::fs::metadata(path) {
            if about.is_dir() {
                bail!("{} is a folder, not a file", name());
            }
            if !about.is_file() {
                let file = File::options().write(true).open(path).with_context(name)?;
                return Ok(Output::Special(BufWriter::new(file)));
            }
        }
        // Through a symbolic link, to the file that it names.
        let path = match std::fs::symlink_metadata(path) {
            Ok(about) if about.is_symlink() => {
                std::fs::canonicalize(path).with_context(|| format!("the link {}", name()))?
            }
            _ => path.to_path_buf(),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tallow-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).with_context(name)?;
        Ok(Output::File(BufWriter::with_capacity(1 << 16, file), path))
    }

    /// Everything is written: give the file its name.
    pub fn finish(self) -> Result<()> {
        match self {
            Output::Stdout(mut out) => out.flush()?,
            Output::Special(mut out) => out.flush()?,
            Output::File(out, path) => {
                let name = || path.display().to_string();
                let file = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(name)?;
                // A file that is replaced keeps its permissions.
                if let Ok(about) = std::fs::metadata(&path) {
                    file.as_file().set_permissions(about.permissions()).with_context(name)?;
                }
                file.as_file().sync_all().with_context(name)?;
                file.persist(&path).map_err(|e| e.error).with_context(name)?;
            }
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(bytes),
            Output::Special(out) => out.write(bytes),
            Output::File(out, _) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::Special(out) => out.flush(),
            Output::File(out, _) => out.flush(),
        }
    }
}
