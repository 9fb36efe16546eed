//! The charts of the plots. Each chart fills its area.

use std::ops::Range;

use plotters::chart::ChartContext;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::{Cartesian2d, ChartBuilder, Color, LineSeries, PathElement, RGBColor, Rectangle, SVGBackend};

use super::figure::{Align, Area, BLUE, Drawn, GREY, INK, LINE, ORANGE, PALE, fill, style, write};
use super::scale::{rising, short, tick};
use super::text::shorten;

/// Title and axis labels of a chart.
#[derive(Clone, Copy, Default)]
pub(crate) struct Labels<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    /// The number to show for a position on the x axis. `None`: the position itself.
    pub x_of: Option<fn(f64) -> f64>,
}

/// A named line through points.
pub(crate) struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Colours of lines or sets, in their order.
const COLOURS: [RGBColor; 2] = [BLUE, ORANGE];

/// Height of a title.
const HEAD: i32 = 34;

type Context<'a, 'b, X, Y> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<<X as AsRangedCoord>::CoordDescType, <Y as AsRangedCoord>::CoordDescType>,
>;

/// Draws title, axes and grid.
fn axes<'a, 'b, X, Y>(
    area: &'a Area<'b>,
    labels: Labels,
    x: X,
    y: Y,
) -> Result<Context<'a, 'b, X, Y>, Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    write(area, labels.title, (12, HEAD / 2), 17, Align::Left, INK)?;
    let mut sized = ChartBuilder::on(area);
    sized.margin_top(HEAD).margin_right(28).margin_left(8).margin_bottom(6).x_label_area_size(44).y_label_area_size(66);
    let mut chart = sized.build_cartesian_2d(x, y)?;
    let (x, y) = (chart.x_range(), chart.y_range());
    let (wide, high) = (x.end - x.start, y.end - y.start);
    chart
        .configure_mesh()
        .light_line_style(plotters::style::TRANSPARENT)
        .bold_line_style(LINE)
        .axis_style(GREY)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|value| labels.x_of.map_or_else(|| tick(*value, wide), |x_of| tick(x_of(*value), 0.0)))
        .y_label_formatter(&|value| tick(*value, high))
        .label_style(style(12, GREY))
        .axis_desc_style(style(13, GREY))
        .x_desc(labels.x)
        .y_desc(labels.y)
        .draw()?;
    Ok(chart)
}

/// Draws a legend, right-aligned in the line of the title, where no curve is.
fn legend(area: &Area, names: &[&str]) -> Drawn {
    let mut right = area.dim_in_pixel().0 as i32 - 28;
    for (name, colour) in names.iter().zip(COLOURS).rev() {
        write(area, name, (right, HEAD / 2), 14, Align::Right, INK)?;
        right -= width(name, 14) + 24;
        fill(area, [(right, HEAD / 2 - 5), (right + 18, HEAD / 2 + 5)], colour)?;
        right -= 18;
    }
    Ok(())
}

/// Approximate width of a text in pixels.
fn width(text: &str, size: i32) -> i32 {
    text.chars().map(|c| if c.is_ascii() { size * 6 / 10 } else { size * 11 / 10 }).sum()
}

/// Range of an axis: from `from` to a little beyond the largest value. It is never empty.
fn spread(values: impl Iterator<Item = f64> + Clone, from: f64) -> Range<f64> {
    let end = values.filter(|value| value.is_finite()).fold(from, f64::max);
    from..if end > from { end + (end - from) * 0.04 } else { from + 1.0 }
}

/// Lines through points. Both axes begin at 0.
pub(crate) fn lines(area: &Area, labels: Labels, lines: &[Line]) -> Drawn {
    let x = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
    let y = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let mut chart = axes(area, labels, spread(x(), 0.0), spread(y(), 0.0))?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
    }
    if lines.len() > 1 { legend(area, &lines.iter().map(|line| line.name).collect::<Vec<_>>()) } else { Ok(()) }
}

/// A line with a logarithmic x axis and, if `log_y`, a logarithmic y axis. Points that are not positive are left out.
pub(crate) fn log_line(area: &Area, labels: Labels, points: &[(f64, f64)], log_y: bool) -> Drawn {
    use plotters::prelude::IntoLogRange;
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    let end = |values: Vec<f64>| values.into_iter().fold(10.0, f64::max);
    let x = (1.0..end(points.iter().map(|point| point.0).collect())).log_scale();
    let line = LineSeries::new(points.iter().copied(), BLUE.stroke_width(2));
    if log_y {
        let y = (1.0..end(points.iter().map(|point| point.1).collect())).log_scale();
        axes(area, labels, x, y)?.draw_series(line)?;
    } else {
        axes(area, labels, x, spread(points.iter().map(|point| point.1), 0.0))?.draw_series(line)?;
    }
    Ok(())
}

/// Bars from `edges[i]` to `edges[i + 1]`.
pub(crate) fn bars(area: &Area, labels: Labels, edges: &[f64], heights: &[f64]) -> Drawn {
    let bars = edges.windows(2).zip(heights).filter(|(_, height)| **height > 0.0);
    let bars = bars.map(|(edge, height)| Rectangle::new([(edge[0], 0.0), (edge[1], *height)], BLUE.mix(0.75).filled()));
    let (first, last) = (edges.first().copied().unwrap_or(0.0), edges.last().copied().unwrap_or(1.0));
    axes(area, labels, first..last, spread(heights.iter().copied(), 0.0))?.draw_series(bars)?;
    Ok(())
}

/// Histogram with 48 bins. A second set is drawn as an outline over the first. Values that are not finite are left out.
pub(crate) fn histogram(area: &Area, labels: Labels, sets: &[(&str, &[f32])]) -> Drawn {
    const BINS: usize = 48;
    let finite = || sets.iter().flat_map(|set| set.1).copied().filter(|value| value.is_finite()).map(f64::from);
    let low = finite().fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() { low } else { 0.0 };
    let range = spread(finite(), low);
    let width = (range.end - range.start) / BINS as f64;
    let counted = |values: &[f32]| {
        let mut counts = [0f64; BINS];
        for value in values.iter().filter(|value| value.is_finite()) {
            counts[(((f64::from(*value) - low) / width) as usize).min(BINS - 1)] += 1.0;
        }
        counts
    };
    let counts: Vec<[f64; BINS]> = sets.iter().map(|set| counted(set.1)).collect();
    let mut chart = axes(area, labels, range, spread(counts.iter().flatten().copied(), 0.0))?;
    let edge = |i: usize| low + width * i as f64;
    for (i, (counts, colour)) in counts.iter().zip(COLOURS).enumerate() {
        if i == 0 {
            let some = counts.iter().enumerate().filter(|(_, count)| **count > 0.0);
            let bars = some
                .map(|(i, count)| Rectangle::new([(edge(i), 0.0), (edge(i + 1), *count)], colour.mix(0.6).filled()));
            chart.draw_series(bars)?;
        } else {
            let steps = counts.iter().enumerate().flat_map(|(i, count)| [(edge(i), *count), (edge(i + 1), *count)]);
            chart.draw_series(LineSeries::new(steps, colour.stroke_width(2)))?;
        }
    }
    if sets.len() > 1 { legend(area, &sets.iter().map(|set| set.0).collect::<Vec<_>>()) } else { Ok(()) }
}

/// Horizontal bars with a name before and a number after each, the first at the top.
pub(crate) fn ranking(area: &Area, title: &str, entries: &[(String, f64)]) -> Drawn {
    write(area, title, (12, HEAD / 2), 17, Align::Left, INK)?;
    let (width, height) = area.dim_in_pixel();
    let most = entries.iter().map(|entry| entry.1).filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let (left, step) = (170, (height as i32 - HEAD - 12) / entries.len().max(10) as i32);
    for (i, (name, value)) in entries.iter().enumerate() {
        let y = HEAD + step * i as i32 + step / 2;
        let size = (step - 4).clamp(8, 15);
        write(area, &shorten(name, 20), (left - 8, y), size, Align::Right, INK)?;
        let length = f64::from(width as i32 - left - 90) * (value / most).clamp(0.0, 1.0);
        fill(area, [(left, y - step / 2 + 2), (left + length as i32, y + step / 2 - 2)], BLUE)?;
        write(area, &short(*value), (left + length as i32 + 6, y), size, Align::Left, GREY)?;
    }
    Ok(())
}

/// A grid of coloured cells, row by row, with a scale from 0 to the largest value. Cells without a value are pale.
pub(crate) fn cells(area: &Area, title: &str, first_and_last: [&str; 2], values: &[Option<f64>]) -> Drawn {
    write(area, title, (12, HEAD / 2), 17, Align::Left, INK)?;
    let (width, height) = area.dim_in_pixel();
    let (left, top, right, bottom) = (16, HEAD + 20, width as i32 - 96, height as i32 - 34);
    let columns = cell_columns(values.len());
    let lines = values.len().div_ceil(columns).max(1);
    let most = values.iter().flatten().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let at = |i: usize, of: usize, from: i32, to: i32| from + ((to - from) as usize * i / of) as i32;
    for (i, value) in values.iter().enumerate() {
        let (x, y) = (i % columns, i / columns);
        let corners = [
            (at(x, columns, left, right), at(y, lines, top, bottom)),
            (at(x + 1, columns, left, right) - 1, at(y + 1, lines, top, bottom) - 1),
        ];
        let colour = value.map_or(PALE, |value| rising(if most > 0.0 { value / most } else { 0.0 }));
        fill(area, corners, colour)?;
    }
    write(area, first_and_last[0], (left, top - 10), 13, Align::Left, GREY)?;
    write(area, first_and_last[1], (right, bottom + 12), 13, Align::Right, GREY)?;
    for i in 0..32 {
        let colour = rising(1.0 - f64::from(i) / 31.0);
        let y = |i: i32| top + (bottom - top) * i / 32;
        fill(area, [(right + 16, y(i)), (right + 30, y(i + 1))], colour)?;
    }
    for part in 0..3 {
        let y = top + (bottom - top) * part / 2;
        write(area, &short(most * f64::from(2 - part) / 2.0), (right + 36, y), 13, Align::Left, GREY)?;
    }
    Ok(())
}

/// Number of columns for a grid of `cells` cells: about twice the number of lines.
pub(crate) fn cell_columns(cells: usize) -> usize {
    ((2 * cells) as f64).sqrt().ceil().max(1.0) as usize
}

/// A point of a map: its name, its position, and its position before.
pub(crate) struct Place {
    pub name: String,
    pub at: (f64, f64),
    pub before: Option<(f64, f64)>,
}

/// Points with their names. Earlier points get names first, and names without free space are left out. A line leads from each point's
/// position before.
pub(crate) fn map(area: &Area, labels: Labels, places: &[Place]) -> Drawn {
    let all = || places.iter().flat_map(|place| [Some(place.at), place.before]).flatten();
    let around = |value: fn((f64, f64)) -> f64| {
        let low = all().map(value).fold(f64::INFINITY, f64::min);
        let high = all().map(value).fold(f64::NEG_INFINITY, f64::max);
        let room = if high > low { (high - low) * 0.08 } else { 1.0 };
        if low.is_finite() { low - room..high + room } else { -1.0..1.0 }
    };
    let mut chart = axes(area, labels, around(|point| point.0), around(|point| point.1))?;
    let ways = places.iter().filter_map(|place| Some(PathElement::new([place.before?, place.at], ORANGE.mix(0.45))));
    chart.draw_series(ways)?;
    let points: Vec<(i32, i32)> = places.iter().map(|place| chart.backend_coord(&place.at)).collect();
    let base = area.get_base_pixel();
    let points: Vec<(i32, i32)> = points.iter().map(|(x, y)| (x - base.0, y - base.1)).collect();
    for (x, y) in &points {
        fill(area, [(x - 2, y - 2), (x + 2, y + 2)], BLUE)?;
    }
    // A name is right of its point, or left of it, if no other name and no point is there.
    let limit = area.dim_in_pixel().0 as i32 - 28;
    let mut taken: Vec<[i32; 4]> = points.iter().map(|(x, y)| [x - 3, y - 3, x + 3, y + 3]).collect();
    for (place, (x, y)) in places.iter().zip(&points) {
        let name = shorten(&place.name, 14);
        let width = 1 + width(&name, 12);
        for (align, from) in [(Align::Left, x + 5), (Align::Right, x - 5 - width)] {
            let frame = [from, y - 7, from + width, y + 7];
            let free = |other: &[i32; 4]| {
                frame[2] < other[0] || other[2] < frame[0] || frame[3] < other[1] || other[3] < frame[1]
            };
            if from > 76 && from + width < limit && taken.iter().all(free) {
                let at = if matches!(align, Align::Left) { (x + 5, *y) } else { (x - 5, *y) };
                write(area, &name, at, 12, align, INK)?;
                taken.push(frame);
                break;
            }
        }
    }
    Ok(())
}
