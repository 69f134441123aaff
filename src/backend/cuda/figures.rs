//! What a kernel takes of a multiprocessor, read from the compiler's log (`--ptxas-options=-v`).

/// One kernel of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block; what a launch asks for comes on top.
    pub shared: u32,
    /// Bytes of a thread's stack: arrays that are indexed by what is known only at run time, and spills.
    pub stack: u32,
    /// Bytes of registers that did not fit: written to memory.
    pub spill_stores: u32,
    /// Bytes of registers that did not fit: read back.
    pub spill_loads: u32,
}

impl Figures {
    /// Whether the kernel ran out of registers.
    pub fn spills(&self) -> bool {
        self.spill_stores > 0 || self.spill_loads > 0
    }
}

/// The kernels that a log speaks of, by name.
///
/// ```text
/// ptxas info    : Compiling entry function 'add' for 'sm_90a'
/// ptxas info    : Function properties for add
/// ptxas         .     32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 80 registers, used 1 barriers, 32 bytes cumulative stack size, 512 bytes smem
/// ```
///
/// What the log says of a function that is called and not inlined counts for the kernel before it.
pub fn of_log(log: &str) -> Vec<Figures> {
    let mut all: Vec<Figures> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            all.push(Figures { kernel, ..Figures::default() });
        }
        let Some(kernel) = all.last_mut() else { continue };
        kernel.stack += number_before(line, " bytes stack frame");
        kernel.spill_stores += number_before(line, " bytes spill stores");
        kernel.spill_loads += number_before(line, " bytes spill loads");
        kernel.shared += number_before(line, " bytes smem");
        kernel.registers = kernel.registers.max(number_before(line, " registers"));
    }
    all.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    all
}

/// The lines of a log that are warnings.
pub fn warnings(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("warning"))
}

/// The number that stands before `words`; 0 where they are not there.
fn number_before(line: &str, words: &str) -> u32 {
    let before = line.split_once(words).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_of_each_kernel() {
        let log = "\
kernels/x.cu(3): warning #177-D: variable \"y\" was declared but never referenced
ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 512 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 364 bytes cmem[0]
";
        let first = Figures { kernel: "first".into(), registers: 8, ..Figures::default() };
        let second = Figures {
            kernel: "second".into(),
            registers: 255,
            shared: 512,
            stack: 16,
            spill_stores: 8,
            spill_loads: 12,
        };
        assert!(second.spills() && !first.spills());
        assert_eq!(of_log(log), [first, second]);
        assert_eq!(warnings(log).count(), 1);
        assert_eq!(of_log(""), []);
    }
}
