//! Figures as SVG text: dots with their deviations, and curves over a logarithmic axis.

use std::fmt::Write;

/// Colours that are told apart by most eyes (Okabe and Ito 2008).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const GREY: &str = "#555555";
/// The width of a character of the labels, nearly.
const CHARACTER: f64 = 7.2;

/// Several values under one name.
pub(in crate::cli) struct Dots {
    pub(in crate::cli) label: String,
    pub(in crate::cli) values: Vec<f64>,
    pub(in crate::cli) mean: f64,
    pub(in crate::cli) deviation: Option<f64>,
}

/// A panel a measure, a line a name: each value a faint dot, the mean a full one, the deviation a bar.
pub(in crate::cli) fn dots(title: &str, panels: &[(String, Vec<Dots>)]) -> String {
    const WIDTH: f64 = 720.0;
    const LINE: f64 = 24.0;
    let labels =
        panels.iter().flat_map(|(_, rows)| rows).map(|row| row.label.chars().count()).max().unwrap_or(0);
    let left = 24.0 + CHARACTER * labels as f64;
    let height = |rows: usize| 34.0 + LINE * rows as f64 + 34.0;
    let total = 48.0 + panels.iter().map(|(_, rows)| height(rows.len())).sum::<f64>();
    let mut svg = begin(WIDTH, total, title);
    let mut top = 48.0;
    for (name, rows) in panels {
        let bar =
            |row: &Dots| [row.mean - row.deviation.unwrap_or(0.0), row.mean + row.deviation.unwrap_or(0.0)];
        let axis = Axis::of(rows.iter().flat_map(|row| row.values.iter().copied().chain(bar(row))));
        let x = |value: f64| left + axis.share(value) * (WIDTH - left - 30.0);
        text(&mut svg, 16.0, top + 20.0, "start", "bold", name);
        let (above, below) = (top + 32.0, top + 36.0 + LINE * rows.len() as f64);
        for tick in axis.ticks() {
            line(&mut svg, [x(tick), above, x(tick), below], "#dddddd", 1.0);
            text(&mut svg, x(tick), below + 16.0, "middle", "normal", &axis.label(tick));
        }
        for (number, row) in rows.iter().enumerate() {
            let (y, colour) = (above + LINE * (number as f64 + 0.5), COLOURS[number % COLOURS.len()]);
            text(&mut svg, left - 12.0, y + 4.5, "end", "normal", &row.label);
            if row.deviation.is_some() {
                let [low, high] = bar(row);
                line(&mut svg, [x(low), y, x(high), y], colour, 2.0);
            }
            row.values.iter().for_each(|&value| dot(&mut svg, x(value), y, 3.5, colour, 0.35));
            dot(&mut svg, x(row.mean), y, 5.0, colour, 1.0);
        }
        top += height(rows.len());
    }
    svg + "</svg>\n"
}

/// A curve of means with deviations.
pub(in crate::cli) struct Curve {
    pub(in crate::cli) name: String,
    /// x, mean and deviation.
    pub(in crate::cli) points: Vec<(f64, f64, Option<f64>)>,
}

/// Curves over one axis.
pub(in crate::cli) struct Panel {
    pub(in crate::cli) title: String,
    /// Places on the x axis and their names.
    pub(in crate::cli) ticks: Vec<(f64, String)>,
    pub(in crate::cli) curves: Vec<Curve>,
}

/// Panels of curves side by side, x on a logarithmic axis.
pub(in crate::cli) fn curves(title: &str, x_title: &str, y_title: &str, panels: &[Panel]) -> String {
    const PANEL: f64 = 380.0;
    const HEIGHT: f64 = 400.0;
    let (top, bottom) = (94.0, HEIGHT - 64.0);
    let mut svg = begin(20.0 + PANEL * panels.len() as f64, HEIGHT, title);
    for (number, panel) in panels.iter().enumerate() {
        let left = 20.0 + PANEL * number as f64 + 48.0;
        let right = left + PANEL - 76.0;
        let spread = panel.curves.iter().flat_map(|curve| &curve.points).flat_map(|&(_, mean, deviation)| {
            [mean - deviation.unwrap_or(0.0), mean + deviation.unwrap_or(0.0)]
        });
        let axis = Axis::of(spread);
        let places = panel.ticks.iter().map(|(x, _)| x.ln());
        let (first, last) =
            (places.clone().fold(f64::INFINITY, f64::min), places.fold(f64::NEG_INFINITY, f64::max));
        let x = |value: f64| {
            let share = if last > first { (value.ln() - first) / (last - first) } else { 0.5 };
            left + 14.0 + share * (right - left - 28.0)
        };
        let y = |value: f64| bottom - axis.share(value) * (bottom - top);
        text(&mut svg, (left + right) / 2.0, top - 12.0, "middle", "bold", &panel.title);
        for tick in axis.ticks() {
            line(&mut svg, [left, y(tick), right, y(tick)], "#dddddd", 1.0);
            text(&mut svg, left - 8.0, y(tick) + 4.5, "end", "normal", &axis.label(tick));
        }
        line(&mut svg, [left, bottom, right, bottom], GREY, 1.0);
        for (place, name) in &panel.ticks {
            line(&mut svg, [x(*place), bottom, x(*place), bottom + 5.0], GREY, 1.0);
            text(&mut svg, x(*place), bottom + 20.0, "middle", "normal", name);
        }
        text(&mut svg, (left + right) / 2.0, bottom + 44.0, "middle", "normal", x_title);
        if number == 0 {
            let (x, y) = (18.0, (top + bottom) / 2.0);
            let place = format!("transform=\"rotate(-90 {x} {y})\"");
            put(&mut svg, x, y, "middle", "normal", &place, y_title);
        }
        for (number, curve) in panel.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            // Bars of two curves at one place would hide each other.
            let aside = 4.0 * (number as f64 - (panel.curves.len() as f64 - 1.0) / 2.0);
            let path: Vec<String> = curve
                .points
                .iter()
                .map(|&(at, mean, _)| format!("{:.1},{:.1}", x(at) + aside, y(mean)))
                .collect();
            let path = path.join(" ");
            writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            )
            .expect("a string takes what is written");
            for &(at, mean, deviation) in &curve.points {
                let at = x(at) + aside;
                if let Some(deviation) = deviation {
                    let (low, high) = (y(mean - deviation), y(mean + deviation));
                    line(&mut svg, [at, low, at, high], colour, 1.5);
                    [low, high]
                        .iter()
                        .for_each(|&end| line(&mut svg, [at - 4.0, end, at + 4.0, end], colour, 1.5));
                }
                dot(&mut svg, at, y(mean), 4.0, colour, 1.0);
            }
        }
    }
    let mut left = 68.0;
    for (number, curve) in panels.first().map_or(&[][..], |panel| &panel.curves).iter().enumerate() {
        line(&mut svg, [left, 50.0, left + 24.0, 50.0], COLOURS[number % COLOURS.len()], 2.0);
        dot(&mut svg, left + 12.0, 50.0, 4.0, COLOURS[number % COLOURS.len()], 1.0);
        text(&mut svg, left + 32.0, 54.5, "start", "normal", &curve.name);
        left += 56.0 + CHARACTER * curve.name.chars().count() as f64;
    }
    svg + "</svg>\n"
}

/// A linear axis from one round number to another.
struct Axis {
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// One that holds all values.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let rough = ((high - low) / 5.0).max(0.1);
        let unit = 10f64.powf(rough.log10().floor());
        let step = unit
            * [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * unit >= rough * 0.999).unwrap_or(10.0);
        let (from, mut to) = ((low / step).floor() * step, (high / step).ceil() * step);
        if to <= from {
            to = from + step;
        }
        Self { from, to, step }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let Self { from, to, step } = *self;
        (0..=((to - from) / step).round() as u32).map(move |number| from + f64::from(number) * step)
    }

    fn label(&self, tick: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{tick:.digits$}")
    }
}

fn begin(width: f64, height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, 16.0, 26.0, "start", "bold", title);
    svg
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) {
    writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
    )
    .expect("a string takes what is written");
}

fn dot(svg: &mut String, x: f64, y: f64, radius: f64, colour: &str, opacity: f64) {
    writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\" opacity=\"{opacity}\"/>"
    )
    .expect("a string takes what is written");
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    put(svg, x, y, anchor, weight, "", words);
}

fn put(svg: &mut String, x: f64, y: f64, anchor: &str, weight: &str, more: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" fill=\"#222222\" {more}>{words}\
         </text>"
    )
    .expect("a string takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_hold_everything() {
        for (values, from, to, labels) in [
            (vec![61.2, 68.7], 60.0, 70.0, vec!["60", "62", "64", "66", "68", "70"]),
            (vec![0.0, 0.31], 0.0, 0.4, vec!["0.0", "0.1", "0.2", "0.3", "0.4"]),
            (vec![-3.0, 12.0], -5.0, 15.0, vec!["-5", "0", "5", "10", "15"]),
        ] {
            let axis = Axis::of(values.into_iter());
            assert!(
                (axis.from - from).abs() < 1e-9 && (axis.to - to).abs() < 1e-9,
                "{} {}",
                axis.from,
                axis.to
            );
            assert_eq!(axis.ticks().map(|tick| axis.label(tick)).collect::<Vec<_>>(), labels);
        }
        for values in [vec![], vec![5.0], vec![f64::NAN]] {
            let axis = Axis::of(values.into_iter());
            assert!(axis.to > axis.from && axis.step > 0.0);
        }
    }

    #[test]
    fn a_figure_shows_every_value_and_names_it() {
        let row = Dots { label: "A & B".into(), values: vec![1.0, 2.0], mean: 1.5, deviation: Some(0.7) };
        let svg = dots("T", &[("rte <accuracy>".into(), vec![row])]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("A &amp; B") && svg.contains("rte &lt;accuracy&gt;"), "{svg}");
        let points = vec![(10.0, 50.0, Some(1.0)), (100.0, 60.0, None)];
        let panel = Panel {
            title: "snli".into(),
            ticks: vec![(10.0, "1 %".into()), (100.0, "10 %".into())],
            curves: vec![Curve { name: "BERT".into(), points }],
        };
        let svg = curves("T", "x", "y", &[panel]);
        // Two points, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">10 %<") && svg.contains(">BERT<") && svg.contains("rotate(-90"), "{svg}");
    }
}
