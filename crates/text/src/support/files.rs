//! Atomic writes: a file is written under a temporary name, synced to disk, and then renamed. Positioned reads and writes.

use std::fs::{File, Metadata};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use crate::{Error, Result};

/// Prefix of the names of unfinished files. A finished folder has none.
pub const TEMPORARY: &str = ".tmp-";

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary file in `folder`. It is deleted when dropped, unless it is persisted.
pub fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))
}

/// A temporary folder in `folder`. It is deleted when dropped, unless it is renamed.
pub fn temporary_folder(folder: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(folder).map_err(|e| Error::io(folder, e))
}

/// Syncs a file to disk, then renames it to `path`.
pub fn persist(file: BufWriter<NamedTempFile>, path: &Path) -> std::io::Result<()> {
    let file = file.into_inner().map_err(|e| e.into_error())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes a small file atomically: afterwards it has all of `bytes`, or its old content.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = BufWriter::new(temporary(folder_of(path))?);
    file.write_all(bytes).and_then(|()| persist(file, path)).map_err(|e| Error::io(path, e))?;
    sync_folder(folder_of(path))
}

/// Writes a small file atomically, unless it exists already.
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

/// Syncs a folder to disk, so that new names survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

/// Removes the temporary files that killed processes left in `folder`. It does not remove folders, because no caller makes any.
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

/// Metadata of a file. An error if it is not a regular file.
pub fn regular(path: &Path) -> std::io::Result<Metadata> {
    let about = std::fs::metadata(path)?;
    match about.is_file() {
        true => Ok(about),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Opens a file of an untrusted folder, if it is a regular file. (To open a pipe could block forever.)
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    regular(path)?;
    File::open(path)
}

/// Reads a file of an untrusted folder.
pub fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` from position `at` of a file.
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

/// Writes all of `bytes` at position `at` of a file.
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
