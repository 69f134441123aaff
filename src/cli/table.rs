//! Tables of plain text.

/// Rows under a header, columns aligned: text to the left, numbers to the right.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub(super) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|title| title.to_string()).collect()] }
    }

    /// Adds a row, one cell for each title.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "a row has a cell for each title");
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = 0..self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = columns.clone().map(width).collect();
        let is_number = |cell: &String| cell.is_empty() || cell == "-" || cell.parse::<f64>().is_ok();
        let numeric: Vec<bool> =
            columns.map(|column| self.rows[1..].iter().all(|row| is_number(&row[column]))).collect();
        for row in &self.rows {
            let cells =
                row.iter().zip(&widths).zip(&numeric).map(|((cell, &width), numeric)| match numeric {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn text_stands_left_and_numbers_right() {
        let mut table = Table::new(&["task", "examples", "value"]);
        table.row(vec!["rte".into(), "277".into(), "0.61".into()]);
        table.row(vec!["sst2-long".into(), "".into(), "-".into()]);
        assert_eq!(
            table.to_string(),
            "task       examples  value\nrte             277   0.61\nsst2-long                -\n"
        );
    }
}
