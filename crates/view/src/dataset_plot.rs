//! Pictures of a folder of shards: token frequencies, document lengths, and the fraction of table rows that occur.

use tallow::shard::Statistics;

use super::charts::{Labels, bars, log_line};
use super::figure::{Area, Figure};
use super::table_plot::Panel;
use super::text::Lang;
use crate::Result;

/// Tokens of at least this many bytes share a bar.
const LONG: usize = 16;

/// Charts of one split of a folder of shards.
///
/// # Example
/// ```
/// use tallow::shard::Statistics;
/// use tallow_view::{DatasetPlot, Lang};
/// let (counts, lengths, growth) = (vec![4, 0, 1], vec![0, 0, 0, 0, 1], vec![(1, 1), (5, 2)]);
/// let statistics = Statistics { counts, lengths, growth, ..Default::default() };
/// let plot = DatasetPlot::new(&statistics, |_| Some(3)); // every token has 3 bytes
/// assert_eq!(plot.frequencies, [4, 1]);
/// assert!(plot.page("tokens", Lang::En)?.contains("2 of 3 table rows"));
/// # Ok::<(), tallow_view::Error>(())
/// ```
pub struct DatasetPlot {
    /// Numbers of occurrences of the ids that occur, most frequent first.
    pub frequencies: Vec<u64>,
    /// As [`Statistics::lengths`].
    pub lengths: Vec<u64>,
    /// As [`Statistics::growth`].
    pub growth: Vec<(u64, usize)>,
    /// Histogram of token lengths over the split. Entry i counts tokens of i + 1 bytes, the last of 16 entries those of 16 and more.
    /// Empty if no id has a known length.
    pub token_bytes: Vec<u64>,
    /// Mean bytes per token over the split.
    pub bytes_per_token: f64,
    /// Number of table rows that the ids need.
    pub table_rows: usize,
}

impl DatasetPlot {
    /// Makes the charts' data. `bytes` returns the bytes of an id's token, or `None` for ids to leave out of the lengths, such as special
    /// tokens.
    pub fn new(statistics: &Statistics, bytes: impl Fn(u32) -> Option<usize>) -> Self {
        let mut frequencies: Vec<u64> = statistics.counts.iter().copied().filter(|count| *count > 0).collect();
        frequencies.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let (mut token_bytes, mut bytes_of_all, mut known) = (vec![0; LONG], 0, 0);
        for (id, count) in (0u32..).zip(&statistics.counts).filter(|(_, count)| **count > 0) {
            if let Some(length) = bytes(id).filter(|length| *length > 0) {
                token_bytes[length.min(LONG) - 1] += count;
                bytes_of_all += length as u64 * count;
                known += count;
            }
        }
        if known == 0 {
            token_bytes.clear();
        }
        DatasetPlot {
            frequencies,
            lengths: statistics.lengths.clone(),
            growth: statistics.growth.clone(),
            token_bytes,
            bytes_per_token: bytes_of_all as f64 / known.max(1) as f64,
            table_rows: statistics.counts.len(),
        }
    }

    /// All charts in one drawing.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    pub fn figure(&self, lang: Lang) -> Result<Figure> {
        Figure::panels(lang.of("A folder of tokens", "token 数据"), &self.panels(lang))
    }

    pub(crate) fn panels(&self, lang: Lang) -> Vec<Panel<'_>> {
        let share = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
        let mut panels: Vec<Panel> = vec![
            (
                lang.of("How often tokens occur", "token 出现的次数").to_string(),
                Box::new(move |area: &Area, title: &str| {
                    let labels = Labels {
                        title,
                        x: lang.of("rank (the most frequent token is 1)", "名次（出现最多的是 1）"),
                        y: lang.of("times", "次数"),
                        ..Default::default()
                    };
                    let ranked = self.frequencies.iter().enumerate().map(|(i, count)| ((i + 1) as f64, *count as f64));
                    log_line(area, labels, &thinned(ranked.collect()), true)
                }),
            ),
            (
                lang.of("Lengths of documents", "文档的长度").to_string(),
                Box::new(move |area, title| {
                    let (x, y) = (lang.of("tokens", "token 数"), lang.of("documents", "文档数"));
                    let labels = Labels { title, x, y, x_of: Some(f64::exp2) };
                    let first = self.lengths.iter().position(|count| *count > 0).unwrap_or(0);
                    let edges: Vec<f64> = (first..=self.lengths.len().max(first + 1)).map(|i| i as f64 / 2.0).collect();
                    let heights: Vec<f64> = self.lengths.iter().skip(first).map(|count| *count as f64).collect();
                    bars(area, labels, &edges, &heights)
                }),
            ),
        ];
        if !self.token_bytes.is_empty() {
            let all: u64 = self.token_bytes.iter().sum();
            let mean = self.bytes_per_token;
            panels.push((
                lang.of(format!("Bytes of a token (mean {mean:.2})"), format!("每个 token 的字节数（平均 {mean:.2}）")),
                Box::new(move |area, title| {
                    let x = lang.of("bytes; the last bar is 16 and more", "字节；最后一条是 16 及以上");
                    let labels =
                        Labels { title, x, y: lang.of("% of tokens", "token 的百分比"), ..Default::default() };
                    let edges: Vec<f64> = (0..=LONG).map(|i| i as f64 + 0.5).collect();
                    let heights: Vec<f64> = self.token_bytes.iter().map(|count| share(*count, all)).collect();
                    bars(area, labels, &edges, &heights)
                }),
            ));
        }
        panels.push((
            lang.of(
                format!("Share of the table ({} rows) that the text touches", self.table_rows),
                format!("文字碰到查找表（{} 行）的多少", self.table_rows),
            ),
            Box::new(move |area, title| {
                let (x, y) = (lang.of("tokens read", "读过的 token 数"), lang.of("% of rows", "行的百分比"));
                let labels = Labels { title, x, y, ..Default::default() };
                let points = self
                    .growth
                    .iter()
                    .map(|(tokens, rows)| (*tokens as f64, share(*rows as u64, self.table_rows as u64)));
                log_line(area, labels, &points.collect::<Vec<_>>(), false)
            }),
        ));
        panels
    }
}

/// The points of a long curve that are distinguishable on a logarithmic axis.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let (mut next, last) = (0.0, points.len());
    let keep = |(i, point): (usize, (f64, f64))| {
        let keep = point.0 >= next || i + 1 == last;
        if keep {
            next = point.0 * 1.01;
        }
        keep.then_some(point)
    };
    points.into_iter().enumerate().filter_map(keep).collect()
}
