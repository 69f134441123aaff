//! Run files: TOML into a [`RunConfig`], with errors that name the file, the line, the key and the nearest known one.

use std::fs;
use std::path::Path;

use anyhow::Context;
use mtdnn_raw::train::config::RunConfig;

use super::{Usage, nearest};

/// Reads a run file.
pub(super) fn read(path: &Path) -> anyhow::Result<RunConfig> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the run file {}", path.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Usage(format!("{}: the text is not UTF-8; save it as UTF-8", path.display())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    parse(text).map_err(|problem| Usage(format!("{}:{problem}", path.display())).into())
}

/// A run file's text, or `line: what is wrong`.
fn parse(text: &str) -> Result<RunConfig, String> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = 1 + text[..offset].matches('\n').count();
        format!("{line}: {}", mend(error.message(), text.lines().nth(line - 1).unwrap_or_default()))
    })
}

/// Says an error of the parser in our words where it is about a key: the parser knows the keys, not the nearest.
fn mend(message: &str, line: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field")
        && let Some(unknown) = quoted.next()
    {
        let known: Vec<&str> = quoted.collect();
        let hint = match nearest(unknown, known.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        return format!("unknown key {unknown:?}; {hint}");
    }
    match line.split_once('=') {
        Some((key, _)) if !message.contains('\n') => format!("{}: {message}", key.trim()),
        _ => message.replace('\n', "; "),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use mtdnn_raw::train::config::EvalEvery;

    #[test]
    fn an_unknown_key_gets_line_and_nearest_name() {
        let error = parse("seed = 1\n[train]\nlerning_rate = 1e-4\n").unwrap_err();
        assert_eq!(error, "3: unknown key \"lerning_rate\"; did you mean \"learning_rate\"?");
        let error = parse("[[task]]\nname = \"a\"\nlable = 3\n").unwrap_err();
        assert_eq!(error, "3: unknown key \"lable\"; did you mean \"label\"?");
        let error = parse("[trian]\nepochs = 1\n").unwrap_err();
        assert_eq!(error, "1: unknown key \"trian\"; did you mean \"train\"?");
        let error = parse("[train]\nxyz = 1\n").unwrap_err();
        assert!(error.starts_with("2: unknown key \"xyz\"; the keys here are epochs, max_steps"), "{error}");
    }

    #[test]
    fn a_wrong_type_gets_line_and_key() {
        let error = parse("[train]\nepochs = \"five\"\n").unwrap_err();
        assert_eq!(error, "2: epochs: invalid type: string \"five\", expected u32");
        let error = parse("[train]\neval = \"sometimes\"\n").unwrap_err();
        assert!(error.starts_with("2: eval: \"sometimes\" is not epoch, never"), "{error}");
        let error = parse("[train]\noptimizer = \"adam\"\n").unwrap_err();
        assert!(error.starts_with("2: optimizer: unknown variant `adam`, expected one of"), "{error}");
    }

    #[test]
    fn steps_between_evaluations_are_a_number_or_its_name() {
        for text in ["[train]\neval = 200\n", "[train]\neval = \"200\"\n"] {
            assert_eq!(parse(text).unwrap().train.eval, EvalEvery::Steps(200));
        }
        assert!(parse("[train]\neval = 0\n").unwrap_err().starts_with("2: eval: \"0\" is not epoch"));
    }

    #[test]
    fn broken_toml_gets_its_line() {
        assert!(parse("seed = 1\n[train\n").unwrap_err().starts_with("2: "));
    }
}
