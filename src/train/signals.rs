//! The wish of a person or a scheduler that the program stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that SIGINT and SIGTERM raise. Clones share it.
///
/// Long work looks at it between steps, saves, and ends. A second signal ends the process at once, with the
/// exit code of a shell: 128 + the signal's number.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
}

impl Stop {
    /// Lets signals raise the flag, from now until the process ends. To be called once, by the program.
    ///
    /// A flag from [`Stop::default`] is raised by nothing but [`Stop::request`].
    ///
    /// # Errors
    ///
    /// What keeps the system from taking a signal handler.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM] {
            // Actions run in the order of registration: this one leaves if the flag is up already, the next
            // raises it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.flag))?;
            flag::register(signal, Arc::clone(&stop.flag))?;
        }
        Ok(stop)
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Raises the flag.
    pub fn request(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;
    use std::process::Command;

    #[test]
    fn clones_share_the_flag() {
        let stop = Stop::default();
        let clone = stop.clone();
        assert!(!clone.requested());
        stop.request();
        assert!(clone.requested());
    }

    /// Signals belong to a whole process, so this test runs itself in one of its own for each pair of
    /// signals.
    #[test]
    fn the_first_signal_raises_the_flag_and_the_second_leaves() {
        const SIGNALS: &str = "MTDNN_TEST_SIGNALS";
        if let Ok(signals) = std::env::var(SIGNALS) {
            let signals: Vec<i32> = signals.split(' ').map(|signal| signal.parse().unwrap()).collect();
            let stop = Stop::on_signals().unwrap();
            assert!(!stop.requested());
            raise(signals[0]).unwrap();
            assert!(stop.requested());
            raise(signals[1]).unwrap();
            panic!("the second signal has not ended the process");
        }
        for (first, second) in [(SIGINT, SIGINT), (SIGTERM, SIGTERM), (SIGINT, SIGTERM)] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "train::signals::tests::the_first_signal_raises_the_flag_and_the_second_leaves",
                ])
                .env(SIGNALS, format!("{first} {second}"))
                .output()
                .unwrap();
            assert_eq!(child.status.code(), Some(128 + second), "{child:?}");
        }
    }
}
