//! Numbers as a person reads them.

/// A duration: `8.3 s`, `2 min 05 s`, `3 h 07 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// An amount of memory: `312 bytes`, `4.1 MB`, `1.5 GB`.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, &[" bytes", " kB", " MB", " GB", " TB"])
}

/// A large count: `950`, `12.3k`, `4.1M`.
pub(super) fn count(count: f64) -> String {
    scaled(count, &["", "k", "M", "G"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit > 0 && value < 99.95 { 1 } else { 0 };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_follow_the_size() {
        assert_eq!(
            [0.04, 9.49, 59.6, 125.0, 11_220.0].map(duration),
            ["0.0 s", "9.5 s", "1 min 00 s", "2 min 05 s", "3 h 07 min"]
        );
        assert_eq!(
            [0, 999, 1000, 99_960, 1_500_000_000].map(bytes),
            ["0 bytes", "999 bytes", "1.0 kB", "100 kB", "1.5 GB"]
        );
        assert_eq!([7.0, 999.6, 12_345.0].map(count), ["7", "1.0k", "12.3k"]);
    }
}
