//! Drawings as SVG (plotters). resvg turns their text into outlines or renders them to PNG, with a bundled font.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, IntoDrawingArea, RGBColor, Rectangle, SVGBackend, Text, WHITE};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, TextStyle};
use resvg::usvg::fontdb::{Database, Source};
use resvg::usvg::{Options, Tree, WriteOptions};
use resvg::{render, tiny_skia};
use skrifa::{FontRef, MetadataProvider};

use crate::{Error, Result};

/// Noto Sans SC: Latin, Greek, Cyrillic, kana, Chinese punctuation and GB 2312's 6763 hanzi (SIL Open Font License 1.1).
const FONT: &[u8] = include_bytes!("../assets/font/NotoSansSC-subset.otf");

/// The most pixels of a PNG. They take 256 MiB while it is rendered.
const MOST_PIXELS: u64 = 1 << 26;

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Colours of text and lines. The dark theme of the pages inverts exactly these.
pub(crate) const INK: RGBColor = RGBColor(0, 0, 0);
pub(crate) const GREY: RGBColor = RGBColor(90, 90, 90);
pub(crate) const LINE: RGBColor = RGBColor(222, 225, 229);
pub(crate) const PALE: RGBColor = RGBColor(241, 243, 246);
/// Two colours that colour-blind people can tell apart (Okabe and Ito).
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(213, 94, 0);

/// Horizontal alignment of a text to its point.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Middle,
    Right,
}

/// Writes a line of text, `size` pixels high and vertically centred at `at`.
pub(crate) fn write(area: &Area, text: &str, at: (i32, i32), size: i32, align: Align, colour: RGBColor) -> Drawn {
    let horizontal = match align {
        Align::Left => HPos::Left,
        Align::Middle => HPos::Center,
        Align::Right => HPos::Right,
    };
    area.draw(&Text::new(text, at, style(size, colour).pos(Pos::new(horizontal, VPos::Center))))?;
    Ok(())
}

/// Fills a rectangle.
pub(crate) fn fill(area: &Area, corners: [(i32, i32); 2], colour: RGBColor) -> Drawn {
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    Ok(())
}

/// Text style of this size in pixels.
pub(crate) fn style(size: i32, colour: RGBColor) -> TextStyle<'static> {
    // plotters writes SVG sizes 1.24 times smaller.
    let plain = TextStyle::from(("sans-serif", f64::from(size) * 1.24).into_font());
    TextStyle { color: colour.to_backend_color(), ..plain }
}

/// A drawing. The same input gives the same bytes.
///
/// # Example
/// ```
/// use tallow_view::{Fonts, Lang, loss_curve};
/// let figure = loss_curve(&[(1, 8.0, 8.1), (250, 4.2, 4.6)], Lang::En)?;
/// assert_eq!((figure.title(), figure.size()), ("Loss", (720, 400)));
/// assert!(figure.png(&Fonts::bundled(), 1.0)?.starts_with(b"\x89PNG"));
/// # Ok::<(), tallow_view::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Figure {
    title: String,
    size: (u32, u32),
    svg: String,
}

impl Figure {
    /// Paints on a white area of `size` pixels.
    pub(crate) fn draw(title: &str, size: (u32, u32), paint: impl FnOnce(&Area) -> Drawn) -> Result<Self> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&WHITE).map_err(failed)?;
            paint(&area).map_err(failed)?;
            area.present().map_err(failed)?;
        }
        Ok(Figure { title: title.to_string(), size, svg })
    }

    /// Title of the figure.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The SVG with text elements, for HTML pages. The browser chooses the font.
    pub fn markup(&self) -> &str {
        &self.svg
    }

    /// A stand-alone SVG. Text is turned into outlines, so it looks the same in every viewer. A character that is not in `fonts` is
    /// written as its code, `\u{d55c}`.
    ///
    /// # Errors
    /// [`Error::Picture`].
    pub fn svg(&self, fonts: &Fonts) -> Result<String> {
        let options = WriteOptions { coordinates_precision: 3, transforms_precision: 4, ..Default::default() };
        let outlined = self.tree(fonts)?.to_string(&options);
        // The title is for screen readers.
        let start = outlined.find('>').map_or(0, |end| end + 1);
        let (head, rest) = outlined.split_at(start);
        let title = maud::html! { title { (self.title) } }.into_string();
        Ok(format!("{head}\n    {title}{rest}"))
    }

    /// A PNG with `scale` pixels per pixel of [`size`](Self::size).
    ///
    /// # Errors
    /// [`Error::Picture`], also for a scale that makes no pixel or more than 2^26 pixels.
    pub fn png(&self, fonts: &Fonts, scale: f32) -> Result<Vec<u8>> {
        let tree = self.tree(fonts)?;
        let pixels = |side: u32| (side as f32 * scale).ceil() as u32;
        let (width, height) = (pixels(self.size.0), pixels(self.size.1));
        let mut image = Some((width, height))
            .filter(|(width, height)| u64::from(*width) * u64::from(*height) <= MOST_PIXELS)
            .and_then(|(width, height)| tiny_skia::Pixmap::new(width, height))
            .ok_or_else(|| {
                failed(format!("a scale of {scale} makes {width} x {height} pixels, not 1 to {MOST_PIXELS}"))
            })?;
        render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut image.as_mut());
        image.encode_png().map_err(failed)
    }

    fn tree(&self, fonts: &Fonts) -> Result<Tree> {
        // Only text can have other than ASCII characters.
        let mut svg = String::with_capacity(self.svg.len());
        for c in self.svg.chars() {
            if c.is_ascii() || fonts.have(c) { svg.push(c) } else { svg.extend(c.escape_unicode()) }
        }
        let options = Options { fontdb: fonts.database.clone(), ..Default::default() };
        Tree::from_str(&svg, &options).map_err(failed)
    }
}

/// The fonts of figures: the bundled one, and added ones. System fonts are not used, so a figure has the same bytes on every machine.
///
/// # Example
/// ```
/// use tallow_view::{Error, Fonts};
/// let fonts = Fonts::bundled();
/// assert!(matches!(fonts.with_file("no-such-font.ttf"), Err(Error::Io { .. })));
/// ```
#[derive(Clone, Debug)]
pub struct Fonts {
    database: Arc<Database>,
}

impl Fonts {
    /// The bundled font: Noto Sans SC with Latin, Greek, Cyrillic, kana, and the 6763 hanzi of GB 2312.
    pub fn bundled() -> Self {
        let mut database = Database::new();
        database.load_font_data(FONT.to_vec());
        let family = database.faces().next().and_then(|face| Some(face.families.first()?.0.clone()));
        database.set_sans_serif_family(family.unwrap_or_default());
        Fonts { database: Arc::new(database) }
    }

    /// Adds a TTF, OTF or TTC file for characters that the other fonts lack.
    ///
    /// # Errors
    /// [`Error::Io`]: the file cannot be read. [`Error::Picture`]: it is not a font.
    pub fn with_file(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::Io { path: path.to_path_buf(), cause: e })?;
        let added = Arc::make_mut(&mut self.database).load_font_source(Source::Binary(Arc::new(bytes)));
        if added.is_empty() {
            return Err(failed(format!("{} is no TTF, OTF or TTC font", path.display())));
        }
        Ok(self)
    }

    fn have(&self, c: char) -> bool {
        let in_face = |bytes: &[u8], face| FontRef::from_index(bytes, face).is_ok_and(|f| f.charmap().map(c).is_some());
        self.database.faces().any(|face| self.database.with_face_data(face.id, in_face) == Some(true))
    }
}

pub(crate) fn failed(reason: impl Display) -> Error {
    Error::Picture { reason: reason.to_string() }
}
