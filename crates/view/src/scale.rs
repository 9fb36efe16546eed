//! Colour scales of ColorBrewer and matplotlib that colour-blind people can read.

use colorous::{CIVIDIS, PURPLE_ORANGE};
use plotters::style::RGBColor;

/// From purple (negative) over almost white (0) to orange (positive). NaN is grey.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Diverging {
    /// The largest absolute value.
    pub limit: f32,
}

impl Diverging {
    /// A scale for all of `values`.
    pub fn of<'a>(values: impl Iterator<Item = &'a f32>) -> Self {
        let limit = values.filter(|value| value.is_finite()).fold(0f32, |most, value| most.max(value.abs()));
        Diverging { limit: if limit > 0.0 { limit } else { 1.0 } }
    }

    pub fn colour(self, value: f32) -> RGBColor {
        if value.is_nan() {
            return RGBColor(128, 128, 128);
        }
        let part = f64::from(value.clamp(-self.limit, self.limit)) / f64::from(self.limit);
        painted(PURPLE_ORANGE.eval_continuous((1.0 + part) / 2.0))
    }

    /// The numbers beside a colour bar, from the largest to the smallest.
    pub fn marks(self) -> [f32; 5] {
        [1.0, 0.5, 0.0, -0.5, -1.0].map(|part| part * self.limit)
    }
}

/// From dark blue (0) to yellow (1).
pub(crate) fn rising(part: f64) -> RGBColor {
    painted(CIVIDIS.eval_continuous(part.clamp(0.0, 1.0)))
}

fn painted(colour: colorous::Color) -> RGBColor {
    RGBColor(colour.r, colour.g, colour.b)
}

/// A number with three significant digits.
pub(crate) fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_string() } else { value.to_string() };
    }
    let digits = (2 - value.abs().log10().floor() as i64).max(0);
    if (1e-4..1e6).contains(&value.abs()) { format!("{value:.*}", digits as usize) } else { format!("{value:.2e}") }
}

/// A label for an axis of length `axis`, without trailing zeros. Values close to 0 from rounding are shown as 0.
pub(crate) fn tick(value: f64, axis: f64) -> String {
    match value.abs() {
        size if size <= axis * 1e-9 => "0".to_string(),
        size if (1e-3..1e6).contains(&size) => {
            let digits = (3 - size.log10().floor() as i64).clamp(0, 4) as usize;
            let shown = format!("{value:.digits$}");
            if digits > 0 { shown.trim_end_matches('0').trim_end_matches('.').to_string() } else { shown }
        }
        _ => format!("{value:.2e}").replacen(".00e", "e", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_symmetric_and_survives_what_is_no_number() {
        let scale = Diverging::of([0.5f32, -2.0, f32::NAN, f32::INFINITY].iter());
        assert_eq!(scale.limit, 2.0);
        let RGBColor(r, g, b) = scale.colour(0.0);
        assert!(r > 230 && g > 230 && b > 230, "zero is all but white");
        assert!(scale.colour(2.0).0 > scale.colour(2.0).2, "positive is orange");
        assert!(scale.colour(-2.0).0 < scale.colour(-2.0).2, "negative is purple");
        assert_eq!(scale.colour(f32::INFINITY), scale.colour(2.0));
        assert_eq!(scale.colour(f32::NAN), RGBColor(128, 128, 128));
        assert_eq!(Diverging::of([].iter()).limit, 1.0);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown: Vec<String> = [0.0, 0.012345, 1.0, 123.4, 98765.4, 1e-9, -0.5].into_iter().map(short).collect();
        assert_eq!(shown, ["0", "0.0123", "1.00", "123", "98765", "1.00e-9", "-0.500"]);
    }

    #[test]
    fn ticks_are_round() {
        let shown: Vec<String> =
            [0.1, 2.7e-17, 1.0, 10.0, 17559.93, 1e6, 2.5e-4, -0.25].map(|value| tick(value, 1.0)).to_vec();
        assert_eq!(shown, ["0.1", "0", "1", "10", "17560", "1e6", "2.50e-4", "-0.25"]);
    }
}
