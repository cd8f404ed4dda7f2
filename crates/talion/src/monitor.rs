//! Watching long work: a progress bar, metrics as JSON lines, and Ctrl-C.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use indicatif::{ProgressBar, ProgressStyle};
use talion_core::{Error, Result};
use talion_eval::Setting;
use talion_models::training::Event;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C asks long work to save and stop; a second Ctrl-C ends the program at once.
pub fn catch_interrupts() {
    // A handler may be installed once a process; a second command in the same process keeps the first's.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; Ctrl-C again stops at once");
    });
}

/// Whether Ctrl-C was pressed, in the form that observers return.
pub fn go_on() -> ControlFlow<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// A progress bar on standard error.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>18} {bar:30} {pos}/{len} {msg} [{elapsed} < {eta}]")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style).with_prefix(what.to_owned());
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    bar
}

/// Progress bars one after another, one a setting.
#[derive(Default)]
pub struct Bars {
    current: Option<(String, ProgressBar)>,
}

impl Bars {
    /// Shows how far `setting`, or work on clean images, has come; `Break` after Ctrl-C.
    pub fn show(&mut self, setting: Option<&Setting>, done: usize, total: usize) -> ControlFlow<()> {
        let name = setting.map_or("clean".into(), ToString::to_string);
        if self.current.as_ref().is_none_or(|(shown, _)| *shown != name) {
            self.clear();
            let bar = bar(total as u64, &name);
            self.current = Some((name, bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done as u64);
        }
        go_on()
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows a training run and writes its events.
pub struct Monitor {
    what: String,
    bar: Option<ProgressBar>,
    preparing: Option<ProgressBar>,
    log: Option<File>,
}

impl Monitor {
    /// Appends events to `log`, one JSON object a line, if one is given.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub fn new(what: &str, log: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
            }
            OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))
        };
        Ok(Self { what: what.into(), bar: None, preparing: None, log: log.map(open).transpose()? })
    }

    /// Takes an event; `Break` after Ctrl-C.
    pub fn observe(&mut self, event: &Event) -> ControlFlow<()> {
        let logged = !matches!(event, Event::Preparing { .. });
        if let (true, Some(log), Ok(line)) = (logged, &mut self.log, serde_json::to_string(event)) {
            // A full disk must not end a training run; the snapshot will report it.
            let _ = writeln!(log, "{line}");
        }
        match event {
            Event::Resumed { step } => eprintln!("{}: going on from step {step}", self.what),
            Event::Preparing { what, done, total } => {
                let bar = self.preparing.get_or_insert_with(|| bar(*total, what));
                bar.set_prefix(what.clone());
                bar.set_length(*total);
                bar.set_position(*done);
            }
            Event::Progress { step, total, loss, images_per_second } => {
                if let Some(preparing) = self.preparing.take() {
                    preparing.finish_and_clear();
                }
                let what = &self.what;
                let bar = self.bar.get_or_insert_with(|| bar(*total, what).with_position(*step));
                bar.set_position(*step);
                bar.set_message(format!("loss {loss:.3} {images_per_second:.0} images/s"));
            }
            Event::Validated { epoch, metrics, .. } => {
                let figures: Vec<_> =
                    metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                let line = format!("{:>18} epoch {epoch}: {}", self.what, figures.join(", "));
                match &self.bar {
                    Some(bar) if !bar.is_hidden() => bar.println(line),
                    _ => eprintln!("{line}"),
                }
            }
        }
        go_on()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for bar in self.bar.iter().chain(&self.preparing) {
            bar.finish_and_clear();
        }
    }
}
