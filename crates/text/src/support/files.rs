//! Writing so that a name stands for something whole: a temporary name first, then the disk, then the name. Reading at a place.

use std::fs::{File, Metadata};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use crate::{Error, Result};

/// What begins so is not finished; a finished folder has none.
pub const TEMPORARY: &str = ".tmp-";

/// The folder in which this file is.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file in `folder` that goes away unless it is given a name.
pub fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))
}

/// A folder in `folder` that goes away unless it is given a name.
pub fn temporary_folder(folder: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(folder).map_err(|e| Error::io(folder, e))
}

/// Puts a file on the disk, then gives it its name.
pub fn persist(file: BufWriter<NamedTempFile>, path: &Path) -> std::io::Result<()> {
    let file = file.into_inner().map_err(|e| e.into_error())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes a small file as a whole: it is there with all of `bytes`, or as it was before.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = BufWriter::new(temporary(folder_of(path))?);
    file.write_all(bytes).and_then(|()| persist(file, path)).map_err(|e| Error::io(path, e))?;
    sync_folder(folder_of(path))
}

/// Writes a small file as a whole, unless there is one already.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut file = temporary(folder_of(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| Error::io(path, e))?;
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(path, e.error)),
        _ => sync_folder(folder_of(path)),
    }
}

/// Makes new names in a folder survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

/// Removes the files that killed processes left in `folder`. Folders are no work of those who call this.
pub fn remove_temporaries(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && !entry.path().is_dir() {
            match std::fs::remove_file(entry.path()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(entry.path(), e)),
                _ => (),
            }
        }
    }
    Ok(())
}

/// What is known of a file, if it is a regular one.
pub fn regular(path: &Path) -> std::io::Result<Metadata> {
    let about = std::fs::metadata(path)?;
    match about.is_file() {
        true => Ok(about),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Opens a file from a folder that somebody else may have made. It is looked at first: who opens a pipe waits for whoever
/// writes into it, perhaps for ever.
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    regular(path)?;
    File::open(path)
}

/// Reads such a file.
pub fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads bytes at a place of a file, all or an error.
#[cfg(unix)]
pub fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
pub fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => (bytes, at) = (&mut bytes[read..], at + read as u64),
        }
    }
    Ok(())
}

/// Writes bytes at a place of a file, all or an error.
#[cfg(unix)]
pub fn write_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
pub fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            written => (bytes, at) = (&bytes[written..], at + written as u64),
        }
    }
    Ok(())
}
