//! The flags that pictures share.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tallow_view::{Figure, Fonts, Lang, Projector};

use crate::io::{Kind, Outputs};

/// Where pictures go, and how they look.
#[derive(Args)]
pub struct Pictures {
    /// Write an HTML page: one file that needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write an SVG figure; its text is drawn as outlines
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write the same figure as a PNG
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Pixels of the PNG per pixel of the SVG
    #[arg(long, default_value_t = 2.0)]
    pub scale: f32,
    /// Language of the labels; auto is the language of LC_ALL, LC_MESSAGES or LANG, or else of the text
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(["zh", "en", "auto"]).try_map(lang))]
    pub lang: std::option::Option<Lang>, // in full, so that clap does not read it as an optional flag
    /// A font file for characters that the bundled Noto Sans SC lacks
    #[arg(long, value_name = "FILE")]
    pub font: Option<PathBuf>,
    #[command(flatten)]
    pub outputs: Outputs,
}

/// Parses a language; `None` for auto.
fn lang(name: String) -> tallow_view::Result<Option<Lang>> {
    if name == "auto" { Ok(None) } else { name.parse().map(Some) }
}

impl Pictures {
    /// The language of --lang, or of the environment, or of `text`.
    pub fn language(&self, text: &str) -> Lang {
        let set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let environment = ["LC_ALL", "LC_MESSAGES", "LANG"].iter().find(|name| set(name)).map(std::env::var);
        match (self.lang, environment) {
            (Some(lang), _) => lang,
            (None, Some(Ok(value))) if value.starts_with("zh") => Lang::Zh,
            (None, Some(Ok(value))) if !value.starts_with("C") && value != "POSIX" => Lang::En,
            _ => Lang::of_text(text),
        }
    }

    /// Registers files that the command reads, so that they are not replaced.
    pub fn reads(&mut self, inputs: impl IntoIterator<Item = PathBuf>) {
        self.outputs.reads(inputs);
        self.outputs.reads(self.font.clone());
    }

    /// Writes the files of the flags. Returns their paths.
    pub fn write(
        &self,
        page: impl FnOnce() -> tallow_view::Result<String>,
        figure: impl FnOnce() -> tallow_view::Result<Figure>,
    ) -> Result<Vec<&Path>> {
        if let Some(path) = &self.html {
            write(&self.outputs, path, Kind::Page, page()?.as_bytes())?;
        }
        if self.svg.is_some() || self.png.is_some() {
            let fonts = match &self.font {
                Some(path) => Fonts::bundled().with_file(path)?,
                None => Fonts::bundled(),
            };
            let figure = figure()?;
            if let Some(path) = &self.svg {
                write(&self.outputs, path, Kind::Svg, figure.svg(&fonts)?.as_bytes())?;
            }
            if let Some(path) = &self.png {
                write(&self.outputs, path, Kind::Png, &figure.png(&fonts, self.scale)?)?;
            }
        }
        Ok([&self.html, &self.svg, &self.png].into_iter().flatten().map(PathBuf::as_path).collect())
    }
}

/// Writes a file whole or not at all.
pub fn write(outputs: &Outputs, path: &Path, kind: Kind, bytes: &[u8]) -> Result<()> {
    ensure!(path != Path::new("-"), "standard output has the printed report: give a file");
    let mut out = outputs.open(Some(path), kind)?;
    out.write_all(bytes).with_context(|| path.display().to_string())?;
    out.finish()
}

/// Writes the projector's two files into a folder. Returns their paths.
pub fn projector(outputs: &Outputs, folder: &Path, files: &Projector) -> Result<[String; 2]> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let (tensors, metadata) = (folder.join("tensors.tsv"), folder.join("metadata.tsv"));
    write(outputs, &tensors, Kind::Projector, files.tensors.as_bytes())?;
    write(outputs, &metadata, Kind::Projector, files.metadata.as_bytes())?;
    Ok([tensors.display().to_string(), metadata.display().to_string()])
}
