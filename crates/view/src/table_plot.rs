//! Pictures of a table: norms of rows, a map of some tokens, and the rows that training moved.

use candle_core::DType;
use tallow::{PretrainedTable, RowChange, RowChanges};

use super::Projector;
use super::charts::{Labels, Place, cells, histogram, map, ranking};
use super::figure::{Area, Drawn, Figure};
use super::pca::Pca;
use super::text::Lang;
use crate::Result;

/// The most cells of the grid of rows, and the most rows in the lists of moved and of untouched rows.
const CELLS: usize = 2048;
const LISTED: usize = 20;
const UNTOUCHED: usize = 60;

/// Charts of a table, optionally compared with the table before training.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::PretrainedTable;
/// use tallow_view::{Lang, TablePlot};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let rows = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((4, 3))?;
/// candle_core::safetensors::save(&[("wte.weight", rows)].into(), &path)?;
/// let plot = TablePlot::new(&PretrainedTable::open(&path, None)?, None, &[], 100, |_| None)?;
/// assert_eq!((plot.shape, plot.norms.len(), plot.counts()), ((4, 3), 4, None)); // no table from before
/// assert!(plot.page("model", Lang::En)?.contains("<svg"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TablePlot {
    /// (V, C): rows and columns.
    pub shape: (usize, usize),
    /// The L2 norm of every row.
    pub norms: Vec<f32>,
    /// Changes of each row since the table before training. `None` without such a table.
    pub changes: Option<RowChanges>,
    /// The rows of the map. Earlier ones get their names first.
    pub chosen: Vec<Token>,
    /// The rows that moved farthest, at most 20: (row, token, L2 distance).
    pub farthest: Vec<(u32, String, f32)>,
    /// The first rows that were never trained, at most 60: (row, token).
    pub untouched: Vec<(u32, String)>,
}

/// A row of the map.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::PretrainedTable;
/// use tallow_view::TablePlot;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let rows = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((4, 3))?;
/// candle_core::safetensors::save(&[("wte.weight", rows)].into(), &path)?;
/// let plot = TablePlot::new(&PretrainedTable::open(&path, None)?, None, &[2], 100, |_| None)?;
/// let token = &plot.chosen[0];
/// assert_eq!((token.id, token.name.as_str(), token.values.len()), (2, "2", 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Token {
    /// Number of the row.
    pub id: u32,
    /// Text of its token.
    pub name: String,
    /// Its C values.
    pub values: Vec<f32>,
    /// Its values before training, if known.
    pub before: Option<Vec<f32>>,
}

impl TablePlot {
    /// Reads the data of the charts. `chosen` are the rows of the map. If it is empty, the map has the `top` rows that moved farthest, or
    /// the first `top` rows if none moved. `name` returns the token of a row; without one the row's number is its name.
    ///
    /// # Errors
    /// - [`Error::Config`](tallow::Error::Config): the tables have different widths.
    /// - [`Error::IdOutOfRange`](tallow::Error::IdOutOfRange): the table has no such chosen row.
    /// - [`Error::Io`](tallow::Error::Io): a table cannot be read.
    ///
    /// # Cost
    /// One pass over each table. Memory: some 32 MiB.
    pub fn new(
        table: &PretrainedTable,
        before: Option<&PretrainedTable>,
        chosen: &[u32],
        top: usize,
        name: impl Fn(u32) -> Option<String>,
    ) -> Result<Self> {
        let changes = before.map(|before| table.changes_since(before)).transpose()?;
        let moved = changes.as_ref().map(RowChanges::moved).unwrap_or_default();
        let named = |id: u32| name(id).unwrap_or_else(|| id.to_string());
        let ids: Vec<u32> = match (chosen, &moved[..]) {
            ([], []) => (0..table.vocab_size().min(top) as u32).collect(),
            ([], moved) => moved.iter().copied().take(top).collect(),
            _ => chosen.to_vec(),
        };
        let values = table.rows(&ids)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let both = |id: &&u32| before.is_some_and(|before| (**id as usize) < before.vocab_size());
        let old: Vec<u32> = ids.iter().filter(both).copied().collect();
        let mut old = match before {
            Some(before) => before.rows(&old)?.to_dtype(DType::F32)?.to_vec2::<f32>()?.into_iter(),
            None => Vec::new().into_iter(),
        };
        let token = |(id, values): (&u32, Vec<f32>)| {
            let before = if both(&id) { old.next() } else { None };
            Token { id: *id, name: named(*id), values, before }
        };
        let distance = |id: u32| changes.as_ref().map_or(0.0, |changes| changes.distances[id as usize]);
        let still = |id: &u32| changes.as_ref().is_some_and(|c| c.changes[*id as usize] != RowChange::Moved);
        let rows = changes.as_ref().map_or(0, |changes| changes.changes.len()) as u32;
        Ok(TablePlot {
            untouched: (0..rows).filter(still).take(UNTOUCHED).map(|id| (id, named(id))).collect(),
            shape: (table.vocab_size(), table.d_model()),
            norms: table.norms()?,
            chosen: ids.iter().zip(values).map(token).collect(),
            farthest: moved.iter().take(LISTED).map(|id| (*id, named(*id), distance(*id))).collect(),
            changes,
        })
    }

    /// Number of rows that were trained, that only shrank by weight decay, and that are equal. `None` without a table before training.
    pub fn counts(&self) -> Option<[usize; 3]> {
        let changes = self.changes.as_ref()?;
        Some([RowChange::Moved, RowChange::Shrunk, RowChange::Equal].map(|what| changes.count(what)))
    }

    /// The rows of the map for the embedding projector.
    pub fn projector(&self) -> Projector {
        Projector::new(self.chosen.iter().map(|token| (token.name.clone(), token.id, token.values.as_slice())))
    }

    /// All charts in one drawing.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    pub fn figure(&self, lang: Lang) -> Result<Figure> {
        let panels = self.panels(lang)?;
        Figure::panels(lang.of("A table of embeddings", "嵌入表"), &panels)
    }

    /// The charts: norms and the map; with a table before training also where rows moved, and which moved farthest.
    pub(crate) fn panels(&self, lang: Lang) -> Result<Vec<Panel<'_>>> {
        let mut panels: Vec<Panel> = vec![
            (
                lang.of("Lengths of rows", "各行的长度").to_string(),
                Box::new(move |area: &Area, title: &str| {
                    let labels = Labels {
                        title,
                        x: lang.of("L2 norm", "L2 范数"),
                        y: lang.of("rows", "行数"),
                        ..Default::default()
                    };
                    match &self.changes {
                        Some(changes) => histogram(
                            area,
                            labels,
                            &[
                                (lang.of("after", "之后"), &self.norms),
                                (lang.of("before", "之前"), &changes.norms_before),
                            ],
                        ),
                        None => histogram(area, labels, &[("", &self.norms)]),
                    }
                }),
            ),
            self.map(lang)?,
        ];
        if let Some(changes) = &self.changes {
            let each = changes.changes.len().div_ceil(CELLS).max(1);
            let title = match each {
                1 => lang.of("How far each row moved".to_string(), "每一行移动的距离".to_string()),
                _ => lang.of(
                    format!("How far rows moved (a cell is {each} rows: the farthest)"),
                    format!("各行移动的距离（一格 {each} 行，取最远的）"),
                ),
            };
            panels.push((title, Box::new(move |area, title| self.where_moved(area, title, changes, each, lang))));
            let far: Vec<(String, f64)> =
                self.farthest.iter().map(|(_, name, distance)| (name.clone(), f64::from(*distance))).collect();
            let title = lang.of("Moved farthest (L2 distance)", "移动最远的行（L2 距离）").to_string();
            panels.push((title, Box::new(move |area, title| ranking(area, title, &far))));
        }
        Ok(panels)
    }

    fn map(&self, lang: Lang) -> Result<Panel<'_>> {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let drawn: Vec<&Token> = self.chosen.iter().filter(|token| finite(&token.values)).collect();
        let pca = Pca::of(&drawn.iter().map(|token| token.values.clone()).collect::<Vec<_>>())?;
        let place = |token: &&Token| Place {
            name: token.name.clone(),
            at: pca.project(&token.values),
            before: token.before.as_ref().filter(|before| finite(before)).map(|before| pca.project(before)),
        };
        let places: Vec<Place> = drawn.iter().map(place).collect();
        let count = places.len();
        let title = match self.changes {
            Some(_) => lang.of(
                format!("Map of {count} tokens (PCA); orange: the way from before"),
                format!("{count} 个 token 的地图（PCA）；橙线从之前的位置出发"),
            ),
            None => lang.of(format!("Map of {count} tokens (PCA)"), format!("{count} 个 token 的地图（PCA）")),
        };
        let share = pca.shares.map(|share| format!("{:.0} %", 100.0 * share));
        let axis = move |i: usize| match lang {
            Lang::En => format!("component {}: {} of the variance", i + 1, share[i]),
            Lang::Zh => format!("第 {} 主成分：方差的 {}", i + 1, share[i]),
        };
        Ok((
            title,
            Box::new(move |area, title| {
                map(area, Labels { title, x: &axis(0), y: &axis(1), ..Default::default() }, &places)
            }),
        ))
    }

    fn where_moved(&self, area: &Area, title: &str, changes: &RowChanges, each: usize, lang: Lang) -> Drawn {
        let cell = |(changes, distances): (&[RowChange], &[f32])| {
            let moved = changes.iter().zip(distances).filter(|(change, _)| **change == RowChange::Moved);
            moved
                .map(|(_, distance)| f64::from(*distance))
                .fold(None, |most: Option<f64>, d| Some(most.map_or(d, |m| m.max(d))))
        };
        let values: Vec<Option<f64>> =
            changes.changes.chunks(each).zip(changes.distances.chunks(each)).map(cell).collect();
        let last = changes.changes.len().saturating_sub(1);
        let never = lang.of("pale: never trained; row 0 first", "浅色：从未训练；从第 0 行开始");
        cells(area, title, [never, &lang.of(format!("row {last}"), format!("第 {last} 行"))], &values)
    }
}

/// Title of a chart, and the function that paints it.
pub(crate) type Panel<'a> = (String, Box<dyn Fn(&Area, &str) -> Drawn + 'a>);

/// Width and height of a panel.
const PANEL: (u32, u32) = (640, 440);

impl Figure {
    /// Draws panels in two columns.
    pub(crate) fn panels(title: &str, panels: &[Panel]) -> Result<Self> {
        let lines = panels.len().div_ceil(2);
        Figure::draw(title, (2 * PANEL.0, PANEL.1 * lines as u32), |area| {
            for ((title, paint), area) in panels.iter().zip(area.split_evenly((lines, 2))) {
                paint(&area, title)?;
            }
            Ok(())
        })
    }

    /// Draws a single panel.
    pub(crate) fn panel((title, paint): &Panel) -> Result<Self> {
        Figure::draw(title, PANEL, |area| paint(area, title))
    }
}
