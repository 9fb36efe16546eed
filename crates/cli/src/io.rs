//! Input from a file or standard input. Output files appear whole or not at all, and replace other kinds of files only with --force.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::interrupt;
use tallow_text::support::{belongs_to, lies_in, same_file};

/// The name of an input in messages.
pub fn source(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_string() } else { path.display().to_string() }
}

/// Opens a file, or standard input for `-`; with a progress bar on a terminal.
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

/// The kind of an output. An existing file is replaced if it is empty, or if its first bytes show the same kind.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A safetensors file by `show`, `table` or `pull`. Its metadata has a key that no model's file has.
    Rows,
    Page,
    Svg,
    Png,
    Npy,
    /// A file of the embedding projector.
    Projector,
    /// Ids as text or JSON.
    Numbers,
    /// Raw bytes, whose kind the first bytes do not show: replaced only with --force.
    Bytes,
}

impl Kind {
    /// Why an existing file is not replaced: the end of the message.
    fn otherwise(self) -> &'static str {
        match self {
            Kind::Rows => " and is not a safetensors file by show, table or pull",
            Kind::Page => " and is not a page by tallow",
            Kind::Svg => " and is not an SVG",
            Kind::Png => " and is not a PNG",
            Kind::Npy => " and is not a NumPy file",
            Kind::Projector => " and is not a file for the projector",
            Kind::Numbers => " and is not a file of numbers",
            Kind::Bytes => " already",
        }
    }

    fn is_of(self, path: &Path) -> io::Result<bool> {
        let mut first = Vec::new();
        File::open(path)?.take(4096).read_to_end(&mut first)?;
        let number = |word: &[u8]| std::str::from_utf8(word).is_ok_and(|word| word.parse::<f32>().is_ok());
        Ok(first.is_empty()
            || match self {
                Kind::Rows => has_our_note(&first),
                Kind::Page => String::from_utf8_lossy(&first).contains("<meta name=\"generator\" content=\"tallow "),
                Kind::Svg => first.starts_with(b"<svg"),
                Kind::Png => first.starts_with(b"\x89PNG\r\n\x1a\n"),
                Kind::Npy => first.starts_with(b"\x93NUMPY"),
                Kind::Projector => {
                    first.starts_with(b"token\tid\n")
                        || number(first.split(|b| b"\t\n".contains(b)).next().unwrap_or(b""))
                }
                Kind::Numbers => {
                    first.iter().all(|b| b.is_ascii_digit() || b.is_ascii_whitespace() || b"[,]".contains(b))
                }
                Kind::Bytes => false,
            })
    }
}

/// Whether these are the first bytes of a safetensors file by `show`, `table` or `pull`.
fn has_our_note(first: &[u8]) -> bool {
    let Some((length, rest)) = first.split_first_chunk() else { return false };
    let header = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|length| rest.get(..length));
    let header: Option<serde_json::Value> = header.and_then(|json| serde_json::from_slice(json).ok());
    header.is_some_and(|header| ["fingerprint", "tied"].iter().any(|note| header["__metadata__"][note].is_string()))
}

/// Which files may be replaced: none that the command reads, and files of another kind only with --force.
#[derive(Args, Default)]
pub struct Outputs {
    /// Replace an existing file of any kind. Without it, only an empty file or one of the same kind is replaced
    #[arg(long)]
    force: bool,
    #[arg(skip)]
    inputs: Vec<PathBuf>,
    #[arg(skip)]
    sealed: Option<PathBuf>,
}

/// The place of an output.
enum Place {
    /// A pipe or a device, which is written directly.
    Special,
    /// A file, which gets this name when it is complete.
    File(PathBuf),
}

impl Outputs {
    /// Registers files, or folders of files, that the command reads.
    pub fn reads(&mut self, inputs: impl IntoIterator<Item = PathBuf>) {
        self.inputs.extend(inputs);
    }

    /// Forbids outputs in a folder.
    pub fn seal(&mut self, folder: &Path) {
        self.sealed = Some(folder.to_path_buf());
    }

    /// Checks whether `path` may be written. Symbolic links are followed.
    fn place(&self, path: &Path, kind: Kind) -> Result<Place> {
        let name = || path.display().to_string();
        if let Some(folder) = self.sealed.as_deref().filter(|folder| lies_in(path, folder)) {
            bail!("{} is in {}, which is read: give a file outside", name(), folder.display());
        }
        let Ok(about) = fs::metadata(path) else {
            ensure!(fs::symlink_metadata(path).is_err(), "the symbolic link {} points to a missing file", name());
            return Ok(Place::File(path.to_path_buf()));
        };
        ensure!(!about.is_dir(), "{} is a folder, not a file", name());
        if !about.is_file() {
            return Ok(Place::Special);
        }
        let read = |input: &PathBuf| if input.is_dir() { belongs_to(path, input) } else { same_file(path, input) };
        // A file that is redirected to standard input counts as read, also without `-`.
        let is_read = self.inputs.iter().any(read) || same_file(path, Path::new("/dev/stdin"));
        ensure!(!is_read, "{} is a file that this command reads: name another one", name());
        if !self.force && !kind.is_of(path).with_context(name)? {
            bail!("{} is there{}: name another file, or replace it with --force", name(), kind.otherwise());
        }
        match fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink()) {
            true => Ok(Place::File(fs::canonicalize(path).with_context(name)?)),
            false => Ok(Place::File(path.to_path_buf())),
        }
    }

    /// Opens `path` for writing, or standard output for none and for `-`.
    pub fn open(&self, path: Option<&Path>, kind: Kind) -> Result<Output> {
        let stdout = Path::new("/dev/stdout");
        let Some(path) = path.filter(|path| *path != Path::new("-") && !same_file(path, stdout)) else {
            let inputs = self.inputs.iter().map(PathBuf::as_path).chain([Path::new("/dev/stdin")]);
            if let Some(read) = inputs.filter(|input| input.is_file()).find(|input| same_file(input, stdout)) {
                bail!("{} is read, and standard output is redirected to it: give another file", read.display());
            }
            return Ok(Output::stdout());
        };
        let name = || path.display().to_string();
        match self.place(path, kind)? {
            Place::Special => {
                let file = File::options().write(true).open(path).with_context(name)?;
                Ok(Output::Special(BufWriter::new(file)))
            }
            Place::File(to) => {
                let draft = Draft::beside(&to)?;
                let file = File::create_new(draft.path(&to)).with_context(name)?;
                Ok(Output::File(BufWriter::with_capacity(1 << 16, file), draft, to))
            }
        }
    }

    /// For a writer that needs a path. `write` gets a temporary path, and returns the files that it wrote there and beside it. They
    /// are renamed, and their final paths are returned.
    pub fn write_by_name(
        &self,
        path: &Path,
        kind: Kind,
        write: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
    ) -> Result<Vec<PathBuf>> {
        let printed = path == Path::new("-") || same_file(path, Path::new("/dev/stdout"));
        ensure!(!printed, "standard output has the printed report: give a file");
        let Place::File(to) = self.place(path, kind)? else {
            let draft = Draft::beside(&std::env::temp_dir().join("special"))?;
            let written = write(&draft.path(Path::new("special")))?;
            let [one] = &written[..] else {
                bail!("{} files are written, and {} takes only one", written.len(), path.display())
            };
            let mut out = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
            io::copy(&mut File::open(one)?, &mut out).with_context(|| path.display().to_string())?;
            return Ok(vec![path.to_path_buf()]);
        };
        let draft = Draft::beside(&to)?;
        let mut places = Vec::new();
        for file in write(&draft.path(&to))? {
            let beside = to.with_file_name(file.file_name().unwrap_or_default());
            let Place::File(place) = self.place(&beside, kind)? else {
                bail!("{} is not a regular file", beside.display())
            };
            places.push((file, place));
        }
        for (file, place) in &places {
            File::open(file).and_then(|open| put(open, file, place)).with_context(|| place.display().to_string())?;
        }
        Ok(places.into_iter().map(|(_, place)| place).collect())
    }
}

/// A temporary folder beside an output, for the incomplete file. It is removed on drop and by a signal.
pub struct Draft(TempDir);

impl Draft {
    fn beside(to: &Path) -> Result<Self> {
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(folder.is_dir(), "{}: there is no folder {}: make it first", to.display(), folder.display());
        let make = || tempfile::Builder::new().prefix(".tallow-").tempdir_in(folder);
        Ok(Draft(interrupt::folder(make).with_context(|| to.display().to_string())?))
    }

    /// The temporary path of the output `to`.
    fn path(&self, to: &Path) -> PathBuf {
        self.0.path().join(to.file_name().unwrap_or_default())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.path());
        interrupt::forget(self.0.path());
    }
}

/// Syncs a file, then renames it. The new file gets the permissions of the file that it replaces.
fn put(file: File, from: &Path, to: &Path) -> io::Result<()> {
    if let Ok(about) = fs::metadata(to) {
        file.set_permissions(about.permissions())?;
    }
    file.sync_all()?;
    fs::rename(from, to)
}

/// An output. A file gets its name in [`Output::finish`].
pub enum Output {
    Stdout(BufWriter<io::Stdout>),
    Special(BufWriter<File>),
    File(BufWriter<File>, Draft, PathBuf),
}

impl Output {
    pub fn stdout() -> Self {
        Output::Stdout(BufWriter::new(io::stdout()))
    }

    /// Flushes the output, and gives a file its name.
    pub fn finish(self) -> Result<()> {
        match self {
            Output::Stdout(mut out) => out.flush()?,
            Output::Special(mut out) => out.flush()?,
            Output::File(out, draft, to) => {
                let name = || to.display().to_string();
                let file = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(name)?;
                put(file, &draft.path(&to), &to).with_context(name)?;
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
            Output::File(out, ..) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::Special(out) => out.flush(),
            Output::File(out, ..) => out.flush(),
        }
    }
}
