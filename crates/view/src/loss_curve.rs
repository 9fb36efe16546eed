//! The loss curve of a training run.

use super::charts::{Labels, Line, lines};
use super::figure::Figure;
use super::text::Lang;
use crate::Result;

/// Draws the training and the validation loss over the steps. `curve` has (step, training loss, validation loss), in nats per token.
///
/// # Errors
/// [`Error::Picture`](crate::Error::Picture).
pub fn loss_curve(curve: &[(u64, f32, f32)], lang: Lang) -> Result<Figure> {
    let title = lang.of("Loss", "损失");
    let line = |name, value: fn(&(u64, f32, f32)) -> f32| Line {
        name,
        points: curve.iter().map(|point| (point.0 as f64, f64::from(value(point)))).collect(),
    };
    let both =
        [line(lang.of("training", "训练"), |point| point.1), line(lang.of("validation", "验证"), |point| point.2)];
    let labels = Labels {
        title,
        x: lang.of("step", "步"),
        y: lang.of("loss (nats a token)", "损失（nat / token）"),
        ..Default::default()
    };
    Figure::draw(title, (720, 400), |area| lines(area, labels, &both))
}
